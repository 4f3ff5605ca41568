"""Read actions linearly from a frame's features: how much of the next movement they hold.

A ridge regression predicts the normalized action chunk of each frame. It is fitted on other
episodes, and its penalty is chosen on episodes that are neither predicted nor fitted, so a wide
layer gains nothing from its width.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from roboalign.core.errors import RoboAlignError

FOLDS = 5
PENALTIES = tuple(10.0**power for power in range(-4, 4))
"""Of z-scored features, per frame."""


def readout_errors(features: np.ndarray, chunks: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Return the L1 error float64 [N] of each frame's chunk, read from features [N, W] by a
    regression that has not seen its episode.

    `chunks` float [N, H, A] are normalized, and so is the error; predictions are clipped to
    [-1, 1]. `owner` int [N] numbers the episodes. Raises RoboAlignError if there are fewer than
    three.
    """
    x = features.reshape(len(features), -1).astype(np.float64)
    y = chunks.reshape(len(chunks), -1).astype(np.float64)
    predicted = np.zeros_like(y)
    for held, chosen, fitted in _folds(owner):
        path = _ridge(x[fitted], y[fitted], x[chosen])
        errors = [np.abs(_clipped(guess) - y[chosen]).mean() for guess in path]
        rest = fitted | chosen
        best = PENALTIES[int(np.argmin(errors))]
        [guess] = _ridge(x[rest], y[rest], x[held], (best,))
        predicted[held] = _clipped(guess)
    return np.asarray(np.abs(predicted - y).mean(axis=1))


def mean_errors(chunks: np.ndarray, owner: np.ndarray, group: Sequence[str]) -> np.ndarray:
    """Return the L1 error float64 [N] of a guess without any feature: the mean chunk of the frames
    of the same group (such as the task) in the episodes that `readout_errors` fits on."""
    y = chunks.reshape(len(chunks), -1).astype(np.float64)
    predicted, names = np.zeros_like(y), np.asarray(group)
    for held, chosen, fitted in _folds(owner):
        rest = fitted | chosen
        for name in np.unique(names[held]):
            same = names == name
            predicted[held & same] = y[rest & same if (rest & same).any() else rest].mean(axis=0)
    return np.asarray(np.abs(predicted - y).mean(axis=1))


def _folds(owner: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield bool [N] masks: the episodes to predict, those that choose the penalty, the others."""
    episodes = np.unique(owner)
    count = min(FOLDS, len(episodes))
    if count < 3:
        raise RoboAlignError(
            f"{len(episodes)} episodes: one is predicted, one chooses the penalty, one is fitted",
            where="probe",
            fix="give three demonstrations or more",
        )
    fold = np.searchsorted(episodes, owner) % count
    for number in range(count):
        held, chosen = fold == number, fold == (number + 1) % count
        yield held, chosen, ~held & ~chosen


def _ridge(
    x: np.ndarray, y: np.ndarray, asked: np.ndarray, penalties: Sequence[float] = PENALTIES
) -> Iterator[np.ndarray]:
    """Yield the prediction [M, D] at `asked` [M, W] for each penalty, fitted on x [N, W], y [N, D].

    Features are z-scored by x; constant ones become 0.
    """
    center, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 1e-8, spread, np.inf)
    left, size, right = np.linalg.svd((x - center) / scale, full_matrices=False)
    middle = y.mean(axis=0)
    projected, seen = left.T @ (y - middle), (asked - center) / scale @ right.T
    for penalty in penalties:
        yield middle + seen @ ((size / (size**2 + penalty * len(x)))[:, None] * projected)


def _clipped(chunks: np.ndarray) -> np.ndarray:
    return np.clip(chunks, -1.0, 1.0)
