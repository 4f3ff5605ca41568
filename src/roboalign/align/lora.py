"""Train with LoRA (Hu et al., arXiv 2106.09685) through peft: small trained weights on a frozen
model, merged at the end.

No adapter reaches an embedding, and the action tokens' rows are new, the mean of others. So these
rows are trained too, in the input and the output embedding, and no other row. The model keeps its
own class while it trains, so sampling and `Trainer` need no change; some of its weights then have
`base_layer` in their names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig as PeftConfig
from peft import LoraModel
from peft.functional import cast_adapter_dtype
from peft.tuners.lora import Linear
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.load import Mllm

ADAPTER = "default"  # peft's name for the only adapter
FILE = "adapters.safetensors"  # all trained weights, in a checkpoint


class LoraConfig(Config):
    """Low-rank adapters in place of all weights: on every linear layer of the text model, none in the vision tower."""

    rank: int = Field(64, ge=1, le=65_536)
    """Rank of an adapter: a layer of M x N numbers is trained by (M + N) x rank."""
    alpha: int = Field(128, ge=1, le=1_000_000)
    """An adapter's output is added times alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of an adapter's inputs that is dropped while it trains; 0 in GRPO."""


def add_lora(mllm: Mllm, config: LoraConfig, seed: int) -> LoraModel:
    """Freeze the model and add what is trained in its place; it computes what it did before.

    Trained are, in float32 whatever the model's type, two matrices beside each linear layer of the text model (one
    random by `seed`, one 0) and, where the model has action tokens, their rows. The result's `merge_and_unload()` makes
    `mllm.model` a plain model again. Raises RoboAlignError where the action tokens' rows cannot be trained alone.
    """
    model = mllm.model
    names = {id(module): name for name, module in model.named_modules()}
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [inputs] if outputs.weight is inputs.weight else [inputs, outputs]
    rows = sorted(mllm.vocabulary.ids) if mllm.vocabulary else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=[
                names[id(m)] for m in model.get_decoder().modules() if isinstance(m, nn.Linear)
            ],
            trainable_token_indices={names[id(table)]: rows for table in tables} if rows else None,
        )
        lora = LoraModel(model, settings, ADAPTER)
    cast_adapter_dtype(model, ADAPTER)
    # peft ties the rows of a shared table if the config says so, and its output layer has no bias.
    tied = isinstance(model.get_output_embeddings(), TrainableTokensWrapper)
    if rows and (not tied or getattr(outputs, "bias", None) is not None):
        raise RoboAlignError(
            "the rows of the action tokens cannot be trained alone: the output embedding "
            + ("has a bias" if tied else "is the input's, but tie_word_embeddings is not set"),
            where="lora",
            fix="train all weights (lora: null), or correct the model's config.json",
        )
    return lora


@contextmanager
def adapters_off(lora: LoraModel) -> Iterator[None]:
    """Within, the model is bit by bit what it was before `add_lora`, the rows of its tokens included, in eval mode."""
    training = lora.model.training
    lora.disable_adapter_layers()
    lora.model.eval()
    try:
        yield
    finally:
        lora.enable_adapter_layers()
        lora.model.train(training)


def adapted(model: nn.Module) -> bool:
    """Whether `add_lora` has changed the model and nothing has merged it since."""
    return hasattr(model, "peft_config")


def save_adapters(model: nn.Module, folder: str | Path) -> None:
    """Write all that is trained, and nothing else, to `FILE` in `folder`."""
    trained = {
        name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(trained, Path(folder) / FILE)


def load_adapters(model: nn.Module, folder: str | Path) -> None:
    """Read what `save_adapters` wrote of a model with the same adapters."""
    stored = load_file(Path(folder) / FILE)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert stored.keys() == trained.keys(), "a checkpoint of other settings is refused before"
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(stored[name])


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` that the model has once its adapters are merged; they, and the model, stay as they are.

    What merging changes is computed anew and lies on the CPU. Of a model without adapters, its own `state_dict`.
    """
    if not adapted(model):
        return model.state_dict()
    trained = {
        name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad
    }
    state = {
        _plain(name): value for name, value in model.state_dict().items() if name not in trained
    }
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, TrainableTokensLayer):
                state[_plain(f"{name}.base_layer.weight")] = layer.get_merged_weights(
                    [ADAPTER]
                ).cpu()
            elif isinstance(layer, Linear):
                weight = layer.get_parameter("base_layer.weight")
                merged = (weight + layer.get_delta_weight(ADAPTER)).to(
                    weight.dtype
                )  # rounded once, as `merge` adds
                state[_plain(f"{name}.base_layer.weight")] = merged.cpu()
    return state


def _plain(name: str) -> str:
    """The name of a weight in the model without adapters."""
    return name.replace(".token_adapter.base_layer.", ".").replace(".base_layer.", ".")
