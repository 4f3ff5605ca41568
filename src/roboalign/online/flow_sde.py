"""Make the flow head a stochastic policy with a density: Flow-SDE (pi-RL, arXiv 2510.25889, after
Flow-GRPO, arXiv 2505.05470).

Time runs from noise (0) to actions (1). The stochastic differential equation with the same
marginals as the flow is dx = [v + (s^2 / 2) score] dt + s dW with score = -e / (1 - t), where
e = x - t v estimates the noise and a = x + (1 - t) v the actions. One of its Euler steps is a
Gaussian. In a decision that explores, one step is drawn from it, and all others are the flow's own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roboalign.vla.head import FlowMatchingHead, Proprioception, Vlm, VlmMask

Noisy = Float[Tensor, "rows horizon action"]
EulerSteps = Int[Tensor, " rows"]
"""Number of an Euler step, 0 the first."""
Velocity = Callable[[Noisy, Float[Tensor, " rows"]], Noisy]
"""The velocity of chunks at times t."""


@dataclass(frozen=True)
class Explored:
    """What one decision drew."""

    chunk: Noisy
    """Normalized actions, at t = 1."""
    before: Noisy
    """The chunk before the step that was drawn."""
    after: Noisy
    """The chunk after it."""
    mean: Noisy
    """The mean of what was drawn."""


def sde_std(step: EulerSteps, steps: int, noise: float) -> Float[Tensor, "rows 1 1"]:
    """Return the standard deviation of the drawn step: c sqrt((1 - t) / t) sqrt(1 / steps).

    `noise` is c. At t = 0 the denominator is the length of a step.
    """
    t = step[:, None, None] / steps
    return noise * ((1 - t) / t.clamp(min=1 / steps)).sqrt() / math.sqrt(steps)


def sde_mean(
    x: Noisy, velocity: Noisy, step: EulerSteps, steps: int, noise: float
) -> Float[Tensor, "rows horizon action"]:
    """Return the mean of the drawn step; with `noise` 0 it is the flow's own Euler step."""
    t, length = step[:, None, None] / steps, 1 / steps
    variance = sde_std(step, steps, noise).square()
    pull = 1 - t - length - variance / (2 * (1 - t))
    return pull * (x - t * velocity) + (t + length) * (x + (1 - t) * velocity)


def explore(
    velocity: Velocity, start: Noisy, step: EulerSteps, draw: Noisy, *, steps: int, noise: float
) -> Explored:
    """Integrate from `start` at t = 0, with one step of each row drawn from the SDE.

    `step` is the number of that step, `draw` standard normal noise for it.
    """
    x, before, after, mean = start, start, start, start
    for number in range(steps):
        now = velocity(x, torch.full((len(x),), number / steps, device=x.device)).float()
        here = (step == number)[:, None, None]
        middle = sde_mean(x, now, torch.full_like(step, number), steps, noise)
        drawn = middle + sde_std(step, steps, noise) * draw
        before, mean = torch.where(here, x, before), torch.where(here, middle, mean)
        after = torch.where(here, drawn, after)
        x = torch.where(here, drawn, x + now / steps)
    return Explored(x, before, after, mean)


def velocity_of(
    head: FlowMatchingHead, states: Vlm, mask: VlmMask, state: Proprioception | None
) -> Velocity:
    """Return the head's velocity after these hidden states; they are read once for all steps."""
    tokens, attended = head.encode_vlm(states, mask)
    context = head.dit.project(tokens)

    def velocity(x: Noisy, t: Float[Tensor, " rows"]) -> Noisy:
        return head.velocity(x, t, state, context, attended)

    return velocity


def log_density(
    after: Noisy, mean: Noisy, std: Float[Tensor, "rows 1 1"]
) -> Float[Tensor, "rows horizon"]:
    """Return the log-density of each action of the drawn step, summed over its dimensions."""
    z = (after - mean) / std
    each = -0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)
    return each.sum(dim=-1)


def gaussian_kl(
    old_mean: Noisy, mean: Noisy, std: Float[Tensor, "rows 1 1"]
) -> Float[Tensor, "rows horizon"]:
    """Return KL(old || new) of each action of the drawn step; both have the same deviation."""
    return (0.5 * ((mean - old_mean) / std).square()).sum(dim=-1)
