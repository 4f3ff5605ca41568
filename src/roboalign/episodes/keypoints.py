"""Locate the bodies of a scene in each frame, to pretrain a vision tower."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import Episode

BODIES = ("gripper", "object", "object2", "goal")


@dataclass(frozen=True)
class Keypoints:
    """The bodies of N frames.

    A query is a body of a task: the same body in another task is a different query.
    """

    frames: list[tuple[Episode, int]]
    queries: np.ndarray
    """int64 [N, 4], the query of each of BODIES; `n_queries` of them in total."""
    pixels: np.ndarray
    """float32 [N, 4, 2], position in the image, 0 to 1 from the top left corner."""
    positions: np.ndarray
    """float32 [N, 4, 3], world frame, in meters."""
    known: np.ndarray
    """bool [N, 4]: the task has this body, and it is in the image."""
    n_queries: int


def keypoints(episodes: Sequence[Episode], camera: str, every: int) -> Keypoints:
    """Return the keypoints of every `every`-th frame.

    Raises RoboAlignError if no body is known in any frame.
    """
    tasks = sorted({episode.task for episode in episodes})
    frames, queries, pixels, positions, known = [], [], [], [], []
    for episode in episodes:
        steps = range(0, len(episode), every)
        view = episode.cameras[camera]
        for t in steps:
            frames.append((episode, t))
            queries.append(tasks.index(episode.task) * len(BODIES) + np.arange(len(BODIES)))
        bodies = [episode.position(body) for body in BODIES]
        missing = np.full((len(episode), 3), np.nan, dtype=np.float32)
        places = np.stack([missing if body is None else body for body in bodies], axis=1)[::every]
        points = view.pixels(places.astype(np.float64)) / (view.width, view.height)
        positions.append(places)
        pixels.append(points)
        known.append(np.isfinite(places).all(-1) & (points > 0).all(-1) & (points < 1).all(-1))
    seen = np.concatenate(known) if known else np.zeros((0, len(BODIES)), bool)
    if not seen.any():
        raise RoboAlignError(
            "no frame shows a body whose position is known",
            where="vision pretraining",
            fix="use episodes with privileged states and a camera projection",
        )
    keep = seen[..., None]
    return Keypoints(
        frames,
        np.array(queries),
        np.where(keep, np.concatenate(pixels), 0).astype(np.float32),
        np.where(keep, np.concatenate(positions), 0).astype(np.float32),
        seen,
        len(tasks) * len(BODIES),
    )
