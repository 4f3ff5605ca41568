"""Define the transformer blocks of the action head: attention over packed heads, AdaLN, and the
diffusion transformer."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

Projected = Float[Tensor, "batch heads tokens head_dim"]
KeyValue = tuple[Projected, Projected]
AttentionMask = Bool[Tensor, "batch 1 1 tokens"]
"""False: padding."""
Rows = Float[Tensor, "rows sequence width"]
"""K sequences for each context of a batch, adjacent: B * K rows."""


def _angles(
    positions: Num[Tensor, "*batch"], half: int, spacing: int, max_period: float
) -> Float[Tensor, "*batch {half}"]:
    """Return each position times `half` geometric frequencies, from 1 downwards."""
    exponent = -math.log(max_period) / spacing
    frequencies = torch.exp(exponent * torch.arange(half, device=positions.device))
    return positions[..., None].float() * frequencies


def sinusoid(
    positions: Num[Tensor, "*batch"], width: int, *, max_period: float = 10_000.0
) -> Float[Tensor, "*batch {width}"]:
    """Return sines of the positions at `width / 2` geometric frequencies, then cosines.

    This is GR00T-N1.5's encoding of the flow time in its action encoder.
    """
    angles = _angles(positions, width // 2, width // 2, max_period)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def timestep_features(
    bucket: Num[Tensor, "*batch"], width: int = 256, *, max_period: float = 10_000.0
) -> Float[Tensor, "*batch {width}"]:
    """Return the DiT's time features: cosines first, the last frequency exactly 1 / `max_period`.

    GR00T-N1.5 takes them from diffusers, `Timesteps(256, flip_sin_to_cos=True,
    downscale_freq_shift=1)`.
    """
    angles = _angles(bucket, width // 2, width // 2 - 1, max_period)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _attend(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Projected,
    value: Projected,
    mask: AttentionMask | None,
) -> Float[Tensor, "batch heads queries head_dim"]:
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # On a CPU, torch's attention takes 4 to 12 times as long in bfloat16 as in float32 (forward and
    # backward).
    with torch.autocast(query.device.type, enabled=False):
        return F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=mask
        )


class Attention(nn.Module):
    """Multi-head attention of queries of width `width` over a context of width `context_width`."""

    def __init__(
        self, width: int, context_width: int, heads: int, head_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, heads * head_dim)
        self.key_value = nn.Linear(context_width, 2 * heads * head_dim)
        self.out = nn.Linear(heads * head_dim, width)
        self.dropout = nn.Dropout(dropout)

    def project(self, context: Float[Tensor, "batch tokens context_width"]) -> KeyValue:
        """Return keys and values; they can be reused for the same context."""
        key, value = (
            self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        return key, value

    def forward(self, x: Rows, key_value: KeyValue, mask: AttentionMask | None = None) -> Rows:
        # The K sequences are concatenated, so that keys and values are neither computed nor copied
        # K times.
        query = (
            self.query(x)
            .view(len(key_value[0]), -1, self.heads, key_value[0].shape[-1])
            .transpose(1, 2)
        )
        attended = _attend(query, *key_value, mask)
        out = self.out(attended.transpose(1, 2).reshape(*x.shape[:2], -1))
        # GR00T-N1.5 applies dropout twice here: inside its attention and in the block around it.
        return self.dropout(self.dropout(out))


class FeedForward(nn.Sequential):
    """Linear, GELU (tanh), linear; the inner width is 4 * `width`."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(width, 4 * width),
            nn.GELU("tanh"),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )


class SelfAttentionBlock(nn.Module):
    """Pre-norm self-attention over the VLM tokens (GR00T-N1.5's `vl_self_attention`)."""

    def __init__(self, width: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, width, heads, head_dim, dropout)
        self.norm_feed_forward = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, dropout)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], mask: AttentionMask
    ) -> Float[Tensor, "batch tokens width"]:
        normed = self.norm_attention(x)
        x = x + self.attention(normed, self.attention.project(normed), mask)
        return x + self.feed_forward(self.norm_feed_forward(x))


class AdaptiveNorm(nn.Module):
    """AdaLN: a layer norm without its own weights, scaled and shifted by the condition; no gate.

    GR00T-N1.5 takes `eps` 1e-5 inside its blocks and 1e-6 before its output.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, x: Rows, condition: Float[Tensor, "rows width"]) -> Rows:
        scale, shift = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """AdaLN, attention (to the VLM tokens if `cross`, else self-attention), plain norm,
    feed-forward."""

    def __init__(
        self, width: int, context_width: int, heads: int, dropout: float, *, cross: bool
    ) -> None:
        super().__init__()
        self.cross = cross
        self.norm = AdaptiveNorm(width)
        self.attention = Attention(
            width, context_width if cross else width, heads, width // heads, dropout
        )
        self.feed_forward = FeedForward(width, dropout)

    def forward(
        self,
        x: Rows,
        condition: Float[Tensor, "rows width"],
        context: KeyValue | None,
        mask: AttentionMask | None,
    ) -> Rows:
        normed = self.norm(x, condition)
        key_value = context if context is not None else self.attention.project(normed)
        x = x + self.attention(normed, key_value, mask)
        return x + self.feed_forward(F.layer_norm(x, x.shape[-1:], eps=1e-5))


class DiT(nn.Module):
    """The diffusion transformer: even blocks cross-attend to the VLM tokens, odd ones attend to the
    sequence itself.

    Sizes of GR00T-N1.5: width 1536, context 2048, 16 layers of 32 heads, output 1024: 550,386,688
    parameters.
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        out_width: int,
        layers: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        blocks = [
            DiTBlock(width, context_width, heads, dropout, cross=index % 2 == 0)
            for index in range(layers)
        ]
        self.blocks: Sequence[DiTBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm_out = AdaptiveNorm(width, eps=1e-6)
        self.out = nn.Linear(width, out_width)

    def project(
        self, context: Float[Tensor, "batch tokens context_width"]
    ) -> list[KeyValue | None]:
        """Return keys and values of the VLM tokens for each block, reusable in all steps; None for
        self-attention."""
        return [block.attention.project(context) if block.cross else None for block in self.blocks]

    def forward(
        self,
        x: Rows,
        bucket: Num[Tensor, " rows"],
        context: list[KeyValue | None],
        mask: AttentionMask,
    ) -> Float[Tensor, "rows sequence out_width"]:
        """Run all blocks. `bucket` is the time in 0..999; `context` is from `project`."""
        condition = self.time(timestep_features(bucket).to(x.dtype))
        for block, key_value in zip(self.blocks, context, strict=True):
            x = block(x, condition, key_value, mask if block.cross else None)
        return self.out(self.norm_out(x, condition))
