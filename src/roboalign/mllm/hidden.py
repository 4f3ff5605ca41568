"""Read the hidden states of one layer of a frozen model, the input of the action head (RoboAlign:
layer 18 of 28)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import Encoded, Prompt, collate, encode_prompt
from roboalign.mllm.load import Mllm


def text_layers(mllm: Mllm) -> nn.ModuleList:
    """Return the decoder layers of the model's text part."""
    return mllm.model.get_decoder().layers


def truncate_layers(mllm: Mllm, layer: int) -> None:
    """Drop the text layers above `layer` permanently, to free their memory; `hidden_states` returns
    the same as before.

    Afterwards the model cannot generate and cannot be saved whole.
    """
    _check_layer(mllm, layer)
    decoder = mllm.model.get_decoder()
    decoder.layers = decoder.layers[:layer]


def restore_depth(mllm: Mllm, layers: int) -> None:
    """Set the number of text layers that the configuration names; the weights stay as they are.

    `hidden_states` normalizes the topmost layer by that number. A model that was cut and saved says
    its own number, and gets that of the whole model back after it is loaded.
    """
    config = mllm.model.config.get_text_config()
    config.num_hidden_layers = layers
    kinds = getattr(config, "layer_types", None)
    if kinds:  # one entry a layer, which transformers checks
        config.layer_types = [*kinds[:layers], *[kinds[-1]] * (layers - len(kinds))]


def hidden_states(
    mllm: Mllm,
    prompts: Sequence[Prompt | Encoded],
    layer: int,
    *,
    batch_size: int = 32,
    multiple: int = 1,
    final_norm: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states [B, L, W] after text layer `layer` (1 = the lowest), and the mask [B,
    L], True on real tokens.

    Equal to `hidden_states[layer]` of Hugging Face's output_hidden_states (so the topmost layer's
    are normalized), but the layers above are not computed. With `final_norm`, a lower layer's
    states also go through the model's last norm, as in a model that was cut off there (GR00T-N1.5).

    Padded on the right with zeros; L is rounded up to a multiple of `multiple`. On the model's
    device, in its dtype, without gradients; dropout is off. Raises RoboAlignError if the model has
    no such layer.
    """
    _check_layer(mllm, layer)
    encoded = [
        one if isinstance(one, Encoded) else encode_prompt(mllm, one.question, one.images)
        for one in prompts
    ]
    length = max(len(one.input_ids) for one in encoded)
    length += -length % multiple
    width = mllm.model.config.get_text_config().hidden_size
    states = torch.zeros(len(encoded), length, width, dtype=mllm.model.dtype, device=mllm.device)
    mask = torch.zeros(len(encoded), length, dtype=torch.bool, device=mllm.device)
    training = mllm.model.training
    mllm.model.eval()
    with torch.no_grad(), _lower_layers(mllm, layer) as captured:
        for start in range(0, len(encoded), batch_size):
            batch = collate(
                mllm, encoded[start : start + batch_size], padding_side="right", multiple=multiple
            )
            del batch["labels"]
            last = mllm.model.model(
                **{key: value.to(mllm.device) for key, value in batch.items()}, use_cache=False
            )
            is_top = layer == mllm.model.config.get_text_config().num_hidden_layers
            output = last.last_hidden_state if is_top else captured.pop()
            if final_norm and not is_top:
                output = mllm.model.get_decoder().norm(output)
            rows, columns = slice(start, start + len(output)), slice(0, output.shape[1])
            mask[rows, columns] = batch["attention_mask"].bool().to(mllm.device)
            states[rows, columns] = output * mask[rows, columns, None]
    mllm.model.train(training)
    return states, mask


@contextmanager
def _lower_layers(mllm: Mllm, layer: int) -> Iterator[list[torch.Tensor]]:
    """Run only the lowest `layer` text layers; yield a list that receives the topmost one's output
    at each forward."""
    decoder = mllm.model.get_decoder()
    every, captured = decoder.layers, []
    decoder.layers = every[:layer]
    hook = decoder.layers[-1].register_forward_hook(
        lambda module, inputs, output: captured.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    try:
        yield captured
    finally:
        hook.remove()
        decoder.layers = every


def _check_layer(mllm: Mllm, layer: int) -> None:
    present = len(text_layers(mllm))
    if not 1 <= layer <= present:
        raise RoboAlignError(
            f"layer {layer}: the model has text layers 1..{present}", fix="choose one of them"
        )
