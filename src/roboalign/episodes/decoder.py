"""Decode a video file: each thread keeps its last files open, where it has stopped."""

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.pictures import MAX_PIXELS

MAX_OPEN = 8
"""Video files that one thread keeps open: the cameras of an episode, and of one more."""
AHEAD_SECONDS = 0.5
"""Seconds ahead for which decoding on always beats seeking; a key frame may be shown so much later than
decoded."""
DAMAGED_VIDEO = "get this file again, or drop its episodes"


class Picture(NamedTuple):
    """A decoded frame and when it is shown, in seconds. `damaged`: it, or a frame that it depends
    on, was incomplete."""

    frame: av.VideoFrame
    time: float
    damaged: bool


class Decoder:
    """One open video file and its decoder's position: the last two frames that it returned."""

    def __init__(self, path: Path) -> None:
        self.container = av.open(str(path), metadata_errors="replace")
        self.stream, self.tick = video_stream(self.container, path)
        width, height = self.stream.codec_context.width, self.stream.codec_context.height
        if width * height > MAX_PIXELS:
            self.container.close()
            problem = f"its frames are {width}x{height}, more than {MAX_PIXELS:,} pixels"
            raise RoboAlignError(problem, where=str(path), fix="drop its episodes")
        self.stream.codec_context.thread_count = (
            1  # decoding runs inside data workers, which already use all cores
        )
        self.to_rgb = VideoReformatter()
        self.frames: Iterator[av.VideoFrame] = iter(())
        self.previous: Picture | None = None
        self.current: Picture | None = None
        self.reach = AHEAD_SECONDS
        """Seconds ahead for which decoding on beats seeking, in a file without an index: the farthest
        fallback of a seek."""
        self.keys = np.array(
            sorted(
                entry.timestamp * self.tick for entry in _index(self.stream) if entry.is_keyframe
            )
        )
        """When the key frames are decoded, in seconds; empty for a file without a whole index."""

    def nearest(self, time: float, slack: float) -> Picture | None:
        """Return the frame shown nearest to `time`; None if there is none.

        A frame at most `slack` before `time` counts as at it. Raises av.FFmpegError if the file
        cannot be decoded up to there from the preceding key frame.
        """
        earliest = self.previous or self.current
        if (
            earliest
            and self.current
            and earliest.time - slack <= time
            and self._on_the_way(self.current.time, time)
        ):
            try:
                return self._walk(time, slack)
            except av.FFmpegError:
                pass  # the part in between is broken; a key frame may follow it
        self._seek(time, slack)
        return self._walk(time, slack)

    def _on_the_way(self, now: float, time: float) -> bool:
        """Return whether decoding on from `now` to `time` beats seeking, which repeats frames where no
        key frame is between them."""
        if time <= now + AHEAD_SECONDS or not len(self.keys):
            return time <= now + self.reach
        return not bool(((self.keys > now) & (self.keys <= time - AHEAD_SECONDS)).any())

    def _walk(self, time: float, slack: float) -> Picture | None:
        while self.current and self.current.time < time - slack and self._advance():
            pass
        pictures = [picture for picture in (self.previous, self.current) if picture]
        return min(pictures, key=lambda picture: abs(picture.time - time), default=None)

    def _seek(self, time: float, slack: float) -> None:
        """Seek to a key frame not after `time`."""
        start, back = max(time + slack, 0.0), 1.0
        while True:
            self.container.seek(int(start / self.tick), stream=self.stream)
            self.frames = self.container.decode(self.stream)
            self.previous = self.current = None
            self._advance()
            if start == 0.0 or (self.current and self.current.time <= time + slack):
                break
            # The index may be in decoding order, where a key frame can precede a frame shown
            # earlier.
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


def _index(stream: av.VideoStream) -> list[Any]:
    """Return the entries of all packets; none where the file lists no or only some of them."""
    entries = list(stream.index_entries)
    return entries if 0 < stream.frames <= len(entries) else []


_opened = threading.local()
"""`decoders` of each thread, the most recently used last. A decoder serves one caller at a time."""


def decoder_of(path: Path) -> Decoder:
    """Return this thread's decoder of a file, cached if the file is unchanged; close the oldest. A
    forked process must not use its parent's decoders: they would share one file position."""
    decoders: OrderedDict[tuple, Decoder] = _opened.__dict__.setdefault("decoders", OrderedDict())
    status = path.stat()
    check_plain(status)
    key = (path, os.getpid(), status.st_mtime_ns, status.st_size)
    if key not in decoders:
        while len(decoders) >= MAX_OPEN:
            decoders.popitem(last=False)[1].container.close()
        decoders[key] = Decoder(path)
    decoders.move_to_end(key)
    return decoders[key]


def close_videos(path: Path | None = None) -> None:
    """Close this thread's video files, or only `path`; later requests open them again."""
    decoders = _opened.__dict__.get("decoders", {})
    for key in [key for key in decoders if path in (None, key[0])]:
        decoders.pop(key).container.close()


def video_stream(
    container: av.container.InputContainer, path: Path
) -> tuple[av.VideoStream, float]:
    """Return the video of an open file, and the duration of its time unit in seconds."""
    stream = next(iter(container.streams.video), None)
    if (
        stream is None or not stream.time_base or stream.codec_context is None
    ):  # None: an unknown codec
        container.close()
        raise RoboAlignError(
            "the file holds no video that can be decoded", where=str(path), fix=DAMAGED_VIDEO
        )
    return stream, float(stream.time_base)


def packet_times(path: Path, first: float, last: float) -> list[float]:
    """Return when complete packets between two times are shown, in seconds; decode none."""
    check_plain(path.stat())
    with av.open(str(path), metadata_errors="replace") as container:
        stream, tick = video_stream(container, path)
        container.seek(int(first / tick), stream=stream)
        times = []
        for packet in container.demux(stream):
            if packet.dts is not None and packet.dts * tick > last:
                break
            if packet.pts is not None and not (packet.is_corrupt or packet.is_discard):
                times.append(packet.pts * tick)
        return times


def check_plain(status: os.stat_result) -> None:
    """Raise OSError for a FIFO or a device, which might never end."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a plain file")
