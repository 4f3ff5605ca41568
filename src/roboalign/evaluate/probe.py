"""Probe, as the paper does, whether hidden states know how far the robot has come.

Labels: the demonstrations of one task are aligned over their states to one of them, the reference,
by dynamic time warping (Sakoe and Chiba, 1978). The reference is divided into `phases` equal
stretches; a frame's label is the stretch it is matched to. The probe classifies these labels by k
nearest neighbors from the features of a frame, and no neighbor may be from the frame's own episode.
arXiv 2603.21341 gives the idea and three numbers, but not phases, k, metric or layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.evaluate.statistics import Estimate, mean_interval

_Metric = Literal["cosine", "euclidean"]
CONSTANT = 1e-6  # a state dimension with a smaller standard deviation carries only rounding noise


@dataclass(frozen=True)
class LabelledFrames:
    """Hold N frames of the demonstrations of one task, in the order of the episodes."""

    task: str
    reference: int
    """Index of the episode that the others are aligned to."""
    owner: np.ndarray
    """int [N]: the index of a frame's episode."""
    step: np.ndarray
    """int [N]: the frame's step in its episode, from 0."""
    length: np.ndarray
    """int [N]: the number of steps of its episode."""
    label: np.ndarray
    """int [N], 0 <= label < phases."""
    state: np.ndarray
    """float64 [N, S], z-scored."""
    phases: int


def label_frames(
    task: str, states: Sequence[np.ndarray], phases: int, every: int = 1
) -> LabelledFrames:
    """Label every `every`-th frame of demonstrations with states [T_i, S]; all frames take part in
    the alignment.

    Raises RoboAlignError if there are fewer than two demonstrations, or the reference is shorter
    than the phases.
    """
    if len(states) < 2:
        raise RoboAlignError(
            f"{len(states)} demonstrations of {task}: a frame's neighbors come from the others",
            where="probe",
            fix="collect more demonstrations of it",
        )
    scored = standardize(states)
    reference = medoid(scored)
    if len(scored[reference]) < phases:
        raise RoboAlignError(
            f"the reference of {task} has {len(scored[reference])} steps, fewer than {phases} phases",
            where="probe",
            fix="pass --phases with a smaller number",
        )
    labels = [
        phase_of(match_frames(one, scored[reference]), len(scored[reference]), phases)
        for one in scored
    ]
    steps = [np.arange(0, len(one), every) for one in scored]
    counts = [len(kept) for kept in steps]
    return LabelledFrames(
        task=task,
        reference=reference,
        owner=np.repeat(np.arange(len(scored)), counts),
        step=np.concatenate(steps),
        length=np.repeat([len(one) for one in scored], counts),
        label=np.concatenate([one[kept] for one, kept in zip(labels, steps)]),
        state=np.concatenate([one[kept] for one, kept in zip(scored, steps)]),
        phases=phases,
    )


def standardize(states: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Z-score every state [T_i, S] over all frames of all demonstrations, so that meters and
    gripper openings count alike.

    A constant dimension becomes 0. Raises RoboAlignError on a value that is not finite.
    """
    together = np.concatenate(states).astype(np.float64)
    if not np.isfinite(together).all():
        raise RoboAlignError("a state is not finite", where="probe", fix="drop that demonstration")
    deviation = together.std(axis=0)
    scale = np.where(deviation > CONSTANT, deviation, np.inf)
    return [(one - together.mean(axis=0)) / scale for one in states]


def warp(a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray]:
    """Warp states a [n, S] onto b [m, S] in time; return the cost and the path int [P, 2] from (0,
    0) to the end.

    The cost is the sum of Euclidean distances along the path; a step advances in a, in b or in
    both. Among paths of equal cost, the step that advances in both is preferred, then the one that
    advances in a.
    """
    total = _accumulated(a, b)
    i, j = len(a), len(b)
    path = []
    while i > 0:
        path.append((i - 1, j - 1))
        before = (total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
        i, j = ((i - 1, j - 1), (i - 1, j), (i, j - 1))[int(np.argmin(before))]
    return float(total[-1, -1]), np.array(path[::-1])


def medoid(states: Sequence[np.ndarray]) -> int:
    """Return the index of the demonstration with the least warping cost to all others, each divided
    by the steps of both.

    The reference's pace defines the phases. The first demonstration might contain a detour; this
    one is the most typical. The first one wins a tie.
    """
    costs = np.zeros((len(states), len(states)))
    for i, a in enumerate(states):
        for j in range(i):
            costs[i, j] = costs[j, i] = _accumulated(a, states[j])[-1, -1] / (
                len(a) + len(states[j])
            )
    return int(np.argmin(costs.sum(axis=1)))


def match_frames(a: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Match each step of a [T, S] to a step of the reference, int [T]; if several match, take the
    middle one."""
    path = warp(a, reference)[1]
    first = np.full(len(a), len(reference))
    last = np.zeros(len(a), dtype=int)
    np.minimum.at(first, path[:, 0], path[:, 1])
    np.maximum.at(last, path[:, 0], path[:, 1])
    return (first + last) // 2


def phase_of(steps: np.ndarray, length: int, phases: int) -> np.ndarray:
    """Return which of `phases` equal stretches of a reference of `length` steps each of `steps`
    falls in."""
    return steps * phases // length


def knn(
    features: np.ndarray,
    labels: np.ndarray,
    owner: np.ndarray,
    *,
    k: int,
    metric: _Metric = "cosine",
) -> np.ndarray:
    """Predict labels int [N] of frames with features [N, W] from their k nearest frames of other
    episodes.

    For `cosine`, the mean of the other episodes' features is subtracted first: hidden states share
    a large common part that makes them all look alike. Frames tied with the k-th also vote, because
    their order is arbitrary. The most frequent label wins; in a tie, the label whose neighbor is
    nearest. Raises RoboAlignError if the other episodes have fewer than k frames.
    """
    predicted = np.zeros(len(labels), dtype=int)
    for episode in np.unique(owner):
        held, others = owner == episode, owner != episode
        if others.sum() < k:
            raise RoboAlignError(
                f"{others.sum()} frames of other episodes, fewer than k = {k} neighbors",
                where="probe",
                fix="pass --k with a smaller number, or more demonstrations",
            )
        predicted[held] = _vote(
            _distances(features[held], features[others], metric), labels[others], k
        )
    return predicted


def majority(labels: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Predict labels int [N] without any feature: the most frequent label of the other episodes,
    the smallest in a tie.

    Raises RoboAlignError if there is only one episode.
    """
    if len(np.unique(owner)) < 2:
        raise RoboAlignError(
            "a single episode has no others", where="probe", fix="give more demonstrations"
        )
    predicted = np.zeros(len(labels), dtype=int)
    for episode in np.unique(owner):
        predicted[owner == episode] = np.bincount(labels[owner != episode]).argmax()
    return predicted


def baselines(frames: LabelledFrames, pixels: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Return the labels int [N] that each baseline predicts, by name; pixels [N, P].

    `time` is step / length: if the probe were only a clock, hidden states would not beat it. A
    frame does not show how long its episode will be, so `step` is the clock that a policy could
    have. `state` uses what the labels are made from, one frame at a time: roughly what a perfect
    reading of the robot's state would give.
    """

    def by(features: np.ndarray, metric: _Metric) -> np.ndarray:
        return knn(features, frames.label, frames.owner, k=k, metric=metric)

    return {
        "majority": majority(frames.label, frames.owner),
        "step": by(frames.step[:, None].astype(np.float64), "euclidean"),
        "time": by((frames.step / frames.length)[:, None], "euclidean"),
        "pixels": by(pixels, "cosine"),
        "state": by(frames.state, "euclidean"),
    }


def accuracy(correct: np.ndarray, episodes: Sequence[str]) -> Estimate:
    """Return the mean of `correct` [N] with its 95% interval, resampling episodes (named for each
    frame), not frames.

    Frames of one episode are alike, so an interval over frames would be too narrow.
    """
    return mean_interval(correct, clusters=episodes)


def _accumulated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return [n + 1, m + 1]: the least cost of warping the first i steps of a onto the first j of
    b."""
    n, m = len(a), len(b)
    if not n or not m:
        raise RoboAlignError(
            "an episode without steps cannot be aligned", where="probe", fix="drop it"
        )
    cost = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=-1))
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0.0
    # One antidiagonal at a time: its cells depend only on the two before it.
    for diagonal in range(2, n + m + 1):
        i = np.arange(max(1, diagonal - m), min(n, diagonal - 1) + 1)
        j = diagonal - i
        before = np.minimum(np.minimum(total[i - 1, j - 1], total[i - 1, j]), total[i, j - 1])
        total[i, j] = cost[i - 1, j - 1] + before
    return total


def _distances(a: np.ndarray, b: np.ndarray, metric: _Metric) -> np.ndarray:
    """Return distances [n, m] between the rows of a [n, W] and b [m, W]; cosine first subtracts the
    mean of b from both."""
    if (
        metric == "euclidean"
    ):  # squared: this keeps the order, and is exact for small integers, which keeps ties
        return ((a[:, None] - b[None]) ** 2).sum(axis=-1)
    centre = b.mean(axis=0)
    a, b = (
        one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-12)
        for one in (a - centre, b - centre)
    )
    return 1 - a @ b.T


def _vote(distances: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Return the label int [n] that most of the k nearest have, from distances [n, m] to frames
    with these labels [m]."""
    order = np.argsort(distances, axis=1, kind="stable")
    farthest = np.take_along_axis(distances, order[:, k - 1 : k], axis=1)
    counts = (distances <= farthest).astype(int) @ np.eye(labels.max() + 1, dtype=int)[labels]
    ranked = labels[order]
    wins = np.take_along_axis(counts, ranked, axis=1) == counts.max(axis=1, keepdims=True)
    return np.take_along_axis(ranked, wins.argmax(axis=1)[:, None], axis=1)[:, 0]
