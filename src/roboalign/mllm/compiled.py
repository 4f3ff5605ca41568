"""Compile a model layer by layer with torch.compile, in place: same weights, same names, fewer and
larger kernels.

All layers of one kind share one compiled code, so compiling them takes as long as compiling one
layer. Only `forward` is compiled, not the call around it, so hooks (the loss on answers, hidden
states, FSDP2) keep working. The code around the layers stays uncompiled because in multimodal
models it branches on image sizes.
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def compile_layers(model: nn.Module, *, dynamic: bool | None) -> list[nn.Module]:
    """Compile every text layer and vision block of `model` in place, and return them.

    `dynamic` is torch.compile's argument: None switches to one code for all lengths once a second
    length appears; False makes one code per shape. Do not deep-copy a compiled model: the copy
    would run the original's layers.
    """
    # Every block of a transformers model is a GradientCheckpointingLayer, the unit that activation
    # checkpointing recomputes.
    layers: list[nn.Module] = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=dynamic)  # type: ignore[method-assign]
    return layers


def restore_layers(layers: list[nn.Module]) -> None:
    """Undo `compile_layers`, given the layers it returned: the class's own `forward` is used
    again."""
    for layer in layers:
        del layer.forward
