"""Decode the frames of videos that a mixture shows once, forward, into files read in any order.

A frame of a video is decoded from the key frame before it, so frames in random order are decoded many
times over.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from roboalign.episodes.decoder import close_videos
from roboalign.episodes.episode import Episode, LazyFrames
from roboalign.episodes.own_data import ChosenFrames
from roboalign.episodes.video import VideoFrames
from roboalign.mixture.tasks import processes, run_tasks

TASKS_A_PROCESS = 4
"""Tasks of each process, if there are several. A file that two tasks share is decoded from its key
frame once more."""


class _Needed(NamedTuple):
    """Steps of one episode whose frames are needed."""

    path: Path
    frames: Sequence[bytes]
    steps: list[int]


@dataclass
class DecodedFrames(LazyFrames):
    """T frames of a camera, of which `steps` are image files one after another in the file `path`."""

    source: Sequence[bytes]
    path: Path
    steps: np.ndarray
    ends: np.ndarray
    """int64: where the image file of each step ends."""

    @property
    def length(self) -> int:  # type: ignore[override]
        return len(self.source)

    def file(self, t: int) -> bytes:
        """Return the image file; that of another step is decoded."""
        place = int(np.searchsorted(self.steps, t))
        if place == len(self.steps) or self.steps[place] != t:
            return self.source[t]
        start = int(self.ends[place - 1]) if place else 0
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(int(self.ends[place]) - start)


def decoded_once(
    episodes: Sequence[Episode],
    camera: str,
    needed: Iterable[tuple[Episode, int]],
    folder: Path,
    workers: int,
) -> list[Episode]:
    """Return the episodes, those with a video of `camera` with its `needed` frames read from files.

    The frames are written to `folder`, which must exist as long as they are read. Every process
    holds one frame at a time. Raises RoboAlignError if a frame cannot be decoded.
    """
    steps: dict[str, set[int]] = defaultdict(set)
    for episode, t in needed:
        steps[episode.episode_id].add(t)
    found = [
        (video.path, float(video.wanted[video.first]), number)
        for number, episode in enumerate(episodes)
        if episode.episode_id in steps and (video := _video(episode.images.get(camera)))
    ]
    if not found:
        return list(episodes)
    folder.mkdir(exist_ok=True)
    tasks = [
        _Needed(
            folder / f"{number}.frames",
            episodes[number].images[camera],
            sorted(steps[episodes[number].episode_id]),
        )
        for _, _, number in sorted(found)
    ]
    groups = _groups(tasks, TASKS_A_PROCESS * workers if workers > 1 else 1)
    with processes(min(workers, len(groups))) as pool:
        ends = run_tasks("frames", pool, _decode, [(group,) for group in groups], workers)
    shown = list(episodes)
    for (_, _, number), one, those in zip(sorted(found), tasks, [e for part in ends for e in part]):
        decoded = DecodedFrames(one.frames, one.path, np.array(one.steps), those)
        shown[number] = replace(
            episodes[number], images={**episodes[number].images, camera: decoded}
        )
    return shown


def _video(frames: Sequence[bytes] | None) -> VideoFrames | None:
    """Return the video that these frames are of, if they are of one."""
    while isinstance(frames, ChosenFrames):
        frames = frames.frames
    return frames if isinstance(frames, VideoFrames) else None


def _groups(tasks: list[_Needed], count: int) -> list[list[_Needed]]:
    """Cut the tasks into at most `count` runs of about as many frames each."""
    whole = sum(len(one.steps) for one in tasks)
    groups: dict[int, list[_Needed]] = defaultdict(list)
    before = 0
    for one in tasks:
        groups[before * count // whole].append(one)
        before += len(one.steps)
    return list(groups.values())


def _decode(group: list[_Needed]) -> list[np.ndarray]:
    """Write the frames of each episode; return where the image files end."""
    ends = []
    for one in group:
        with one.path.open("wb") as file:
            ends.append(np.cumsum([file.write(one.frames[t]) for t in one.steps]))
    close_videos()
    return ends
