"""Real-time chunking: pull a chunk that is being sampled towards what is left of the chunk before (arXiv 2506.07339).

Time runs from noise (0) to actions (1), as in that paper; openpi and lerobot count the other way. The Jacobian of the
guess is taken as the identity, as lerobot's implementation does in effect: no backward pass through the head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from roboalign.actions.normalize import ActionStats

Rest = tuple[Float[np.ndarray, "_ action"], int]
"""Raw actions left of the last chunk, and how many of them will still be executed."""


@dataclass(frozen=True)
class Guide:
    """Where a batch of chunks is pulled to, and how strongly each action is."""

    target: Float[Tensor, "batch horizon action"]
    """Normalised."""
    weights: Float[Tensor, "batch horizon 1"]
    """In [0, 1]."""

    def pull(
        self,
        actions: Float[Tensor, "batch horizon action"],
        velocity: Float[Tensor, "batch horizon action"],
        step: int,
        steps: int,
    ) -> Float[Tensor, "batch horizon action"]:
        """What is added to `velocity` at Euler step `step` of `steps`, at `actions`.

        The gain is the paper's, equation 2, at most one over the step's length: a step reaches the target, not past it.
        """
        time = step / steps
        guess = actions + (1 - time) * velocity
        return gain(time, steps) * self.weights * (self.target - guess)


def gain(time: float, steps: int) -> float:
    """(t^2 + (1 - t)^2) / (t (1 - t)), the paper's (1 - t) / (t r^2), at most `steps`."""
    return steps if time == 0 else min(steps, (time**2 + (1 - time) ** 2) / (time * (1 - time)))


def prefix_weights(horizon: int, left: int, delay: int) -> Float[np.ndarray, " {horizon}"]:
    """float32: 1 for the first `delay` actions, falling to 0 at `left`, where the last chunk ends.

    The paper's equation 5: between them c (e^c - 1) / (e - 1), with c from 1 to 0 in equal steps.
    """
    step = np.arange(horizon)
    c = np.clip((left - step) / (left - delay + 1), 0, 1)
    weights = np.where(step < delay, 1.0, c * np.expm1(c) / np.expm1(1))
    weights[step >= left] = 0.0
    return weights.astype(np.float32)


def make_guide(
    rests: Sequence[Rest | None], stats: ActionStats, horizon: int, device: torch.device
) -> Guide:
    """The guide of a batch; a sample without a rest is not pulled."""
    target = np.zeros((len(rests), horizon, stats.dim), np.float32)
    weights = np.zeros((len(rests), horizon, 1), np.float32)
    for row, rest in enumerate(rests):
        if rest is not None:
            left = min(len(rest[0]), horizon)
            target[row, :left] = stats.normalize(np.asarray(rest[0], np.float32)[:left])
            weights[row, :, 0] = prefix_weights(horizon, left, min(rest[1], left))
    return Guide(torch.from_numpy(target).to(device), torch.from_numpy(weights).to(device))
