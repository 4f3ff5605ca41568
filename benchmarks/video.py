"""How fast frames of a video data set are read: forward, as a training reads them, and by random time: one command.

    python benchmarks/video.py DATA [--frames 600] [--random 150] [--json PATH]

DATA is a LeRobot data set with video. Two ways read the same files, in turns, on one core:

forward    `VideoFrames` in episode order: each frame is decoded once
by time    one frame at a random time a call, as LeRobot's data set does it: seek to the key frame before it, decode and
           convert up to it. `opened` opens the file at each call, as `decode_video_frames_pyav` of lerobot 0.6.1 does;
           `cached` keeps it open

Seconds are this process's CPU seconds, so other work on the machine matters little. The frames of both are compared.
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from roboalign.core.files import write_json
from roboalign.episodes.open import open_robot_data
from roboalign.episodes.video import VideoFrames, close_videos

Wanted = tuple[VideoFrames, int]


def frame_at(container: av.container.InputContainer, seconds: float) -> np.ndarray:
    """Return the frame shown at a time: seek to the key frame before it, decode up to it."""
    stream = container.streams.video[0]
    container.seek(round(seconds / stream.time_base) - 1, stream=stream)
    last = None
    for frame in container.decode(stream):
        last = frame.to_ndarray(format="rgb24")
        if frame.time >= seconds - 1e-4:
            break
    assert last is not None, f"no frame at {seconds} s"
    return last


def opened(wanted: list[Wanted]) -> Iterator[np.ndarray]:
    for frames, t in wanted:
        with av.open(str(frames.path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            yield frame_at(container, float(frames.times[t]))


def cached(wanted: list[Wanted]) -> Iterator[np.ndarray]:
    containers = {}
    for frames, t in wanted:
        if frames.path not in containers:
            containers[frames.path] = av.open(str(frames.path))
            containers[frames.path].streams.video[0].codec_context.thread_count = 1
        yield frame_at(containers[frames.path], float(frames.times[t]))
    for container in containers.values():
        container.close()


def forward(wanted: list[Wanted]) -> Iterator[np.ndarray]:
    close_videos()
    for frames, t in wanted:
        yield frames.frame(t)


def timed(way, wanted: list[Wanted]) -> tuple[float, list[int]]:
    """Return CPU seconds and a sum over each frame."""
    began = time.process_time()
    sums = [int(frame.sum(dtype=np.int64)) for frame in way(wanted)]
    return time.process_time() - began, sums


def key_frame_distance(path: Path) -> float:
    """Return the mean number of frames from one key frame to the next."""
    with av.open(str(path)) as container:
        keys = [bool(packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    return len(keys) / max(1, sum(keys))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--random", type=int, default=150)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    every = [
        (frames, t)
        for episode in open_robot_data(options.data)
        for frames in episode.images.values()
        if isinstance(frames, VideoFrames)
        for t in range(len(frames))
    ]
    if not every:
        raise SystemExit(f"{options.data}: no camera is a video")
    in_order = every[: options.frames]
    drawn = random.Random(0).sample(in_order, min(options.random, len(in_order)))
    rounds: dict[str, list[float]] = {}
    sums: dict[str, list[int]] = {}
    for _ in range(3):
        for name, way, wanted in (
            ("forward", forward, in_order),
            ("by time, opened", opened, drawn),
            ("by time, cached", cached, drawn),
        ):
            seconds, sums[name] = timed(way, wanted)
            rounds.setdefault(name, []).append(len(wanted) / seconds)
    known = dict(zip([(id(f), t) for f, t in in_order], sums["forward"]))
    for name in ("by time, opened", "by time, cached"):
        assert sums[name] == [known[id(f), t] for f, t in drawn], f"{name}: other frames"
    first = in_order[0][0]
    height, width = first.frame(0).shape[:2]
    print(
        f"{len(in_order)} frames of {width} x {height} pixels, a key frame every "
        f"{key_frame_distance(first.path):.0f}; the frames of all ways are equal\n"
    )
    print(
        "| way | frames per second and core (median of 3) | forward is faster by |\n|---|---|---|"
    )
    rates = {name: float(np.median(one)) for name, one in rounds.items()}
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rates['forward'] / rate:.1f} |")
    if options.json:
        write_json(options.json, {"rates": rates, "rounds": rounds})


if __name__ == "__main__":
    main()
