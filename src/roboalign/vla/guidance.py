"""Real-time chunking: pull a chunk that is being sampled towards the rest of the previous chunk
(arXiv 2506.07339).

Time runs from noise (0) to actions (1), as in that paper; openpi and lerobot count the other way.
The Jacobian of the guess is approximated by the identity, in effect as in lerobot, so the head
needs no backward pass.
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
    """The target of each chunk in a batch, and how strongly each action is pulled to it."""

    target: Float[Tensor, "batch horizon action"]
    """Normalized."""
    weights: Float[Tensor, "batch horizon 1"]
    """In [0, 1]."""

    def pull(
        self,
        actions: Float[Tensor, "batch horizon action"],
        velocity: Float[Tensor, "batch horizon action"],
        step: int,
        steps: int,
    ) -> Float[Tensor, "batch horizon action"]:
        """Return the guidance to add to `velocity` at Euler step `step` of `steps`, at `actions`.

        The gain is equation 2 of the paper, limited to one over the step's length, so that a step
        does not overshoot the target.
        """
        time = step / steps
        guess = actions + (1 - time) * velocity
        return gain(time, steps) * self.weights * (self.target - guess)


def gain(time: float, steps: int) -> float:
    """Return (t^2 + (1 - t)^2) / (t (1 - t)), the paper's (1 - t) / (t r^2), at most `steps`."""
    return steps if time == 0 else min(steps, (time**2 + (1 - time) ** 2) / (time * (1 - time)))


def prefix_weights(horizon: int, left: int, delay: int) -> Float[np.ndarray, " {horizon}"]:
    """Return float32 weights: 1 for the first `delay` actions, falling to 0 at `left`, where the
    last chunk ends.

    In between, equation 5 of the paper: c (e^c - 1) / (e - 1), with c from 1 to 0 in equal steps.
    """
    step = np.arange(horizon)
    c = np.clip((left - step) / (left - delay + 1), 0, 1)
    weights = np.where(step < delay, 1.0, c * np.expm1(c) / np.expm1(1))
    weights[step >= left] = 0.0
    return weights.astype(np.float32)


def make_guide(
    rests: Sequence[Rest | None], stats: ActionStats, horizon: int, device: torch.device
) -> Guide:
    """Return the guide of a batch; a sample without a rest is not pulled."""
    target = np.zeros((len(rests), horizon, stats.dim), np.float32)
    weights = np.zeros((len(rests), horizon, 1), np.float32)
    for row, rest in enumerate(rests):
        if rest is not None:
            left = min(len(rest[0]), horizon)
            target[row, :left] = stats.normalize(np.asarray(rest[0], np.float32)[:left])
            weights[row, :, 0] = prefix_weights(horizon, left, min(rest[1], left))
    return Guide(torch.from_numpy(target).to(device), torch.from_numpy(weights).to(device))
