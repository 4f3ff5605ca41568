"""Train with LoRA (Hu et al., arXiv 2106.09685) through peft: few trained weights on a frozen
model, merged at the end.

Adapters do not affect embeddings, but the rows of the action tokens are new: each starts as a mean
of others. These rows are therefore trained too, in the input and the output embedding, and no other
row. The model keeps its class while it trains, so sampling and `Trainer` need no change; some of
its weights then have `base_layer` in their names.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
Whole = Callable[[Tensor], Tensor]
FILE = "adapters.safetensors"  # all trained weights, in a checkpoint


class LoraConfig(Config):
    """Low-rank adapters in place of training all weights: on every linear layer of the text model,
    none in the vision tower."""

    rank: int = Field(64, ge=1, le=65_536)
    """Rank of an adapter: a layer of M x N weights gets (M + N) x rank trained weights."""
    alpha: int = Field(128, ge=1, le=1_000_000)
    """The output of an adapter is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on an adapter's inputs during training; 0 in GRPO."""


def add_lora(mllm: Mllm, config: LoraConfig, seed: int) -> LoraModel:
    """Freeze the model and add adapters, without a change to its outputs.

    Each linear layer of the text model gets two float32 matrices, one random by `seed` and one 0.
    If the model has action tokens, their rows are trained too. The result's `merge_and_unload()`
    makes `mllm.model` a plain model again.

    Raises RoboAlignError if the rows of the action tokens cannot be trained separately.
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
    """Within this context, the model is bit by bit what it was before `add_lora`, including its
    token rows, in eval mode."""
    training = lora.model.training
    switched = [one for one in lora.model.modules() if hasattr(one, "_disable_adapters")]
    # Not `disable_adapter_layers`: it freezes the adapters too, and a sharded model remembers for
    # each gathered weight whether it had a gradient when it was gathered first.
    for layer in switched:
        layer._disable_adapters = True
    lora.model.eval()
    try:
        yield
    finally:
        for layer in switched:
            layer._disable_adapters = False
        lora.model.train(training)


def adapted(model: nn.Module) -> bool:
    """Return whether the model has adapters that are not merged."""
    return hasattr(model, "peft_config")


def adapter_weights(model: nn.Module, whole: Whole = Tensor.detach) -> dict[str, Tensor]:
    """Return the trained weights by name. Every process calls it if `whole` gathers."""
    return {name: whole(p) for name, p in model.named_parameters() if p.requires_grad}


def save_adapters(trained: dict[str, Tensor], folder: str | Path) -> None:
    """Write `adapter_weights` to `FILE` in `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in trained.items()}, Path(folder) / FILE)


def load_adapters(
    model: nn.Module, folder: str | Path, like: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Load what `save_adapters` wrote for a model with the same adapters.

    `like` shards a whole tensor as a weight of the model is (`fsdp2.like`).
    """
    stored = load_file(Path(folder) / FILE)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert stored.keys() == trained.keys(), "a checkpoint of other settings is refused before"
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(like(stored[name], parameter))


def merged_parameters(
    model: nn.Module, whole: Whole = Tensor.detach
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of each parameter of the model with its adapters merged, once each.

    The model is not changed. `whole` returns the complete value of a parameter.
    """
    seen = set()
    for name, module in model.named_modules():
        merges = isinstance(module, (TrainableTokensLayer, Linear))
        own = {"base_layer.weight": module.base_layer.weight} if merges else {}
        for leaf, parameter in (own | dict(module.named_parameters(recurse=False))).items():
            if not parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                value = _merged_weight(module, whole) if merges else whole(parameter)
                yield _plain(f"{name}.{leaf}"), value


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the `state_dict` of the model with its adapters merged, without a change to the model.

    Merged weights are new tensors on the CPU. For a model without adapters, returns its own
    `state_dict`.
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
            if isinstance(layer, (TrainableTokensLayer, Linear)):
                merged = _merged_weight(layer, Tensor.detach)
                state[_plain(f"{name}.base_layer.weight")] = merged.cpu()
    return state


def _merged_weight(layer: Any, whole: Whole) -> Tensor:
    """Return the weight of a layer with its adapter or its trained rows, as peft merges them."""
    weight = whole(layer.base_layer.weight)
    if isinstance(layer, TrainableTokensLayer):
        index = torch.tensor(layer.token_indices[ADAPTER], device=weight.device)
        return weight.index_copy(0, index, whole(layer.trainable_tokens_delta[ADAPTER]).to(weight))
    down, up = whole(layer.lora_A[ADAPTER].weight), whole(layer.lora_B[ADAPTER].weight)
    # rounded once, as `merge` adds
    return (weight + up @ down * layer.scaling[ADAPTER]).to(weight.dtype)


def _plain(name: str) -> str:
    """Return the name of a weight in the model without adapters."""
    return name.replace(".token_adapter.base_layer.", ".").replace(".base_layer.", ".")
