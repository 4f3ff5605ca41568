"""Compute GRPO's arithmetic as EasyR1, the paper's engine, runs it: pure functions on tensors."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

OfTokens = Float[Tensor, "answers tokens"]
Mask = Shaped[Tensor, "answers tokens"]
"""True or 1 on the tokens of an answer; only these count."""
Scalar = Float[Tensor, ""]


def group_advantages(
    rewards: Float[Tensor, " answers"], group_size: int, eps: float = 1e-6
) -> Float[Tensor, " answers"]:
    """Return (r - mean) / (std + eps) within each group of `group_size` adjacent answers; unbiased
    std.

    The answers to one prompt are adjacent. A group whose rewards are equal gives exact zeros.
    Raises ValueError if the rewards are not groups of `group_size` (at least 2), or if one is not
    finite.
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
    # The mean of equal floats may be off by one rounding, and the division by eps would amplify
    # this to a signal.
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
    """Return the clipped policy loss: the mean over all tokens of the batch that `mask` keeps.

    Per token this is max(-A rho, -A clip(rho, 1 - low, 1 + high)) with rho = exp(logp - old_logp);
    for A < 0 at most -A dual_clip. Raises ValueError if the mask keeps no token.
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
    """Return `clipped_loss` of each token, before the mean."""
    ratio = torch.exp(torch.clamp(logp - old_logp, -20.0, 20.0))
    advantage = advantages[:, None]
    loss = torch.maximum(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - low, 1 + high))
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)


def kl_k3(
    logp: Float[Tensor, "*tokens"], ref_logp: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """Return the per-token estimate e^d - d - 1 of KL(policy || reference), d = ref_logp - logp
    (Schulman's k3), >= 0.

    As in EasyR1 and verl, d is clamped to [-20, 20] and the estimate to at most 10. Otherwise one
    token that the reference finds nearly impossible could dominate the gradient.
    """
    d = torch.clamp(ref_logp - logp, -20.0, 20.0)
    return torch.clamp(torch.exp(d) - d - 1, max=10.0)


def masked_mean(values: OfTokens, mask: Mask) -> Scalar:
    """Return the mean of `values` over all tokens that `mask` keeps, with equal weights. Raises
    ValueError if it keeps none."""
    kept = mask.bool()
    if not kept.any():
        raise ValueError("the mask keeps no token")
    return values.masked_fill(~kept, 0.0).sum() / kept.sum()


def mean_drift(logp: OfTokens, old_logp: OfTokens, mask: Mask) -> float:
    """Return the mean of |logp - old_logp| over the tokens that `mask` keeps, in nats: 0 if every
    ratio is 1."""
    return float(masked_mean((logp - old_logp).detach().abs(), mask))
