"""Share code between readers of array files (HDF5, npz): lazy frames and number checks."""

from collections.abc import Callable
from typing import Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import LazyFrames, encode_png

FETCH_FILE_AGAIN = "download the file again"


class PngFrames(LazyFrames):
    """T frames that are encoded as PNG on each request. `read(t)` returns uint8 [H, W, 3]."""

    def __init__(self, length: int, read: Callable[[int], np.ndarray]) -> None:
        self.length, self.read = length, read

    def file(self, t: int) -> bytes:
        """Return the frame as PNG."""
        return encode_png(self.frame(t))

    def frame(self, t: int) -> np.ndarray:
        """Return uint8 [H, W, 3] directly, without PNG."""
        return self.read(self.step(t))


def float_rows(values: Any, where: str) -> np.ndarray:
    """Return float32 [T, D] from numbers [T, D] or [T]. Raises RoboAlignError if they are not
    numbers, empty, or not finite."""
    values = np.asarray(values)
    if values.dtype.kind not in "fiub" or values.ndim not in (1, 2) or 0 in values.shape:
        problem = f"{values.dtype} of shape {list(values.shape)}, expected numbers [T, D]"
        raise RoboAlignError(problem, where=where, fix=FETCH_FILE_AGAIN)
    with np.errstate(over="ignore"):
        rows = values.reshape(len(values), -1).astype(np.float32)
    if not np.isfinite(rows).all():
        step = int(np.argwhere(~np.isfinite(rows))[0][0])
        raise RoboAlignError(
            f"not finite at step {step}", where=where, fix="drop this episode, or download it again"
        )
    return rows
