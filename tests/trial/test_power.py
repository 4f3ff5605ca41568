"""The power calculation against scipy's own test, enumerated, and against a simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial

from roboalign.core.errors import RoboAlignError
from roboalign.evaluate.statistics import mcnemar_exact
from roboalign.trial.power import (
    detectable,
    independent_discordance,
    mcnemar_power,
    trials_needed,
)
from roboalign.trial.study import TrialPower


@pytest.mark.parametrize(
    ("pairs", "difference", "discordant", "alpha"),
    [(1, 0.5, 0.5, 0.05), (6, 0.9, 0.9, 0.05), (15, 0.4, 0.5, 0.05), (24, 0.3, 0.6, 0.025)],
)
def test_power_is_that_of_every_outcome_tested_by_scipy(pairs, difference, discordant, alpha):
    """Sum over all (only before, only after) counts; scipy.stats.binomtest decides each."""
    before, after = (discordant - difference) / 2, (discordant + difference) / 2
    total = 0.0
    for a, b in itertools.product(range(pairs + 1), repeat=2):
        if a + b > pairs or b <= a or binomtest(b, a + b, 0.5).pvalue > alpha:
            continue
        total += multinomial.pmf([a, b, pairs - a - b], pairs, [before, after, 1 - before - after])
    assert mcnemar_power(pairs, difference, discordant, alpha) == pytest.approx(total, abs=1e-12)


def test_power_is_the_share_of_simulated_studies_that_our_own_test_decides():
    rng = np.random.default_rng(0)
    pairs, rates, found = 96, (0.4, 0.6), 0
    for _ in range(600):
        before, after = (rng.random(pairs) < rate for rate in rates)
        test = mcnemar_exact(before, after)
        found += test.p <= 0.05 and test.only_b > test.only_a
    expected = mcnemar_power(pairs, 0.2, independent_discordance(0.2), 0.05)
    error = np.sqrt(expected * (1 - expected) / 600)
    assert abs(found / 600 - expected) < 4 * error
    assert 0.7 < expected < 0.85  # not a case in which any formula would do


def test_independent_arms_about_one_half_disagree_by_the_products_of_their_rates():
    assert independent_discordance(0.3) == pytest.approx(0.35 * 0.35 + 0.65 * 0.65)


@given(
    difference=st.floats(0.2, 0.9),
    tasks=st.integers(1, 5),
    power=st.floats(0.5, 0.95),
    comparisons=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_the_number_is_enough_and_no_smaller_one_is(difference, tasks, power, comparisons):
    sized = trials_needed(TrialPower(difference=difference, power=power), tasks, comparisons)
    assert sized.alpha == pytest.approx(0.05 / comparisons)
    assert sized.pairs == sized.trials * tasks and sized.power >= power

    def reached(trials):
        return mcnemar_power(trials * tasks, difference, sized.discordant, sized.alpha)

    assert reached(sized.trials) == sized.power
    assert all(reached(trials) < power for trials in range(1, sized.trials))


def test_the_detectable_difference_is_detected_and_a_smaller_one_is_not():
    found = detectable(96, 0.05, 0.8)
    assert mcnemar_power(96, found, independent_discordance(found), 0.05) >= 0.8
    assert mcnemar_power(96, found - 0.001, independent_discordance(found - 0.001), 0.05) < 0.8
    assert detectable(5, 0.05, 0.8) is None  # 2 / 2**5 > 0.05: five pairs reject nothing


def test_a_difference_that_no_robot_study_can_show_is_refused():
    with pytest.raises(RoboAlignError, match=r"5,000 pairs of trials are not enough .* 0\.01"):
        trials_needed(TrialPower(difference=0.01, discordant=0.9), tasks=40)
