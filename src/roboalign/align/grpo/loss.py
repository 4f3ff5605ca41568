"""Compute GRPO's arithmetic as EasyR1, the paper's engine, runs it: pure functions on tensors."""

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, group_size: int, eps: float = 1e-6) -> Tensor:
    """(r - mean) / (std + eps) within each group of `group_size` neighbours; unbiased std.

    `rewards` [N], N a multiple of `group_size` (>= 2), the samples of one prompt side by side. A group without spread
    gives exact zeros. Raises ValueError on another shape or on NaN.
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
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    low: float = 0.2,
    high: float = 0.3,
    dual_clip: float = 3.0,
) -> Tensor:
    """The clipped policy loss, a scalar: the mean over all tokens of the batch that `mask` keeps.

    Per token max(-A rho, -A clip(rho, 1 - low, 1 + high)) with rho = exp(logp - old_logp), for A < 0 at most
    -A dual_clip. `logp`, `old_logp`, `mask` [B, T], `advantages` [B]. Raises ValueError where the mask keeps nothing.
    """
    return masked_mean(clipped_loss_tokens(logp, old_logp, advantages, low, high, dual_clip), mask)


def clipped_loss_tokens(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    low: float = 0.2,
    high: float = 0.3,
    dual_clip: float = 3.0,
) -> Tensor:
    """`clipped_loss` before the mean, [B, T]."""
    ratio = torch.exp(torch.clamp(logp - old_logp, -20.0, 20.0))
    advantage = advantages[:, None]
    loss = torch.maximum(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - low, 1 + high))
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Per-token estimate e^d - d - 1 of KL(policy || reference), d = ref_logp - logp (Schulman's k3), >= 0.

    d is clamped to [-20, 20] and the estimate to at most 10, as EasyR1 and verl do: one token that the reference
    finds near impossible must not be the whole gradient.
    """
    d = torch.clamp(ref_logp - logp, -20.0, 20.0)
    return torch.clamp(torch.exp(d) - d - 1, max=10.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [B, T] over the tokens that `mask` [B, T] keeps: every token weighs the same."""
    kept = mask.bool()
    if not kept.any():
        raise ValueError("the mask keeps no token")
    return values.masked_fill(~kept, 0.0).sum() / kept.sum()


def mean_drift(logp: Tensor, old_logp: Tensor, mask: Tensor) -> float:
    """Mean of |logp - old_logp| over the tokens that `mask` [B, T] keeps, nats: 0 where every ratio is 1."""
    return float(masked_mean((logp - old_logp).detach().abs(), mask))
