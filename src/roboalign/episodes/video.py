"""Read frames of a video file by their time. They are decoded from the key frame before them, and
consecutive frames without seeking."""

import copy
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import av
import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file
from roboalign.episodes.decoder import DAMAGED_VIDEO, close_videos, decoder_of, packet_times
from roboalign.episodes.episode import LazyFrames, encode_png

_BROKEN = (av.FFmpegError, OSError, ValueError, OverflowError)
"""Errors raised when reading a missing, truncated or damaged file."""


class VideoFrames(LazyFrames):
    """The frames of one camera of one episode in a video file, each found by its time.

    A frame is decoded on request, as PNG bytes by `[t]` and as pixels by `frame(t)`. A file may
    contain several episodes. The object itself is a few numbers: it can be pickled and used in any
    process or thread.
    """

    def __init__(
        self,
        path: str | Path,
        first_time: float,
        length: int,
        fps: float,
        size: tuple[int, int] | None = None,
        *,
        times: np.ndarray | None = None,
        span: tuple[float, float | None] | None = None,
    ) -> None:
        """Show step t at `times[t]` seconds of the file, by default at `first_time` + t / `fps`.

        `length` is in steps. `size` is the (width, height) that every frame must have. `span` is
        when the file starts and stops showing this episode; a stop of None is its end. A recording
        and its table may count from different times: if a step has no frame at its time, and the
        span has as many frames as there are steps, they are paired in order.
        """
        self.path, self.length, self.fps, self.size = Path(path), length, fps, size
        self.wanted = first_time + np.arange(length) / fps if times is None else times
        self.span = span
        self.first = 0
        """For a part of an episode: its first step in the episode."""

    def part(self, first: int, end: int) -> "VideoFrames":
        """Return steps `first` to `end` - 1, with their times in the whole episode."""
        part = copy.copy(self)
        part.first, part.length = self.first + first, end - first
        return part

    def file(self, t: int) -> bytes:
        """Return the frame as PNG."""
        return encode_png(self.frame(t))

    @cached_property
    def times(self) -> np.ndarray:
        """Return float64 [T]: when each step of the whole episode is shown, in seconds of the file.

        Reads the span's packets. Raises RoboAlignError if the span does not show each step; the
        last ones may be missing from a file that ends early.
        """
        if self.span is None:
            return self.wanted
        half, slack, steps = 0.5 / self.fps, 0.1 / self.fps, len(self.wanted)
        start, end = self.span
        if end is None:
            own = with_last = np.sort(packet_times(self.path, start, np.inf))
        else:
            # Some tools record the time of the last frame as the end, others the time when it is
            # over.
            stored = np.sort(packet_times(self.path, start, end + half))
            with_last = stored[(stored > start - half) & (stored <= end + slack)]
            own = with_last[with_last < end - slack]
        if self._shown_in(own):
            return self.wanted
        if len(own) == steps:
            return own
        if self._shown_in(with_last) and self.wanted[0] < start + half:
            return self.wanted
        if end is None and (not len(own) or self.wanted[0] >= own[0] - half):
            return self.wanted  # steps that it does not show are refused one by one
        shown = f"at {own[0]:.3f} to {own[-1]:.3f} s" if len(own) else "none"
        raise RoboAlignError(
            f"the video has {len(own)} frames of this episode, {shown}; its {steps} steps are at "
            f"{self.wanted[0]:.3f} to {self.wanted[-1]:.3f} s",
            where=str(self.path),
            fix=DAMAGED_VIDEO,
        )

    def _shown_in(self, times: np.ndarray) -> bool:
        """Return whether the first and the last step have a frame among those at `times`."""
        half = 0.5 / self.fps
        return bool(
            len(times) and times[0] - half <= self.wanted[0] and self.wanted[-1] <= times[-1] + half
        )

    def frame(self, t: int) -> np.ndarray:
        """Return uint8 [H, W, 3] of step t.

        Raises RoboAlignError naming the file and the time if the file is missing or broken, if no
        frame is within half a step of that time, or if the frame has another size.
        """
        step = self.first + self.step(t)
        where = f"{self.path}, at {self.wanted[step]:.3f} s"
        try:
            time = float(self.times[step])
            decoder = decoder_of(self.path)
            picture = decoder.nearest(time, slack=0.1 / self.fps)
            if picture is None or abs(picture.time - time) > 0.5 / self.fps:
                found = (
                    "no frame"
                    if picture is None
                    else f"the nearest frame is at {picture.time:.3f} s"
                )
                raise RoboAlignError(
                    f"no frame of step {step}: {found}", where=where, fix=DAMAGED_VIDEO
                )
            if picture.damaged:
                raise RoboAlignError(
                    f"the frame of step {step} is damaged", where=where, fix=DAMAGED_VIDEO
                )
            pixels = decoder.to_rgb.reformat(picture.frame, format="rgb24").to_ndarray()
        except _BROKEN as error:
            close_videos(self.path)  # after a failure, the decoder's position is unknown
            raise _unreadable(error, where) from None
        if self.size not in (None, (pixels.shape[1], pixels.shape[0])):
            raise RoboAlignError(
                f"the frames are {pixels.shape[1]}x{pixels.shape[0]}, described as {self.size[0]}x{self.size[1]}",
                where=where,
                fix="correct the shape in meta/info.json, or get this file again",
            )
        return pixels

    def even_start(self) -> float:
        """Return the time s of the file for which step t is the frame nearest to s + t / fps.

        That is how LeRobot v3.0 finds a frame. Raises RoboAlignError if the steps are no even times,
        so that another frame would be found, or if a step has no frame.
        """
        half = 0.5 / self.fps
        try:
            wanted = self.times[self.first : self.first + self.length]
            stored = np.sort(packet_times(self.path, wanted[0] - half, wanted[-1] + half))
        except _BROKEN as error:
            raise _unreadable(error, str(self.path)) from None
        if not len(stored):
            stored = np.full(1, np.inf)
        shown = nearest_times(stored, wanted)
        start = float(stored[shown[0]])
        even = start + np.arange(self.length) / self.fps
        found = nearest_times(stored, even)
        missing = np.flatnonzero(np.abs(stored[shown] - wanted) > half)
        if len(missing):
            raise RoboAlignError(
                f"{len(missing)} of {self.length} steps have no frame, the first of them step {missing[0]}",
                where=f"{self.path}, at {wanted[missing[0]]:.3f} s",
                fix=DAMAGED_VIDEO,
            )
        other = np.flatnonzero((shown != found) | (np.abs(stored[found] - even) > half))
        if len(other):
            raise RoboAlignError(
                f"its frames are not at even times: step {other[0]} is shown at "
                f"{stored[shown[other[0]]]:.3f} s, not at {even[other[0]]:.3f} s",
                where=str(self.path),
                fix="store its frames as pictures (--pictures)",
            )
        return start

    def digest(self, steps: Sequence[int]) -> bytes:
        """Return what identifies the frames of these steps: the file's content and their times.

        No frame is decoded. Raises RoboAlignError if the file cannot be read.
        """
        try:
            status = self.path.stat()
            content = _hash_of(self.path, status.st_mtime_ns, status.st_size)
        except _BROKEN as error:
            raise _unreadable(error, str(self.path)) from None
        wanted = [float(self.wanted[self.first + self.step(t)]) for t in steps]
        return repr((content, self.fps, self.span, wanted)).encode()

    def check(self) -> None:
        """Raise RoboAlignError if a step has no frame.

        Reads this episode's part of the file, but decodes only its first and last frame: damage
        inside a frame between them appears only when that frame is requested.
        """
        try:
            wanted = self.times[self.first : self.first + self.length]
            stored = packet_times(self.path, wanted[0], wanted[-1] + 0.5 / self.fps)
        except _BROKEN as error:
            raise _unreadable(error, str(self.path)) from None
        times = np.array([-np.inf, *sorted(stored), np.inf])
        after = np.searchsorted(times, wanted)
        near = np.minimum(wanted - times[after - 1], times[after] - wanted)
        missing = np.flatnonzero(near > 0.5 / self.fps)
        if len(missing):
            raise RoboAlignError(
                f"{len(missing)} of {self.length} steps have no frame, the first of them step {missing[0]}",
                where=f"{self.path}, at {wanted[missing[0]]:.3f} s",
                fix=DAMAGED_VIDEO,
            )
        self.frame(0)
        self.frame(self.length - 1)


@lru_cache(maxsize=1024)
def _hash_of(path: Path, changed: int, size: int) -> str:
    """Return the sha256 of a file; one that was changed is read again."""
    return hash_file(path)


def nearest_times(stored: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the place in sorted `stored` of the time nearest to each wanted one."""
    after = np.searchsorted(stored, wanted).clip(1, max(1, len(stored) - 1))
    if len(stored) == 1:
        return np.zeros(len(wanted), int)
    before = wanted - stored[after - 1] <= stored[after] - wanted
    return np.where(before, after - 1, after)


def _unreadable(error: Exception, where: str) -> RoboAlignError:
    """Return an error of the decoder or the file system as a message for the user."""
    if isinstance(error, FileNotFoundError):
        return RoboAlignError("the file does not exist", where=where, fix=DAMAGED_VIDEO)
    return RoboAlignError(
        f"not a readable video ({getattr(error, 'strerror', None) or error})",
        where=where,
        fix=DAMAGED_VIDEO,
    )
