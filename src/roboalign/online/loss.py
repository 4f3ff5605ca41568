"""Compute what online RL learns from: advantages of rollouts, and the critic's targets and loss.
Pure functions on tensors."""

import torch
from jaxtyping import Float
from torch import Tensor

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
"""The ratio is clipped to [1 - low, 1 + high] (DAPO's clip, as SimpleVLA-RL and RLinf use it)."""
DUAL_CLIP = 3.0
"""The loss of a decision with advantage A < 0 is at most -3A."""
GAMMA, LAMBDA = 0.99, 0.95
VALUE_CLIP, HUBER = 0.2, 10.0


def leave_one_out(rewards: Float[Tensor, " rollouts"]) -> Float[Tensor, " rollouts"]:
    """Return each reward of a group minus the mean of the others' (RLOO, arXiv 2402.14740).

    Raises ValueError on less than two rewards, or if one is not finite.
    """
    if len(rewards) < 2 or not torch.isfinite(rewards).all():
        raise ValueError(f"a group is two or more finite rewards, not {rewards.tolist()}")
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


def gae(
    rewards: Float[Tensor, " decisions"], values: Float[Tensor, " decisions"]
) -> Float[Tensor, " decisions"]:
    """Return the generalized advantage estimates of one episode, whose end is worth 0
    (arXiv 1506.02438). An advantage plus its value is the critic's target."""
    following = torch.cat([values[1:], values.new_zeros(1)])
    deltas = rewards + GAMMA * following - values
    advantages = torch.zeros_like(deltas)
    running = deltas.new_zeros(())
    for number in reversed(range(len(deltas))):
        running = deltas[number] + GAMMA * LAMBDA * running
        advantages[number] = running
    return advantages


def normalized(advantages: Float[Tensor, " decisions"]) -> Float[Tensor, " decisions"]:
    """Return advantages with mean 0 and standard deviation 1; all equal ones become 0."""
    if len(advantages) < 2:
        return torch.zeros_like(advantages)
    return (advantages - advantages.mean()) / (advantages.std() + 1e-5)


def value_loss(
    values: Float[Tensor, " decisions"],
    old_values: Float[Tensor, " decisions"],
    targets: Float[Tensor, " decisions"],
) -> Float[Tensor, " decisions"]:
    """Return the critic's loss: Huber's, of the value or of the value clipped near the old one,
    whichever is larger."""
    near = old_values + (values - old_values).clamp(-VALUE_CLIP, VALUE_CLIP)
    free, clipped = (
        torch.nn.functional.huber_loss(one, targets, reduction="none", delta=HUBER)
        for one in (values, near)
    )
    return torch.maximum(free, clipped)
