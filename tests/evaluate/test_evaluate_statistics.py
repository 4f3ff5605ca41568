"""Golden values from scipy and by hand, and properties, of the intervals and paired tests."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from roboalign.evaluate.statistics import (
    holm,
    mcnemar_exact,
    mean_interval,
    paired_difference,
    paired_score_interval,
    proportion,
    wilson,
)

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (31, 50), (7, 24), (434, 500)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_equals_scipy(successes, n, confidence):
    expected = stats.binomtest(successes, n).proportion_ci(
        confidence_level=confidence, method="wilson"
    )
    assert wilson(successes, n, confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_wilson_by_hand():
    # 8 of 10: centre (0.8 + z2/20) / (1 + z2/10), z2 = 3.8415; Newcombe (1998) prints 0.4902 to 0.9433.
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)


@given(counts)
def test_wilson_contains_the_rate_and_mirrors(count):
    successes, n = count
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = wilson(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


@given(counts)
def test_wilson_narrows_with_more_trials(count):
    successes, n = count
    low, high = wilson(successes, n)
    low4, high4 = wilson(4 * successes, 4 * n)
    assert high4 - low4 < high - low


def test_wilson_without_trials_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="cannot be"):
        wilson(successes, n)


def test_proportion_refuses_fractions_and_nan():
    with pytest.raises(ValueError, match="0 or 1"):
        proportion([0.0, 0.5])
    with pytest.raises(ValueError, match="not finite"):
        proportion([1.0, math.nan])
    assert proportion([]).value is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_equals_a_binomial_tail(pairs):
    a, b = zip(*pairs)
    result = mcnemar_exact(a, b)
    only_a = sum(x and not y for x, y in pairs)
    only_b = sum(y and not x for x, y in pairs)
    assert (result.only_a, result.only_b, result.n) == (only_a, only_b, len(pairs))
    tail = 2 * stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    assert result.p == pytest.approx(min(1.0, tail))
    assert mcnemar_exact(b, a).p == pytest.approx(result.p)


def test_mcnemar_by_hand():
    # 1 against 5 discordant pairs: 2 * (C(6,0) + C(6,1)) / 2^6 = 14/64.
    a = [True] * 4 + [True] + [False] * 5
    b = [True] * 4 + [False] + [True] * 5
    assert mcnemar_exact(a, b).p == pytest.approx(14 / 64)


def test_bootstrap_matches_scipy():
    values = np.random.default_rng(3).normal(0.3, 0.2, 200)
    ours = mean_interval(values, seed=1)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=0
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert ours.value == pytest.approx(values.mean())
    assert ours.n == 200


def test_bootstrap_of_clusters_is_wider_where_samples_of_a_cluster_are_alike():
    values = np.repeat([0.0, 1.0, 0.0, 1.0, 1.0], 40)
    clusters = np.repeat(list("abcde"), 40).tolist()
    samples, by_task = mean_interval(values), mean_interval(values, clusters=clusters)
    assert samples.high - samples.low < 0.2
    # Five equal clusters: the resampled mean takes k/5 with k ~ Binomial(5, 0.6): 2.5% and 97.5% lie at 1/5 and 1.
    assert (by_task.low, by_task.high) == pytest.approx((0.2, 1.0))


def test_bootstrap_clusters_of_unequal_size_keep_their_weight():
    values, clusters = [1.0] * 9 + [0.0], ["a"] * 9 + ["b"]
    assert mean_interval(values, clusters=clusters).value == pytest.approx(0.9)


def test_one_unit_or_no_spread_gives_no_interval():
    assert mean_interval([0.4]).low is None
    assert mean_interval([0.0] * 50).high is None
    assert mean_interval([0.4, 0.6], clusters=["a", "a"]).high is None
    assert mean_interval([]).n == 0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40), st.integers(0, 5))
def test_bootstrap_is_repeatable_and_bounded(values, seed):
    first = mean_interval(values, seed=seed, resamples=300)
    assert first == mean_interval(values, seed=seed, resamples=300)
    if first.low is None:
        assert max(values) == min(values)
    else:
        assert min(values) - 1e-9 <= first.low <= first.high <= max(values) + 1e-9


def test_paired_difference_sees_what_unpaired_intervals_hide():
    rng = np.random.default_rng(0)
    before = rng.uniform(0, 1, 300)
    after = before + 0.02 + rng.normal(0, 0.01, 300)
    difference = paired_difference(before, after)
    assert 0.015 < difference.low < difference.value < difference.high < 0.025
    assert mean_interval(before).high > mean_interval(after).low  # the unpaired intervals overlap


def test_paired_difference_sign_is_after_minus_before():
    assert paired_difference([0.0, 0.0], [1.0, 1.0]).value == 1.0
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1.0], [1.0, 2.0])


def test_coverage_of_the_intervals():
    # 95% intervals should hold the truth in about 95% of repeats; 300 repeats have a standard error of 1.3%.
    rng = np.random.default_rng(5)
    inside = []
    for _ in range(300):
        interval = mean_interval(rng.exponential(1.0, 100), resamples=400)
        inside.append(interval.low <= 1.0 <= interval.high)
    assert 0.89 < np.mean(inside) < 0.99


def test_holm_by_hand():
    # Sorted .01, .03, .04 -> 3*.01, 2*.03, max(.06, .04); put back in the order given.
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def score_by_search(only_a, only_b, n, value):
    """The score statistic with the restricted likelihood maximized by a search instead of a formula."""

    def loss(share):  # share: probability that only a succeeds; that of only b is share + value
        cells = np.array([share, share + value, 1 - 2 * share - value])
        counts = np.array([only_a, only_b, n - only_a - only_b])
        return -stats.multinomial.logpmf(counts, n, np.clip(cells, 1e-15, 1))

    low, high = max(0.0, -value), (1 - value) / 2
    found = optimize.minimize_scalar(
        loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    )
    return (only_b - only_a - n * value) / math.sqrt(n * (2 * found.x + value - value**2))


@pytest.mark.parametrize("counts", [(5, 12, 24), (0, 7, 24), (20, 3, 40), (1, 30, 96), (2, 0, 10)])
def test_score_interval_ends_where_the_score_test_rejects(counts):
    only_a, only_b, n = counts
    low, high = paired_score_interval(only_a, only_b, n)
    assert low < (only_b - only_a) / n < high
    assert score_by_search(only_a, only_b, n, low) == pytest.approx(1.959964, abs=2e-3)
    assert score_by_search(only_a, only_b, n, high) == pytest.approx(-1.959964, abs=2e-3)


def test_score_interval_by_hand_and_at_the_edges():
    # Without a discordant pair the score is sqrt(n d / (1 - d)), so d = z^2 / (n + z^2).
    z2 = 1.959963985**2
    assert paired_score_interval(0, 0, 96) == pytest.approx((-z2 / (96 + z2), z2 / (96 + z2)))
    assert paired_score_interval(0, 0, 0) == (-1.0, 1.0)
    for n in range(1, 9):
        for a in range(n + 1):
            for b in range(n + 1 - a):
                low, high = paired_score_interval(a, b, n)
                assert -1 <= low <= (b - a) / n <= high <= 1
                assert paired_score_interval(b, a, n) == pytest.approx((-high, -low), abs=1e-9)
    with pytest.raises(ValueError, match="cannot be"):
        paired_score_interval(3, 3, 5)


def test_coverage_of_the_score_interval():
    """Of every outcome of 20 pairs, weighted by its probability: about 95%, never far below."""
    n = 20
    outcomes = [(a, b) for a in range(n + 1) for b in range(n + 1 - a)]
    ends = np.array([paired_score_interval(a, b, n) for a, b in outcomes])
    for p_a, p_b in ((0.1, 0.4), (0.3, 0.3), (0.05, 0.1), (0.02, 0.6)):
        chance = np.array(
            [
                stats.multinomial.pmf([a, b, n - a - b], n, [p_a, p_b, 1 - p_a - p_b])
                for a, b in outcomes
            ]
        )
        inside = (ends[:, 0] <= p_b - p_a) & (p_b - p_a <= ends[:, 1])
        assert 0.93 < chance @ inside < 0.985
