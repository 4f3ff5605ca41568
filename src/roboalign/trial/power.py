"""Compute the power of McNemar's exact test, and how many pairs of trials a study needs."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from roboalign.core.errors import RoboAlignError
from roboalign.trial.study import TrialPower

MOST_PAIRS = 5000
"""Of trials on a robot, that a study can do."""


@dataclass(frozen=True)
class Sized:
    """Result of a power calculation."""

    trials: int
    """Of each task and arm."""
    pairs: int
    """Of all tasks together."""
    power: float
    """Of the exact test with so many pairs; at least what was asked for."""
    alpha: float
    """Of one comparison, two-sided."""
    discordant: float
    """Share of pairs in which exactly one arm succeeds."""


def independent_discordance(difference: float) -> float:
    """Return the share of discordant pairs of two independent arms with success rates 0.5 -
    difference / 2 and 0.5 + difference / 2.

    Among rates that differ by `difference`, independence makes this the largest share, so the
    number of trials is on the safe side: pairs on the same initial state usually agree more.
    """
    return (1 + difference**2) / 2


def mcnemar_power(pairs: int, difference: float, discordant: float, alpha: float) -> float:
    """Return the probability that the exact two-sided McNemar test finds the better arm better.

    Exactly one arm succeeds in a share `discordant` of the pairs, the better one `difference` more
    often than the other. The number of discordant pairs k is binomial. Given k, the test rejects
    if the better arm won at least c of them, the smallest c with 2 P(X >= c | k, 1/2) <= alpha.
    """
    k = np.arange(pairs + 1)
    below_critical = binom.isf(alpha / 2, k, 0.5)
    better = min(1.0, (discordant + difference) / (2 * discordant))
    rejected = binom.sf(below_critical, k, better)
    return float(binom.pmf(k, pairs, min(1.0, discordant)) @ rejected)


def trials_needed(wanted: TrialPower, tasks: int, comparisons: int = 1) -> Sized:
    """Return the smallest number of trials per task and arm whose pairs, all tasks together, have
    the power that is asked for.

    `alpha` is divided by the number of comparisons (Bonferroni; Holm's correction, which `roboalign
    compare` applies, never needs more). Raises RoboAlignError if that takes more than MOST_PAIRS.
    """
    alpha = wanted.alpha / comparisons
    discordant = wanted.discordant or independent_discordance(wanted.difference)

    def power(trials: int) -> float:
        return mcnemar_power(trials * tasks, wanted.difference, discordant, alpha)

    low, high = 0, max(1, MOST_PAIRS // tasks)
    if power(high) < wanted.power:
        raise RoboAlignError(
            f"{MOST_PAIRS:,} pairs of trials are not enough for a difference of {wanted.difference:g}",
            where="power.difference",
            fix="ask for a larger difference or less power",
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= wanted.power else (middle, high)
    # The power of an exact test dips a little now and then: a smaller number may do as well.
    for trials in range(max(1, int(0.95 * high) - 5), high + 1):
        if power(trials) >= wanted.power:
            break
    return Sized(trials, trials * tasks, power(trials), alpha, discordant)


def detectable(pairs: int, alpha: float, power: float) -> float | None:
    """Return the smallest difference that so many pairs detect with this power, to 0.001; None if
    not even a difference of one is.

    The arms are independent and symmetric about one half.
    """
    differences = np.arange(1, 1001) / 1000

    def enough(difference: float) -> bool:
        discordant = independent_discordance(difference)
        return mcnemar_power(pairs, difference, discordant, alpha) >= power

    if not enough(1.0):
        return None
    low, high = 0, len(differences) - 1
    while low < high:
        middle = (low + high) // 2
        if enough(float(differences[middle])):
            high = middle
        else:
            low = middle + 1
    return float(differences[low])
