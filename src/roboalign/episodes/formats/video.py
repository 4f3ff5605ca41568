"""Frames of a video file by their time: found from the key frame before them, and one after another without seeking."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import LazyFrames, encode_png

MAX_OPEN = 8
"""Video files that one thread keeps open: the cameras of an episode, and of another one beside it."""
BROKEN = (av.FFmpegError, OSError, ValueError, OverflowError)
"""What reading a missing, truncated or damaged file raises."""
AGAIN = "get this file again, or drop its episodes"


class VideoFrames(LazyFrames):
    """The frames of one camera of one episode in a video file: step t is shown at `first_time` + t / `fps` seconds.

    A frame is decoded when it is asked for, as PNG bytes by `[t]` and as pixels by `frame(t)`. A file may hold several
    episodes. The object itself is a few numbers: it can be pickled and used in any process or thread.
    """

    def __init__(
        self,
        path: str | Path,
        first_time: float,
        length: int,
        fps: float,
        size: tuple[int, int] | None = None,
    ) -> None:
        """`first_time` in seconds, `length` in steps. `size`: the (width, height) that every frame must have."""
        self.path, self.first_time, self.length, self.fps, self.size = (
            Path(path),
            first_time,
            length,
            fps,
            size,
        )

    def file(self, t: int) -> bytes:
        """The frame as PNG."""
        return encode_png(self.frame(t))

    def frame(self, t: int) -> np.ndarray:
        """uint8 [H, W, 3] of step t.

        Raises RoboAlignError naming the file and the time where the file is missing or broken, where no frame lies
        within half a step of that time, and where the frame has another size.
        """
        time = self.first_time + self.step(t) / self.fps
        where = f"{self.path}, at {time:.3f} s"
        try:
            decoder = decoder_of(self.path)
            picture = decoder.nearest(time, slack=0.1 / self.fps)
            if picture is None or abs(picture.time - time) > 0.5 / self.fps:
                found = (
                    "no frame"
                    if picture is None
                    else f"the nearest frame is at {picture.time:.3f} s"
                )
                raise RoboAlignError(f"no frame of step {t}: {found}", where=where, fix=AGAIN)
            if picture.damaged:
                raise RoboAlignError(f"the frame of step {t} is damaged", where=where, fix=AGAIN)
            pixels = decoder.to_rgb.reformat(picture.frame, format="rgb24").to_ndarray()
        except BROKEN as error:
            close_videos(self.path)  # a decoder that failed stands nowhere
            raise unreadable(error, where) from None
        if self.size not in (None, (pixels.shape[1], pixels.shape[0])):
            raise RoboAlignError(
                f"the frames are {pixels.shape[1]}x{pixels.shape[0]}, described as {self.size[0]}x{self.size[1]}",
                where=where,
                fix="correct the shape in meta/info.json, or get this file again",
            )
        return pixels

    def check(self) -> None:
        """Raise RoboAlignError where a step has no frame. Reads this episode's part of the file, and decodes its first
        and last frame only: damage inside a frame between them shows when that frame is asked for."""
        wanted = self.first_time + np.arange(self.length) / self.fps
        try:
            stored = packet_times(self.path, wanted[0], wanted[-1] + 0.5 / self.fps)
        except BROKEN as error:
            raise unreadable(error, str(self.path)) from None
        times = np.array([-np.inf, *sorted(stored), np.inf])
        after = np.searchsorted(times, wanted)
        near = np.minimum(wanted - times[after - 1], times[after] - wanted)
        missing = np.flatnonzero(near > 0.5 / self.fps)
        if len(missing):
            raise RoboAlignError(
                f"{len(missing)} of {self.length} steps have no frame, the first of them step {missing[0]}",
                where=f"{self.path}, at {wanted[missing[0]]:.3f} s",
                fix=AGAIN,
            )
        self.frame(0)
        self.frame(self.length - 1)


class Picture(NamedTuple):
    """A decoded frame and when it is shown, in seconds. `damaged`: it, or one that it builds on, was not whole."""

    frame: av.VideoFrame
    time: float
    damaged: bool


class Decoder:
    """One open video file and where its decoder stands: the two frames that came out of it last."""

    def __init__(self, path: Path) -> None:
        self.container = av.open(str(path), metadata_errors="replace")
        self.stream, self.tick = video_stream(self.container, path)
        self.stream.codec_context.thread_count = (
            1  # decoding runs inside data workers, which fill the cores already
        )
        self.to_rgb = VideoReformatter()
        self.frames: Iterator[av.VideoFrame] = iter(())
        self.previous: Picture | None = None
        self.current: Picture | None = None
        self.reach = 0.5
        """How far ahead, in seconds, decoding on is preferred to seeking: as far as a seek was seen to fall back."""

    def nearest(self, time: float, slack: float) -> Picture | None:
        """The frame shown nearest to `time`; one at most `slack` before it counts as at it. None where there is none.

        Raises av.FFmpegError where the file cannot be decoded up to there from the key frame before it.
        """
        earliest = self.previous or self.current
        if (
            earliest
            and self.current
            and earliest.time - slack <= time <= self.current.time + self.reach
        ):
            try:
                return self._walk(time, slack)
            except av.FFmpegError:
                pass  # what lies between is broken; there may be a key frame after it
        self._seek(time, slack)
        return self._walk(time, slack)

    def _walk(self, time: float, slack: float) -> Picture | None:
        while self.current and self.current.time < time - slack and self._advance():
            pass
        pictures = [picture for picture in (self.previous, self.current) if picture]
        return min(pictures, key=lambda picture: abs(picture.time - time), default=None)

    def _seek(self, time: float, slack: float) -> None:
        """Stand at a key frame not after `time`."""
        start, back = max(time + slack, 0.0), 1.0
        while True:
            self.container.seek(int(start / self.tick), stream=self.stream)
            self.frames = self.container.decode(self.stream)
            self.previous = self.current = None
            self._advance()
            if start == 0.0 or (self.current and self.current.time <= time + slack):
                break
            # The index may be in the order of decoding, where a key frame can come before a frame shown earlier.
            start, back = max(start - back, 0.0), 2 * back
        if self.current:
            self.reach = max(self.reach, time - self.current.time)

    def _advance(self) -> bool:
        frame = next(self.frames, None)
        if frame is None:
            return False
        if frame.time is None:
            raise av.InvalidDataError(0, "a frame without a time")
        inherited = self.current is not None and self.current.damaged and not frame.key_frame
        self.previous, self.current = (
            self.current,
            Picture(frame, frame.time, frame.is_corrupt or inherited),
        )
        return True


opened = threading.local()
"""`decoders` of each thread, the one used last at the end. A decoder serves one caller at a time."""


def decoder_of(path: Path) -> Decoder:
    """This thread's decoder of a file, kept from the last call where the file is the same; the oldest one is closed.

    A forked process must not go on with its parent's: they would share one position in the file.
    """
    decoders: OrderedDict[tuple, Decoder] = opened.__dict__.setdefault("decoders", OrderedDict())
    status = path.stat()
    key = (path, os.getpid(), status.st_mtime_ns, status.st_size)
    if key not in decoders:
        while len(decoders) >= MAX_OPEN:
            decoders.popitem(last=False)[1].container.close()
        decoders[key] = Decoder(path)
    decoders.move_to_end(key)
    return decoders[key]


def close_videos(path: Path | None = None) -> None:
    """Close this thread's video files, or only `path`; a frame asked for later opens its file again."""
    decoders = opened.__dict__.get("decoders", {})
    for key in [key for key in decoders if path in (None, key[0])]:
        decoders.pop(key).container.close()


def video_stream(
    container: av.container.InputContainer, path: Path
) -> tuple[av.VideoStream, float]:
    """The video of an open file, and the seconds that one unit of its times lasts."""
    stream = next(iter(container.streams.video), None)
    if (
        stream is None or not stream.time_base or stream.codec_context is None
    ):  # None: a codec that is not known
        container.close()
        raise RoboAlignError(
            "the file holds no video that can be decoded", where=str(path), fix=AGAIN
        )
    return stream, float(stream.time_base)


def packet_times(path: Path, first: float, last: float) -> list[float]:
    """When the whole packets between two times are shown, in seconds, read without decoding."""
    with av.open(str(path), metadata_errors="replace") as container:
        stream, tick = video_stream(container, path)
        container.seek(int(first / tick), stream=stream)
        times = []
        for packet in container.demux(stream):
            if packet.dts is not None and packet.dts * tick > last:
                break
            if packet.pts is not None and not packet.is_corrupt:
                times.append(packet.pts * tick)
        return times


def unreadable(error: Exception, where: str) -> RoboAlignError:
    """What the user sees of an error of the decoder or of the file system."""
    if isinstance(error, FileNotFoundError):
        return RoboAlignError("the file does not exist", where=where, fix=AGAIN)
    return RoboAlignError(
        f"not a readable video ({getattr(error, 'strerror', None) or error})",
        where=where,
        fix=AGAIN,
    )
