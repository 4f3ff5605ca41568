"""Measure samples of a data set: one dimension, one camera, the action tokens."""

import hashlib
from dataclasses import dataclass

import numpy as np

from roboalign.actions.fast import DecodeFailure, FastTokenizer
from roboalign.actions.normalize import ActionStats, coincide
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode

BINS = 40
FRAMES_PER_CAMERA = 3  # frames examined per episode and camera: the first, the middle, the last
DARK = 10  # gray levels; JPEG noise stays below this
NEGLIGIBLE = 1e-6  # std of a dimension that changes only by rounding
SCALE, VOCAB_SIZE = 10.0, 1024  # FAST's own choice


@dataclass(frozen=True)
class Histogram:
    """Counts of the bins between `edges` (one more than counts)."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Dimension:
    """One action or state dimension, raw units."""

    name: str
    minimum: float
    q01: float
    median: float
    q99: float
    maximum: float
    mean: float
    std: float
    at_extremes: float
    """Share of the rows at the minimum or the maximum."""
    near_constant: bool
    """q99 - q01 (maximum - minimum if the quantiles coincide) is below a thousandth of the widest
    dimension's, or std is below 1e-6."""
    discrete: bool
    """2 to 10 values, each in at least 1% of the rows and in 10 rows, make up 90% of the rows, for
    example a gripper command."""
    outliers: float
    """Share of the rows beyond q01 - 3 (q99 - q01) .. q99 + 3 (q99 - q01)."""
    worst: list[str]
    """Up to 3 episodes with the most extreme outliers, worst first; some may be unsampled."""
    histogram: Histogram | None
    """At most from q01 - (q99 - q01) to q99 + (q99 - q01); the end bins include what is beyond."""


@dataclass(frozen=True)
class Column:
    """What is known of one dimension before it is judged."""

    name: str
    sample: np.ndarray
    """[N]"""
    minimum: float
    maximum: float
    mean: float
    std: float
    extremes: list[tuple[float, str]]
    """The lowest and the highest values with their episodes."""


def dimensions(columns: list[Column], *, histograms: bool) -> list[Dimension]:
    """Judge the dimensions of one vector, each also in comparison with the widest of them."""
    quantiles = [np.quantile(column.sample, [0.01, 0.5, 0.99]) for column in columns]
    widest = max((q[2] - q[0] for q in quantiles), default=0.0)
    return [
        _dimension(c, q.tolist(), widest, histograms)
        for c, q in zip(columns, quantiles, strict=True)
    ]


def _dimension(column: Column, quantiles: list[float], widest: float, histogram: bool) -> Dimension:
    q01, median, q99 = quantiles
    spread = q99 - q01
    low, high = q01 - 3 * spread, q99 + 3 * spread
    judged = column.std >= NEGLIGIBLE
    reach = column.maximum - column.minimum if coincide(q01, q99) else spread
    beyond = (column.sample < low) | (column.sample > high)
    return Dimension(
        name=column.name,
        minimum=column.minimum,
        q01=q01,
        median=median,
        q99=q99,
        maximum=column.maximum,
        mean=column.mean,
        std=column.std,
        discrete=_discrete(column.sample),
        at_extremes=float(np.isin(column.sample, (column.minimum, column.maximum)).mean()),
        near_constant=bool(reach < widest / 1000 or column.std < NEGLIGIBLE),
        outliers=float(beyond.mean()) if judged else 0.0,
        worst=_worst(column.extremes, low, high) if judged else [],
        histogram=histogram_of(column.sample, q01 - spread, q99 + spread) if histogram else None,
    )


def _discrete(sample: np.ndarray) -> bool:
    times = np.unique(sample, return_counts=True)[1]
    often = times[times >= max(10, 0.01 * len(sample))]
    return 2 <= len(often) <= 10 and bool(often.sum() >= 0.9 * len(sample))


def _worst(extremes: list[tuple[float, str]], low: float, high: float) -> list[str]:
    """Return the owners of the values farthest beyond the bounds, each once."""
    ranked = sorted(
        ((max(value - high, low - value), owner) for value, owner in extremes),
        key=lambda pair: -pair[0],
    )
    return list(dict.fromkeys(owner for excess, owner in ranked if excess > 0))[:3]


def histogram_of(values: np.ndarray, low: float, high: float) -> Histogram:
    """Return the histogram of `values` [N], N > 0.

    It is between `low` and `high`, or their own bounds if those are narrower.
    """
    low, high = max(low, float(values.min())), min(high, float(values.max()))
    if high - low <= NEGLIGIBLE * max(1.0, abs(low)):
        return Histogram([low - 0.5, low + 0.5], [len(values)])
    counts, edges = np.histogram(np.clip(values, low, high), bins=BINS, range=(low, high))
    return Histogram(edges.tolist(), counts.tolist())


@dataclass(frozen=True)
class CameraSurvey:
    """What the examined frames of one camera show."""

    name: str
    episodes: int
    """Episodes that have this camera."""
    looked_at: int
    """Episodes with decoded frames: the first, the middle and the last."""
    sizes: list[str]
    """`width x height` of the decoded frames."""
    frames: int
    black: int
    flat: int
    """Frames of a single color other than black."""
    frozen: int
    """Episodes whose frames are all equal, except black and flat ones."""
    unreadable: int
    """Frames that do not decode, and episodes with different numbers of frames and actions."""


class CameraTally:
    """Counts over the frames of one camera."""

    def __init__(self) -> None:
        self.episodes = self.looked_at = self.frames = self.black = self.flat = self.frozen = (
            self.unreadable
        ) = 0
        self.sizes: set[str] = set()

    def look(self, episode: Episode, name: str) -> tuple[set[bytes], list[Fault]]:
        """Count the frames of one more episode.

        Returns the hashes of those that show something, and what is broken.
        """
        self.looked_at += 1
        stored = len(episode.images[name])
        if stored != len(episode):
            self.unreadable += 1
            problem = f"camera {name} has {stored} frames for {len(episode)} actions"
            return set(), [
                Fault(f"episode {episode.episode_id}", problem, "drop or repair this episode")
            ]
        hashes: list[bytes] = []
        faults = []
        steps = np.unique(np.linspace(0, stored - 1, FRAMES_PER_CAMERA).astype(int)).tolist()
        for t in steps:
            try:
                hashes += self._count(episode.frame(name, t))
            except RoboAlignError as error:
                self.unreadable += 1
                faults.append(Fault(error.where, error.problem, error.fix))
        self.frozen += len(hashes) == len(steps) > 1 == len(set(hashes))
        return set(hashes), faults

    def _count(self, frame: np.ndarray) -> list[bytes]:
        """Return the hash of the frame, or nothing if it is black or flat."""
        self.frames += 1
        self.sizes.add(f"{frame.shape[1]} x {frame.shape[0]}")
        black = int(frame.max()) <= DARK
        flat = not black and int(np.ptp(frame, axis=(0, 1)).max()) <= DARK
        self.black += black
        self.flat += flat
        if black or flat:
            return []
        return [
            hashlib.blake2b(repr(frame.shape).encode() + frame.tobytes(), digest_size=16).digest()
        ]

    def survey(self, name: str) -> CameraSurvey:
        """Return the counts."""
        return CameraSurvey(
            name=name,
            episodes=self.episodes,
            looked_at=self.looked_at,
            sizes=sorted(self.sizes),
            frames=self.frames,
            black=self.black,
            flat=self.flat,
            frozen=self.frozen,
            unreadable=self.unreadable,
        )


@dataclass(frozen=True)
class TokenSurvey:
    """FAST on held-out chunks.

    No episode, and no copy of one, is in both the fitted and the measured half.
    """

    fitted_here: bool
    """False: the tokenizer was given, and may have seen these chunks."""
    fitted_on: int
    """Chunks of the half used to fit the statistics and, if none was given, the tokenizer."""
    chunks: int
    """Chunks of the other half, on which everything below is measured."""
    horizon: int
    scale: float
    vocab_size: int
    length_mean: float
    length_q05: float
    length_q95: float
    lengths: Histogram
    l1: float
    """Mean absolute error of decoded chunks in normalized units: [-1, 1] is q01 to q99. 0 if none
    decodes."""
    l1_dims: list[float]
    clipped: int
    """Coefficients outside the tokenizer's range."""
    undecodable: int
    """Chunks that do not decode; l1 excludes them."""


def measure_tokens(
    fit: np.ndarray, held: np.ndarray, fast: FastTokenizer | None
) -> tuple[TokenSurvey | None, str]:
    """Fit on raw `fit` [N, H, D] unless `fast` is given, and measure on `held`.

    Returns None and the reason if it cannot be measured.
    """
    if not len(fit) or not len(held):
        return None, "fewer than two different episodes: none to hold out"
    stats = ActionStats.fit(fit[:, 0])
    tokenizer = fast
    try:
        if tokenizer is None:
            tokenizer = FastTokenizer.fit(stats.normalize(fit), scale=SCALE, vocab_size=VOCAB_SIZE)
    except RoboAlignError as error:
        return None, error.problem
    chunks, clipped_before = stats.normalize(held), tokenizer.clipped
    ids = tokenizer.encode(chunks)
    decoded = tokenizer.decode_batch(ids)
    errors = [
        np.abs(again - chunk)
        for again, chunk in zip(decoded, chunks, strict=True)
        if not isinstance(again, DecodeFailure)
    ]
    per_dim = np.mean(errors, axis=(0, 1)) if errors else np.zeros(chunks.shape[2])
    lengths = np.array([len(one) for one in ids])
    q05, q95 = np.quantile(lengths, [0.05, 0.95])
    ends = (
        int(lengths.min()) - 0.5,
        int(lengths.max()) + 0.5,
    )  # bins centered on whole numbers, if these are few
    counts, edges = np.histogram(lengths, bins=min(BINS, int(ends[1] - ends[0])), range=ends)
    found = TokenSurvey(
        fitted_here=fast is None,
        fitted_on=len(fit),
        chunks=len(held),
        horizon=chunks.shape[1],
        scale=float(tokenizer.scale),
        vocab_size=tokenizer.vocab_size,
        length_mean=float(lengths.mean()),
        length_q05=float(q05),
        length_q95=float(q95),
        lengths=Histogram(edges.tolist(), counts.tolist()),
        l1=float(per_dim.mean()),
        l1_dims=per_dim.tolist(),
        clipped=tokenizer.clipped - clipped_before,
        undecodable=len(chunks) - len(errors),
    )
    return found, ""
