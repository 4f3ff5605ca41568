"""Compute GRPO's arithmetic as EasyR1, the paper's engine, runs it: pure functions on tensors."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

OfTokens = Float[Tensor, "answers tokens"]
Mask = Shaped[Tensor, "answers tokens"]
"""True or 1 on the tokens of an answer, which are what counts."""
Scalar = Float[Tensor, ""]


def group_advantages(
    rewards: Float[Tensor, " answers"], group_size: int, eps: float = 1e-6
) -> Float[Tensor, " answers"]:
    """(r - mean) / (std + eps) within each group of `group_size` neighbours; unbiased std.

    There are a multiple of `group_size` (>= 2) answers, those to one prompt side by side. A group
    without spread gives exact zeros. Raises ValueError on another number or on NaN.
    """
    if group_size < 2 or rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(
            f"{list(rewards.shape)} rewards are not groups of {group_size} (at least 2)"
        )
    if not torch.isfinite(rewards).all():
        raise ValueError("a reward is NaN or infinite")
    groups = rewards.view(-1, group_size)
    advantages = (groups - groups.mean(dim=1, keepdim=True)) / (
        groups.std(dim=1, keepdim=True) + eps
    )
    # The mean of equal floats may be off by one rounding, and the division by eps would turn that
    # into a signal.
    flat = groups.amax(dim=1, keepdim=True) == groups.amin(dim=1, keepdim=True)
    return advantages.masked_fill(flat, 0.0).view(-1)


def clipped_loss(
    logp: OfTokens,
    old_logp: OfTokens,
    advantages: Float[Tensor, " answers"],
    mask: Mask,
    low: float = 0.2,
    high: float = 0.3,
    dual_clip: float = 3.0,
) -> Scalar:
    """The clipped policy loss: the mean over all tokens of the batch that `mask` keeps.

    Per token max(-A rho, -A clip(rho, 1 - low, 1 + high)) with rho = exp(logp - old_logp), for A < 0 at most
    -A dual_clip. Raises ValueError where the mask keeps nothing.
    """
    return masked_mean(clipped_loss_tokens(logp, old_logp, advantages, low, high, dual_clip), mask)


def clipped_loss_tokens(
    logp: OfTokens,
    old_logp: OfTokens,
    advantages: Float[Tensor, " answers"],
    low: float = 0.2,
    high: float = 0.3,
    dual_clip: float = 3.0,
) -> OfTokens:
    """`clipped_loss` before the mean."""
    ratio = torch.exp(torch.clamp(logp - old_logp, -20.0, 20.0))
    advantage = advantages[:, None]
    loss = torch.maximum(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - low, 1 + high))
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)


def kl_k3(
    logp: Float[Tensor, "*tokens"], ref_logp: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """Per-token estimate e^d - d - 1 of KL(policy || reference), d = ref_logp - logp (Schulman's k3), >= 0.

    d is clamped to [-20, 20] and the estimate to at most 10, as EasyR1 and verl do: one token that the reference
    finds near impossible must not be the whole gradient.
    """
    d = torch.clamp(ref_logp - logp, -20.0, 20.0)
    return torch.clamp(torch.exp(d) - d - 1, max=10.0)


def masked_mean(values: OfTokens, mask: Mask) -> Scalar:
    """Mean of `values` over the tokens that `mask` keeps: every token weighs the same."""
    kept = mask.bool()
    if not kept.any():
        raise ValueError("the mask keeps no token")
    return values.masked_fill(~kept, 0.0).sum() / kept.sum()


def mean_drift(logp: OfTokens, old_logp: OfTokens, mask: Mask) -> float:
    """Mean of |logp - old_logp| over the tokens that `mask` keeps, nats: 0 where every ratio is 1."""
    return float(masked_mean((logp - old_logp).detach().abs(), mask))
