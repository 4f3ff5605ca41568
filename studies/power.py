"""How many training seeds the plan of docs/evidence/plan.md needs, from the spread that pilots have shown.

    python studies/power.py docs/results/metaworld

The unit is the training seed: each gives one difference in success between two arms on the same episodes. Its spread
is taken from the episode records of a run with several seeds, and, as there are few, by its upper 80% confidence limit
(Browne 1995). The number of seeds is the smallest at which a two-sided t-test over seeds has the power that is asked
for. Nothing is trained.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import chi2, nct, t

from roboalign.core.command import exit_status
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl

PAIRS = (("sft", "roboalign"), ("extra-sft", "roboalign"), ("base", "sft"))
HEADS = (0.71, 0.61, 0.63, 0.64)
"""Success of one base's head with four training seeds on LIBERO-Object, 100 episodes each
(docs/evidence/results.md, "Training seeds of one head")."""
LIMIT = 0.8
EFFECTS = (0.05, 0.1, 0.15, 0.2)
MOST_SEEDS = 100


def difference_by_seed(folder: Path, before: str, after: str) -> list[float]:
    """Return after minus before in success, one number a training seed."""
    found = []
    for path in sorted(folder.glob(f"seed-*-episodes-{before}.jsonl")):
        other = path.with_name(path.name.replace(f"-{before}.jsonl", f"-{after}.jsonl"))
        a, b = (
            {(row["task"], row["seed"]): float(row["success"]) for row in read_jsonl(one)}
            for one in (path, other)
        )
        if not a or a.keys() != b.keys():
            raise RoboAlignError(
                f"{path.name} and {other.name} are not of the same episodes",
                where=str(folder),
                fix="give a folder of published results, such as docs/results/metaworld",
            )
        found.append(float(np.mean([b[key] - a[key] for key in a])))
    if len(found) < 2:
        raise RoboAlignError(
            f"{len(found)} training seeds of {before} and {after} show no spread",
            where=str(folder),
            fix="give a run with several seeds, such as docs/results/metaworld",
        )
    return found


def upper_limit(deviation: float, degrees: int, confidence: float = LIMIT) -> float:
    """Return the upper confidence limit of a standard deviation that was estimated with so many
    degrees of freedom."""
    return deviation * math.sqrt(degrees / float(chi2.ppf(1 - confidence, degrees)))


def power(seeds: int, effect: float, deviation: float, alpha: float) -> float:
    """Return the probability that a two-sided t-test over seeds finds a true effect, in its
    direction."""
    critical = float(t.ppf(1 - alpha / 2, seeds - 1))
    return float(nct.sf(critical, seeds - 1, effect / deviation * math.sqrt(seeds)))


def seeds_needed(effect: float, deviation: float, *, alpha: float, wanted: float) -> int | None:
    """Return the smallest number of seeds with that power; None if more than MOST_SEEDS."""
    for seeds in range(2, MOST_SEEDS + 1):
        if power(seeds, effect, deviation, alpha) >= wanted:
            return seeds
    return None


def study(folder: Path, alpha: float, wanted: float) -> Sequence[str]:
    """Return the lines of the calculation."""
    lines, limits = [f"{folder}, points of success, after minus before by training seed"], []
    for before, after in PAIRS:
        each = difference_by_seed(folder, before, after)
        deviation = float(np.std(each, ddof=1))
        limits.append(upper_limit(deviation, len(each) - 1))
        shown = ", ".join(f"{100 * one:+.1f}" for one in each)
        lines.append(
            f"  {before} -> {after}: {shown}; standard deviation {100 * deviation:.1f}, "
            f"at most {100 * limits[-1]:.1f} (80%)"
        )
    heads = math.sqrt(2) * float(np.std(HEADS, ddof=1))
    limits.append(upper_limit(heads, len(HEADS) - 1))
    lines.append(
        f"  two of four heads on LIBERO-Object: standard deviation {100 * heads:.1f}, "
        f"at most {100 * limits[-1]:.1f} (80%)"
    )
    for name, deviation in (("median", float(np.median(limits))), ("largest", max(limits))):
        lines.append(f"with the {name} of these limits, {100 * deviation:.1f} points:")
        for effect in EFFECTS:
            seeds = seeds_needed(effect, deviation, alpha=alpha, wanted=wanted)
            enough = f"more than {MOST_SEEDS}" if seeds is None else str(seeds)
            lines.append(f"  an effect of {100 * effect:.0f} points needs {enough} seeds")
    return lines


def main() -> int:
    """Print the calculation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--power", type=float, default=0.8)
    options = parser.parse_args()

    def work() -> int:
        print("\n".join(study(options.results, options.alpha, options.power)))
        return 0

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
