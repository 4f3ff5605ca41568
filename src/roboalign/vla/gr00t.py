"""Convert a published GR00T-N1.5 action head to ours; every tensor has one counterpart.

Source: `FlowmatchingActionHead` of Isaac-GR00T N1.5, whose modules `vla/head.py` follows. Only the
container differs: it has a state encoder, an action encoder and a decoder for each of 32
embodiments, and pads states and actions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from roboalign.core.errors import RoboAlignError
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape

PREFIX = "action_head."
"""Prefix of the head's tensors in the file of the complete published policy."""
_RENAMED = {
    "vlm_norm": "vlln",
    "dit.time.0": "model.timestep_encoder.timestep_embedder.linear_1",
    "dit.time.2": "model.timestep_encoder.timestep_embedder.linear_2",
    "dit.out": "model.proj_out_2",
}
"""Modules that differ only in name."""
IN_BLOCK = {
    "norm.modulation": "norm1.linear",
    "norm_attention": "norm1",
    "norm_feed_forward": "norm3",
    "attention.query": "attn1.to_q",
    "attention.out": "attn1.to_out.0",
    "feed_forward.0": "ff.net.0.proj",
    "feed_forward.3": "ff.net.2",
}
"""The same inside a block."""


def gr00t_head(
    tensors: Mapping[str, Tensor], config: HeadConfig, shape: HeadShape, embodiment: int
) -> FlowMatchingHead:
    """Return our head with the weights of a GR00T-N1.5 head, for one of its embodiments.

    `tensors` are the published ones by name, with or without the prefix `action_head.`.
    `shape.action_dim` and `shape.state_dim` are the sizes that the embodiment uses of the padded 32
    and 64; `shape.horizon` may be shorter.

    Raises RoboAlignError if a tensor is missing, has the wrong shape or has no counterpart, or if
    `embodiment` is out of range.
    """
    source = _Source({name.removeprefix(PREFIX): value for name, value in tensors.items()})
    head = FlowMatchingHead(config, shape)
    with torch.no_grad():
        state = _shared(source, head) | _of_embodiment(source, head, embodiment)
        for name, parameter in head.state_dict().items():
            if state[name].shape != parameter.shape:
                raise RoboAlignError(
                    f"{name} is {list(parameter.shape)} here, and {list(state[name].shape)} in the GR00T head",
                    where="GR00T head",
                    fix="give the sizes of the head that was published, and its backbone's width",
                )
    head.load_state_dict(state)
    if left := source.unused():
        raise RoboAlignError(
            f"tensors that this head has no place for: {left[:3]}", where="GR00T head"
        )
    return head


class _Source:
    """The published tensors; records which were used."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.used: set[str] = set()

    def __call__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise RoboAlignError(f"there is no tensor {name}", where="GR00T head")
        self.used.add(name)
        return self.tensors[name]

    def unused(self) -> list[str]:
        return sorted(set(self.tensors) - self.used)


def _shared(source: _Source, head: FlowMatchingHead) -> dict[str, Tensor]:
    """Return what all embodiments share, under our names."""
    state = {
        "future": source("future_tokens.weight"),
        "positions": source("position_embedding.weight")[: head.shape.horizon],
    }
    for kind in ("weight", "bias"):
        for ours, theirs in _RENAMED.items():
            state[f"{ours}.{kind}"] = source(f"{theirs}.{kind}")
        # The modulation of the output is (shift, scale) there; all others are (scale, shift).
        shift, scale = source(f"model.proj_out_1.{kind}").chunk(2)
        state[f"dit.norm_out.modulation.{kind}"] = torch.cat([scale, shift])
    for index in range(head.config.vlm_layers):
        ours, theirs = f"vlm_blocks.{index}", f"vl_self_attention.transformer_blocks.{index}"
        state |= _block(source, ours, theirs, norms=("norm_attention", "norm_feed_forward"))
    for index in range(head.config.layers):
        ours, theirs = f"dit.blocks.{index}", f"model.transformer_blocks.{index}"
        state |= _block(source, ours, theirs, norms=("norm.modulation",))
    return state


def _block(source: _Source, ours: str, theirs: str, norms: tuple[str, ...]) -> dict[str, Tensor]:
    modules = (*norms, "attention.query", "attention.out", "feed_forward.0", "feed_forward.3")
    state = {}
    for kind in ("weight", "bias"):
        for module in modules:
            state[f"{ours}.{module}.{kind}"] = source(f"{theirs}.{IN_BLOCK[module]}.{kind}")
        key, value = (source(f"{theirs}.attn1.{name}.{kind}") for name in ("to_k", "to_v"))
        state[f"{ours}.attention.key_value.{kind}"] = torch.cat([key, value])
    return state


def _of_embodiment(source: _Source, head: FlowMatchingHead, number: int) -> dict[str, Tensor]:
    """Return the encoders and the decoder of one embodiment. GR00T's matrices are [inputs,
    outputs], ours [outputs, inputs]."""
    actions, states = head.shape.action_dim, head.shape.state_dim

    def linear(ours: str, theirs: str, rows: int | None = None, columns: int | None = None) -> dict:
        weight, bias = source(f"{theirs}.W"), source(f"{theirs}.b")
        if not 0 <= number < len(weight):
            raise RoboAlignError(
                f"embodiment {number} is not one of 0 to {len(weight) - 1}", where="GR00T head"
            )
        return {
            f"{ours}.weight": weight[number, :rows, :columns].T.contiguous(),
            f"{ours}.bias": bias[number, :columns],
        }

    state = {
        **linear("action_in", "action_encoder.W1", rows=actions),
        **linear("action_mix", "action_encoder.W2"),
        **linear("action_out", "action_encoder.W3"),
        **linear("decoder.0", "action_decoder.layer1"),
        **linear("decoder.2", "action_decoder.layer2", columns=actions),
    }
    first = linear("state_encoder.0", "state_encoder.layer1", rows=states)
    second = linear("state_encoder.2", "state_encoder.layer2")
    return state | first | second if head.config.proprioception else state
