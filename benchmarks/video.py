"""How fast frames of a video data set are read: forward, as a training reads them, and by random time: one command.

    python benchmarks/video.py DATA [--frames 600] [--random 150] [--processes 1 2] [--json PATH]

DATA is a LeRobot data set with video. Two ways read the same files, in turns, on one core:

forward    `VideoFrames` in episode order: each frame is decoded once
by time    one frame at a random time a call, as LeRobot's data set does it: seek to the key frame before it, decode and
           convert up to it. `opened` opens the file at each call, as `decode_video_frames_pyav` of lerobot 0.6.1 does;
           `cached` keeps it open

Seconds are this process's CPU seconds, so other work on the machine matters little. The frames of both are compared.

Then a mixture's frames: all of them, in random order, as PNG. `decoded once` is what `roboalign run` does, with the
start of its processes; the ratio is that of processor time. Last, the peak memory of a process that does this for 10
and for 100 episodes, which are those of DATA again and again, 40 steps of each.
"""

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from roboalign.core.files import write_json
from roboalign.episodes.decoder import close_videos
from roboalign.episodes.episode import Episode, encode_png
from roboalign.episodes.open import open_robot_data
from roboalign.episodes.video import VideoFrames
from roboalign.mixture.decoding import decoded_once

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


def mixed(
    every: list[Wanted], drawn: list[Wanted], processes: list[int]
) -> dict[str, tuple[float, float]]:
    """Return frames a second of the clock, and of processor time: by time, and decoded once."""

    def by_time() -> None:
        for frame in cached(drawn):
            encode_png(frame)

    rates = {"by time, cached": rates_of(len(drawn), by_time)}
    for count in processes:
        name = f"decoded once, {count} process{'es' * (count > 1)}"
        rates[name] = rates_of(len(every), lambda count=count: decode_all(every, count))
    return rates


def rates_of(frames: int, work) -> tuple[float, float]:
    """Return frames a second, of the clock and of this process's and its children's processor time."""

    def used() -> float:
        both = [resource.getrusage(one) for one in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in both)

    began, spent = time.perf_counter(), used()
    work()
    return frames / (time.perf_counter() - began), frames / (used() - spent)


def decode_all(every: list[Wanted], processes: int) -> None:
    """Decode all frames as a mixture does."""
    videos = {id(frames): frames for frames, _ in every}
    episodes = {key: as_episode(str(key), frames) for key, frames in videos.items()}
    needed = [(episodes[id(frames)], t) for frames, t in every]
    with tempfile.TemporaryDirectory() as folder:
        decoded_once(list(episodes.values()), "camera", needed, Path(folder) / "f", processes)


def as_episode(name: str, frames: VideoFrames) -> Episode:
    """An episode that has these frames and nothing else."""
    nothing = np.zeros((len(frames), 1), np.float32)
    return Episode(name, "", "", frames.fps, nothing, nothing, {"camera": frames}, {})


def peak_memory(data: str, episodes: int) -> float:
    """Return the MiB that a process holds at most when it decodes so many episodes once."""
    command = [sys.executable, __file__, data, "--episodes", str(episodes)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(told)


def decode_repeated(every: list[Wanted], count: int) -> None:
    """Decode 40 steps of each of so many episodes, and print this process's peak memory in MiB."""
    videos = list({id(frames): frames for frames, _ in every}.values())
    parts = [videos[n % len(videos)].part(0, 40) for n in range(count)]
    decode_all([(frames, t) for frames in parts for t in range(len(frames))], 1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def compare_mixtures(
    every: list[Wanted], options: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """Print what a mixture's frames take, and in how much memory."""
    drawn = random.Random(0).sample(every, min(options.random, len(every)))
    rates = mixed(every, drawn, options.processes)
    print(f"\n{len(every)} frames of a mixture as PNG\n")
    print("| way | frames per second | per processor second | faster by |\n|---|---|---|---|")
    for name, (clock, processor) in rates.items():
        ratio = processor / rates["by time, cached"][1]
        print(f"| {name} | {clock:,.1f} | {processor:,.1f} | {ratio:.1f} |", flush=True)
    for count in (10, 100):
        print(f"\npeak memory, {count} episodes: {peak_memory(options.data, count):.0f} MiB")
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--random", type=int, default=150)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--episodes", type=int, help=argparse.SUPPRESS)
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
    if options.episodes:
        decode_repeated(every, options.episodes)
        return
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
    of_mixture = compare_mixtures(every, options)
    if options.json:
        write_json(options.json, {"rates": rates, "rounds": rounds, "mixture": of_mixture})


if __name__ == "__main__":
    main()
