"""What the readers of array files (HDF5, npz) share: frames encoded late, and numbers checked."""

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np

from roboalign.data.episode import encode_png
from roboalign.errors import RoboAlignError

AGAIN = "download the file again"


class PngFrames(Sequence[bytes]):
    """T frames that are encoded as PNG each time one is asked for: `read(t)` gives uint8 [H, W, 3]."""

    def __init__(self, length: int, read: Callable[[int], np.ndarray]) -> None:
        self.length, self.read = length, read

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, t: int) -> bytes: ...
    @overload
    def __getitem__(self, t: slice) -> list[bytes]: ...
    def __getitem__(self, t: int | slice) -> bytes | list[bytes]:
        if isinstance(t, slice):
            return [self[i] for i in range(*t.indices(self.length))]
        return encode_png(self.frame(t))

    def frame(self, t: int) -> np.ndarray:
        """uint8 [H, W, 3], without the way through PNG."""
        if not -self.length <= t < self.length:
            raise IndexError(f"step {t} of an episode of {self.length} steps")
        return self.read(t % self.length)


def float_rows(values: Any, where: str) -> np.ndarray:
    """float32 [T, D] of numbers [T, D] or [T]. Raises RoboAlignError where they are not, none, or not finite."""
    values = np.asarray(values)
    if values.dtype.kind not in "fiub" or values.ndim not in (1, 2) or 0 in values.shape:
        problem = f"{values.dtype} of shape {list(values.shape)}, expected numbers [T, D]"
        raise RoboAlignError(problem, where=where, fix=AGAIN)
    with np.errstate(over="ignore"):
        rows = values.reshape(len(values), -1).astype(np.float32)
    if not np.isfinite(rows).all():
        step = int(np.argwhere(~np.isfinite(rows))[0][0])
        raise RoboAlignError(f"not finite at step {step}", where=where, fix="drop this episode, or download it again")
    return rows
