"""torch.compile layer by layer, in place: the same weights under the same names, fewer and larger kernels.

All layers of a kind share one compiled code, so that it takes as long as for one layer. `forward` is compiled and not
the call around it: hooks (of the loss on answers, of hidden states, of FSDP2) go on as they are. What is around the
layers, which in multimodal models branches on image sizes, stays as it is.
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def compile_layers(model: nn.Module, *, dynamic: bool | None) -> list[nn.Module]:
    """Compile every text layer and vision block of `model` in place; returns them.

    `dynamic` is torch.compile's: None to make one code for all lengths once a second one appears, False for one code a
    shape. A copy (`copy.deepcopy`) of a compiled model would run the original's layers: do not take one.
    """
    # Every block of a transformers model is one of these: it is what activation checkpointing recomputes.
    layers: list[nn.Module] = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=dynamic)  # type: ignore[method-assign]
    return layers


def restore_layers(layers: list[nn.Module]) -> None:
    """Undo `compile_layers`, which gave these: the class's own `forward` shows again."""
    for layer in layers:
        del layer.forward
