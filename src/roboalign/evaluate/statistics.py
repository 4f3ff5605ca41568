"""Compute intervals and paired tests: how certain a measured number is.

Success counts get Wilson intervals and continuous metrics get bootstrap intervals over samples. Two
models measured on the same samples or the same (task, seed) episodes are compared in pairs.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval. `value` is None if n = 0; `low` and `high` are None if nothing
    bounds them."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class PairedTest:
    """Result of McNemar's exact test. `only_a`, `only_b`: pairs in which only that side succeeded;
    `p` is two-sided."""

    only_a: int
    only_b: int
    n: int
    p: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate; (0, 1) if n = 0, since nothing is known
    without a trial.

    Raises ValueError if the counts are impossible.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials cannot be")
    if not n:
        return 0.0, 1.0
    z = float(ndtri((1 + confidence) / 2))
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n successes the exact bound is 0 or 1; set it exactly, so that rounding does not move
    # it.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def proportion(outcomes: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Estimate:
    """Return the share of true outcomes with its Wilson interval. Raises ValueError if a value is
    neither 0 nor 1."""
    values = _finite(outcomes)
    if not np.isin(values, (0.0, 1.0)).all():
        raise ValueError("a proportion needs outcomes that are 0 or 1")
    if not len(values):
        return Estimate(None, None, None, 0)
    low, high = wilson(int(values.sum()), len(values), confidence)
    return Estimate(float(values.mean()), low, high, len(values))


def mean_interval(
    values: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return the mean of `values` [N] with a percentile bootstrap interval; the same seed gives the
    same interval.

    With `clusters` [N], whole clusters (such as tasks) are resampled instead of samples. Samples of
    one cluster are alike, and an interval over samples alone would be too narrow for a new cluster.
    A single unit, or units that are all equal, give no interval, because their bootstrap would
    claim certainty. Raises ValueError on NaN or infinity.
    """
    data = _finite(values)
    if not len(data):
        return Estimate(None, None, None, 0)
    if clusters is None:
        sums, counts = data, np.ones(len(data))
    else:
        sums, counts = _cluster_sums(data, clusters)
    mean = float(data.mean())
    if np.ptp(sums / counts) == 0:
        return Estimate(mean, None, None, len(data))
    means = _bootstrap_means(sums, counts, resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Estimate(mean, float(low), float(high), len(data))


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return the mean of `b - a` over pairs (positive if b is larger) with its bootstrap interval.

    a[i] and b[i] are the same sample, or the same (task, seed), under two models. See
    `mean_interval`. Raises ValueError if the lengths differ.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equal lengths, got {len(a)} and {len(b)}")
    difference = _finite(b) - _finite(a)
    return mean_interval(
        difference, clusters=clusters, confidence=confidence, resamples=resamples, seed=seed
    )


def mcnemar_exact(a: Sequence[bool] | np.ndarray, b: Sequence[bool] | np.ndarray) -> PairedTest:
    """Run the exact two-sided McNemar test of paired successes: a binomial test of the discordant
    pairs (p = 1 if none).

    Raises ValueError if the lengths differ.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equal lengths, got {len(a)} and {len(b)}")
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_a + only_b
    from scipy.stats import binomtest  # a third of a second, in every process of a run

    p = float(binomtest(only_b, discordant, 0.5).pvalue) if discordant else 1.0
    return PairedTest(only_a, only_b, len(first), p)


def paired_score_interval(
    only_a: int, only_b: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return Tango's score interval of the difference b - a of two paired success rates.

    `only_a`, `only_b`: of `n` pairs, those in which only that side succeeded. Unlike a bootstrap it
    holds for few pairs and for counts of zero. (-1, 1) if n = 0. Tango, "Equivalence test and
    confidence interval for the difference in proportions for the paired-sample design", Statistics
    in Medicine 17, 1998. Raises ValueError if the counts are impossible.
    """
    if min(only_a, only_b) < 0 or only_a + only_b > n:
        raise ValueError(f"{only_a} and {only_b} of {n} pairs cannot be")
    if not n:
        return -1.0, 1.0
    from scipy.optimize import brentq

    z = float(ndtri((1 + confidence) / 2))
    difference = (only_b - only_a) / n

    def score(value: float) -> float:
        """Return the score statistic of the hypothesis that the difference is `value`."""
        b = (2 * n - only_b + only_a) * value - only_a - only_b
        # The most likely share of pairs in which only a succeeds, under the hypothesis.
        share = (math.sqrt(max(0.0, b * b + 8 * n * only_a * value * (1 - value))) - b) / (4 * n)
        variance = n * (2 * share + value * (1 - value))
        off = only_b - only_a - n * value
        return off / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, off)

    edge = 1e-10
    low, high = -1.0, 1.0
    if only_a < n:
        low = float(brentq(lambda value: min(score(value), 1e6) - z, -1 + edge, difference - edge))
    if only_b < n:
        high = float(brentq(lambda value: max(score(value), -1e6) + z, difference + edge, 1 - edge))
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's step-down correction for having tested them all, in the
    order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1:
        raise ValueError(f"expected one number a sample, got shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError(f"{int((~np.isfinite(data)).sum())} of {len(data)} values are not finite")
    return data


def _cluster_sums(data: np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and count of each cluster's samples."""
    if len(clusters) != len(data):
        raise ValueError(f"{len(clusters)} cluster labels for {len(data)} values")
    index = {label: i for i, label in enumerate(dict.fromkeys(clusters))}
    labels = np.array([index[label] for label in clusters])
    return np.bincount(labels, weights=data), np.bincount(labels).astype(np.float64)


def _bootstrap_means(
    sums: np.ndarray, counts: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the mean of each resample of (sum, count) units, [resamples], in blocks of bounded
    memory."""
    block = max(1, 2_000_000 // len(sums))
    means = []
    for start in range(0, resamples, block):
        drawn = rng.integers(0, len(sums), size=(min(block, resamples - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)
