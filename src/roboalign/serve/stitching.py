"""Choose the action to execute where chunks overlap: from the newest chunk, from a mean of all, or
from a chunk that continues the last."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from roboalign.core.errors import RoboAlignError

Stitch = Literal["latest", "ensemble", "rtc"]
DECAY = 0.01
"""Decay of temporal ensembling: weights exp(-DECAY i), i = 0 for the oldest chunk. From ACT (arXiv
2304.13705)."""


@dataclass(frozen=True)
class TimedChunk:
    """A chunk whose first action is for control step `start`, when its observation was taken."""

    start: int
    actions: np.ndarray
    """float32 [H, A], raw units."""

    def at(self, step: int) -> np.ndarray | None:
        """Return the action for a control step; None outside the chunk."""
        index = step - self.start
        return self.actions[index] if 0 <= index < len(self.actions) else None


class Stitcher:
    """The chunks of one rollout, and the action of each control step.

    `latest` takes the newest chunk. `ensemble` takes the mean over all chunks that cover the step,
    the oldest weighted most, as in ACT. `rtc` takes the newest chunk, which was requested with
    `rest` and so continues the last (arXiv 2506.07339).
    """

    def __init__(self, stitch: Stitch = "latest", decay: float = DECAY) -> None:
        self.stitch, self.decay = stitch, decay
        self.chunks: list[TimedChunk] = []

    def add(self, chunk: TimedChunk) -> None:
        """Add a chunk, and drop those that it makes useless: for `ensemble` those that end before
        it starts, else all."""
        keep = [c for c in self.chunks if c.start + len(c.actions) > chunk.start]
        self.chunks = [*keep, chunk] if self.stitch == "ensemble" else [chunk]

    def action(self, step: int, oldest: int | None = None) -> np.ndarray | None:
        """Return float32 [A]; None if no chunk covers the step, or only chunks requested before
        step `oldest`."""
        reached = [
            chunk.at(step) for chunk in self.chunks if oldest is None or chunk.start >= oldest
        ]
        actions = [action for action in reached if action is not None]
        if not actions:
            return None
        if self.stitch != "ensemble":
            return actions[-1]
        weights = np.exp(-self.decay * np.arange(len(actions)))
        mean: np.ndarray = np.average(actions, axis=0, weights=weights).astype(np.float32)
        return mean

    def rest(self, step: int) -> np.ndarray | None:
        """Return float32 [n, A]: the rest of the newest chunk from this step on; None if it does
        not cover the step."""
        if not self.chunks or self.chunks[-1].at(step) is None:
            return None
        newest = self.chunks[-1]
        return newest.actions[step - newest.start :]


def check_stitch(stitch: str, metadata: Mapping[str, Any]) -> None:
    """Raise RoboAlignError if a policy's actions cannot be stitched this way; `metadata` is the
    server's."""
    action = metadata.get("action")
    space = action.get("space") if isinstance(action, Mapping) else None
    if stitch == "rtc" and not metadata.get("real_time_chunking"):
        raise RoboAlignError(
            "this policy cannot continue a chunk", where="stitch", fix="use latest or ensemble"
        )
    if stitch != "ensemble" or not isinstance(space, Mapping):
        return
    turns = space.get("rotation", "none")
    small = space.get("mode") == "delta" and "quaternion" not in str(turns)
    if space.get("control") != "joint" and turns not in ("none", "rot6d") and not small:
        raise RoboAlignError(
            f"a mean of rotations as {turns} is no rotation",
            where="stitch",
            fix="use latest or rtc",
        )
