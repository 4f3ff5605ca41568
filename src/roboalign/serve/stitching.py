"""Which action is executed where chunks overlap: the newest chunk's, a mean of all, or a newest that fits the last."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from roboalign.core.errors import RoboAlignError

Stitch = Literal["latest", "ensemble", "rtc"]
DECAY = 0.01
"""Of temporal ensembling's weights, exp(-DECAY i) with i = 0 for the oldest chunk: ACT's (arXiv 2304.13705)."""


@dataclass(frozen=True)
class TimedChunk:
    """A chunk whose first action is for control step `start`, at which its observation was taken."""

    start: int
    actions: np.ndarray
    """float32 [H, A], raw units."""

    def at(self, step: int) -> np.ndarray | None:
        """Its action for a control step; None outside of the chunk."""
        index = step - self.start
        return self.actions[index] if 0 <= index < len(self.actions) else None


class Stitcher:
    """The chunks of one rollout, and the action of each control step.

    `latest`: of the newest chunk. `ensemble`: mean over all chunks that reach the step, the oldest weighted most, as in
    ACT. `rtc`: of the newest, which was asked for with `rest`, so that it continues the last (arXiv 2506.07339).
    """

    def __init__(self, stitch: Stitch = "latest", decay: float = DECAY) -> None:
        self.stitch, self.decay = stitch, decay
        self.chunks: list[TimedChunk] = []

    def add(self, chunk: TimedChunk) -> None:
        """A new chunk; those that end before it began are dropped."""
        keep = [c for c in self.chunks if c.start + len(c.actions) > chunk.start]
        self.chunks = [*keep, chunk] if self.stitch == "ensemble" else [chunk]

    def action(self, step: int, oldest: int | None = None) -> np.ndarray | None:
        """float32 [A]; None where no chunk reaches the step, or only those asked for before step `oldest`."""
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
        """float32 [n, A]: what the newest chunk still has from this step on; None without any."""
        if not self.chunks or self.chunks[-1].at(step) is None:
            return None
        newest = self.chunks[-1]
        return newest.actions[step - newest.start :]


def check_stitch(stitch: str, metadata: Mapping[str, Any]) -> None:
    """Raise RoboAlignError where a policy's actions cannot be stitched so; `metadata` is the server's."""
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
