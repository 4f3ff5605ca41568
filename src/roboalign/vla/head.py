"""Define GR00T-N1.5's flow-matching action head over hidden states of a frozen MLLM (paper, section
3.3)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.vla.dit import AttentionMask, DiT, KeyValue, SelfAttentionBlock, sinusoid
from roboalign.vla.guidance import Guide

Vlm = Float[Tensor, "batch tokens vlm_width"]
VlmMask = Bool[Tensor, "batch tokens"]
Proprioception = Float[Tensor, "batch state"]
ActionChunks = Float[Tensor, "batch horizon action"]

TIME_BUCKETS = 1000
TIME_SHIFT = 0.999
"""GR00T-N1.5's `noise_s`: larger draws of s are clamped to t = 0."""

HEAD_PRESETS: dict[str, dict[str, Any]] = {
    "gr00t-n1.5": {
        "width": 1536,
        "layers": 16,
        "heads": 32,
        "hidden_width": 1024,
        "future_tokens": 32,
        "vlm_layers": 4,
        "vlm_heads": 32,
        "vlm_inner_width": 2048,
        "dropout": 0.2,
    },
    "tiny": {
        "width": 128,
        "layers": 4,
        "heads": 4,
        "hidden_width": 128,
        "future_tokens": 2,
        "vlm_layers": 1,
        "vlm_heads": 4,
        "vlm_inner_width": 128,
        "dropout": 0.0,
    },
}


class HeadConfig(Config):
    """Size of the head. Fields that are not given take the preset's value."""

    preset: Literal["gr00t-n1.5", "tiny"] = "tiny"
    """`gr00t-n1.5`: the published sizes; `tiny`: for a tiny backbone on a CPU."""
    width: int = Field(default=HEAD_PRESETS["tiny"]["width"], gt=0, le=65_536)
    """Width of the diffusion transformer."""
    layers: int = Field(default=HEAD_PRESETS["tiny"]["layers"], gt=0, le=1000)
    """Number of its blocks; even ones cross-attend to the VLM tokens, odd ones attend to the
    sequence itself."""
    heads: int = Field(default=HEAD_PRESETS["tiny"]["heads"], gt=0, le=65_536)
    """Number of its attention heads; it divides `width`."""
    hidden_width: int = Field(default=HEAD_PRESETS["tiny"]["hidden_width"], gt=0, le=65_536)
    """Width of its output, and inside the state encoder and the action decoder."""
    future_tokens: int = Field(default=HEAD_PRESETS["tiny"]["future_tokens"], ge=0, le=65_536)
    """Number of learned tokens between the state and the actions."""
    vlm_layers: int = Field(default=HEAD_PRESETS["tiny"]["vlm_layers"], ge=0, le=1000)
    """Number of self-attention blocks over the VLM tokens."""
    vlm_heads: int = Field(default=HEAD_PRESETS["tiny"]["vlm_heads"], gt=0, le=65_536)
    """Number of their attention heads; it divides `vlm_inner_width`."""
    vlm_inner_width: int = Field(default=HEAD_PRESETS["tiny"]["vlm_inner_width"], gt=0, le=65_536)
    """Width of the VLM tokens inside the head. The hidden states of a backbone of another width are
    projected to it once."""
    dropout: float = Field(default=HEAD_PRESETS["tiny"]["dropout"], ge=0, lt=1)
    """Dropout after every attention and inside every feed-forward."""
    proprioception: bool = False
    """Whether the head reads the robot's state. Without it, the head only knows what the MLLM
    saw."""

    @model_validator(mode="before")
    @classmethod
    def fill_from_preset(cls, data: Any) -> Any:
        """Complete the given fields with the preset's."""
        if not isinstance(data, dict):
            return data
        return HEAD_PRESETS.get(data.get("preset", "tiny"), {}) | data

    @model_validator(mode="after")
    def heads_divide_widths(self) -> "HeadConfig":
        """Raise ValueError if a width cannot be split over its heads."""
        for width, heads in (("width", "heads"), ("vlm_inner_width", "vlm_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width} {getattr(self, width)} is not a multiple of {heads} {getattr(self, heads)}"
                )
        return self


class HeadShape(Config):
    """Sizes set by the backbone and the data."""

    vlm_width: int = Field(gt=0, le=1_000_000)
    """Width of the backbone's hidden states."""
    action_dim: int = Field(gt=0, le=10_000)
    """Number of dimensions of an action."""
    state_dim: int = Field(ge=0, le=100_000)
    """Number of dimensions of the robot's state."""
    horizon: int = Field(gt=0, le=10_000)
    """Number of actions in a chunk."""


def flow_times(count: int, generator: torch.Generator | None = None) -> Float[Tensor, " {count}"]:
    """Return times t = max(0, (0.999 - s) / 0.999), s ~ Beta(1.5, 1): most are near the noise."""
    # The distribution function of Beta(a, 1) is s^a, so its inverse needs one uniform draw and
    # accepts a generator.
    s = torch.rand(count, generator=generator).pow(1 / 1.5)
    return ((TIME_SHIFT - s) / TIME_SHIFT).clamp(min=0)


class FlowMatchingHead(nn.Module):
    """Predict the velocity that moves noise to a chunk of normalized actions.

    The sequence is [state | future tokens | noisy actions]; only the actions have learned
    positions. VLM padding is masked everywhere. Without `config.proprioception` there is no state
    token and `state` must be None.
    """

    def __init__(self, config: HeadConfig, shape: HeadShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        width, inner = config.width, config.vlm_inner_width
        self.vlm_norm = nn.LayerNorm(shape.vlm_width)
        self.vlm_projection = (
            nn.Linear(shape.vlm_width, inner) if shape.vlm_width != inner else nn.Identity()
        )
        self.vlm_blocks = nn.ModuleList(
            SelfAttentionBlock(inner, config.vlm_heads, inner // config.vlm_heads, config.dropout)
            for _ in range(config.vlm_layers)
        )
        self.state_encoder = (
            _mlp(shape.state_dim, config.hidden_width, width) if config.proprioception else None
        )
        self.future = nn.Parameter(0.02 * torch.randn(config.future_tokens, width))
        self.positions = nn.Parameter(0.02 * torch.randn(shape.horizon, width))
        self.action_in = nn.Linear(shape.action_dim, width)
        self.action_mix = nn.Linear(2 * width, width)
        self.action_out = nn.Linear(width, width)
        self.dit = DiT(
            width, inner, config.hidden_width, config.layers, config.heads, config.dropout
        )
        self.decoder = _mlp(config.hidden_width, config.hidden_width, shape.action_dim)

    def encode_vlm(
        self, vlm: Vlm, vlm_mask: VlmMask
    ) -> tuple[Float[Tensor, "batch tokens inner"], AttentionMask]:
        """Return the VLM tokens as the transformer reads them, and the attention mask."""
        mask = vlm_mask[:, None, None, :]
        tokens = self.vlm_projection(self.vlm_norm(vlm))
        for block in self.vlm_blocks:
            tokens = block(tokens, mask)
        return tokens, mask

    def velocity(
        self,
        noisy: Float[Tensor, "rows horizon action"],
        t: Float[Tensor, " rows"],
        state: Float[Tensor, "rows state"] | None,
        context: list[KeyValue | None],
        mask: AttentionMask,
    ) -> Float[Tensor, "rows horizon action"]:
        """Return the velocity of noisy actions at times `t`; `context` is from `DiT.project`."""
        bucket = (t * TIME_BUCKETS).long()
        time = (
            sinusoid(bucket, self.config.width)
            .to(noisy.dtype)[:, None]
            .expand(-1, self.shape.horizon, -1)
        )
        actions = F.silu(self.action_mix(torch.cat([self.action_in(noisy), time], dim=-1)))
        sequence = [
            self.future.expand(len(noisy), -1, -1),
            self.action_out(actions) + self.positions,
        ]
        if self.state_encoder is not None:
            if state is None:
                raise RoboAlignError(
                    "this head was built with proprioception and needs a state", where="state"
                )
            sequence.insert(0, self.state_encoder(state)[:, None])
        elif state is not None:
            raise RoboAlignError(
                "this head has no proprioception", where="state", fix="pass state=None"
            )
        hidden = self.dit(torch.cat(sequence, dim=1), bucket, context, mask)
        return self.decoder(hidden[:, -self.shape.horizon :])

    def loss(
        self,
        vlm: Vlm,
        vlm_mask: VlmMask,
        state: Proprioception | None,
        actions: ActionChunks,
        action_mask: Bool[Tensor, "batch horizon action"] | None = None,
        *,
        noise: Float[Tensor, "draws horizon action"],
        t: Float[Tensor, " draws"],
    ) -> Float[Tensor, ""]:
        """Return the mean squared error of the velocity at x_t = (1 - t) noise + t action; the
        target is action - noise.

        `actions` are normalized; where `action_mask` is False they do not count. `t` is from
        `flow_times`. Each sample may have several draws of noise and time, adjacent; these share
        its VLM tokens.
        """
        draws = len(noise) // len(actions)
        actions = actions.repeat_interleave(draws, dim=0)
        state = state if state is None else state.repeat_interleave(draws, dim=0)
        action_mask = (
            action_mask if action_mask is None else action_mask.repeat_interleave(draws, dim=0)
        )
        tokens, mask = self.encode_vlm(vlm, vlm_mask)
        noisy = torch.lerp(noise, actions, t[:, None, None])
        predicted = self.velocity(noisy, t, state, self.dit.project(tokens), mask)
        error = (predicted.float() - (actions - noise)).square()
        return (
            error.mean() if action_mask is None else (error * action_mask).sum() / action_mask.sum()
        )

    @torch.no_grad()
    def sample(
        self,
        vlm: Vlm,
        vlm_mask: VlmMask,
        state: Proprioception | None,
        noise: ActionChunks,
        *,
        steps: int = 4,
        guide: Guide | None = None,
    ) -> ActionChunks:
        """Integrate the velocity from `noise` at t = 0 in `steps` Euler steps, and return
        normalized actions.

        `guide` pulls them towards the rest of the previous chunk (real-time chunking).

        The VLM tokens and their keys and values are computed once for all steps. Nothing else is
        random: the result for a sample does not depend on the rest of its batch.
        """
        tokens, mask = self.encode_vlm(vlm, vlm_mask)
        context = self.dit.project(tokens)
        actions = noise
        for step in range(steps):
            t = torch.full((len(noise),), step / steps, device=noise.device)
            velocity = self.velocity(actions, t, state, context, mask).float()
            if guide is not None:
                velocity = velocity + guide.pull(actions, velocity, step, steps)
            actions = actions + velocity / steps
        return actions


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
