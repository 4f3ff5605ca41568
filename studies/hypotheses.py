"""The hypotheses of docs/evidence/plan.md, from the records of their runs: estimates, intervals, verdicts.

    python studies/hypotheses.py RUN [--closed-loop FOLDER] [--probe probe.json] [--json PATH]

RUN is a folder of `roboalign run`; FOLDER has a folder of `roboalign think-curve` for each training seed and arm,
seed-N/ARM; probe.json is of `roboalign probe RUN --every 6`. Each training seed gives one number: a difference between
two arms on the same episodes. The estimate is its mean over seeds, with the t-interval over seeds. Initial states that
earlier runs have measured are left out. Hypotheses whose records are not there are named as not measured.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from roboalign.core.command import exit_status
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl, write_json
from roboalign.evaluate.statistics import holm
from roboalign.run.load import load_recipe
from roboalign.run.recipe import Recipe

ALPHA = 0.05
EARLIER_STATES = {"closed-loop": 8, "metaworld": 36, "libero_goal": 10}
"""Initial states of each task, from the first, that earlier runs measured (docs/evidence/results.md);
another benchmark's are all new."""


@dataclass(frozen=True)
class Claim:
    """A difference, and what it must exceed."""

    hypothesis: str
    before: str
    after: str
    source: str
    """`think` or `direct`: success by tokens in closed loop (`think` before is `direct`: another
    mode); `rollouts`: success on the recipe's tasks; `curve`: mean success of online RL's rollouts
    up to the same number of them; `probe`: accuracy of the KNN probe."""
    margin: float = 0.0
    """The claim is that the difference is above this."""
    relevant: float = 0.1
    """The smallest difference that matters: an interval that ends below it refutes the claim."""
    secondary: bool = False
    """Whether it is shown without a verdict."""


CLAIMS = (
    Claim("H1", "sft-tokens-think", "roboalign-tokens-think", "think"),
    Claim("H1", "extra-sft-tokens-think", "roboalign-tokens-think", "think"),
    Claim("H1", "sft-tokens-think", "roboalign-visited-tokens-think", "think"),
    Claim("H1", "sft-visited-tokens-think", "roboalign-visited-tokens-think", "think"),
    # Not behind the direct answers of the same model by 5 points or more.
    Claim("H1", "roboalign-tokens-think", "roboalign-tokens-think", "modes", -0.05, 0.0),
    Claim("H2", "sft-tokens-direct", "sft-tokens-direct-online", "rollouts"),
    Claim("H2", "roboalign-tokens-think", "roboalign-tokens-think-online", "rollouts"),
    Claim("H2", "sft", "sft-online", "rollouts"),
    Claim("H2", "roboalign", "roboalign-online", "rollouts"),
    Claim("H2", "sft-online", "roboalign-online", "curve"),
    Claim("H3", "sft", "roboalign", "rollouts"),
    Claim("H3", "extra-sft", "roboalign", "rollouts"),
    Claim("H3", "base", "sft", "rollouts", secondary=True),
    Claim("H4", "base", "sft", "probe", relevant=0.02),
    Claim("H4", "sft", "roboalign", "probe", relevant=0.1),
)

Key = tuple[str, int]
Numbers = Mapping[int, float]
"""Training seed -> its difference."""


def interval(
    values: Sequence[float], margin: float
) -> tuple[float, float | None, float | None, float]:
    """Return mean, 95% t-interval over seeds, and the two-sided p that the mean is `margin`."""
    mean, count = float(np.mean(values)), len(values)
    error = float(np.std(values, ddof=1)) / count**0.5 if count > 1 else 0.0
    if not error:  # one seed, or seeds that are all equal, bound nothing
        return mean, None, None, 1.0
    half = float(t.ppf(1 - ALPHA / 2, count - 1)) * error
    p = 2 * float(t.sf(abs(mean - margin) / error, count - 1))
    return mean, mean - half, mean + half, p


def verdict(claim: Claim, low: float | None, high: float | None, p: float, seeds: int) -> str:
    """Return what the interval says of the claim; `p` is corrected."""
    if low is None or high is None:
        return f"open: {seeds} seed{'s' * (seeds != 1)} bound nothing"
    if low > claim.margin and p < ALPHA:
        return "holds" if high >= claim.relevant else "holds, below what matters"
    if high < max(claim.margin, claim.relevant):
        return "refuted"
    return "open"


@dataclass(frozen=True)
class Records:
    """Where the numbers of a run are."""

    run: Path
    recipe: Recipe
    closed: Path | None
    probed: Path | None

    def of(self, claim: Claim) -> Numbers:
        """Return the claim's difference for each training seed that has the records of both
        sides."""
        ways: dict[str, Callable[[Claim, int], float | None]] = {
            "think": lambda one, seed: self._paired(one, seed, self._closed("itself")),
            "modes": self._modes,
            "rollouts": lambda one, seed: self._paired(one, seed, self._rollouts),
            "curve": self._curves,
            "probe": self._probe,
        }
        found = {seed: ways[claim.source](claim, seed) for seed in self.recipe.seeds}
        return {seed: one for seed, one in found.items() if one is not None}

    def _rollouts(self, seed: int, arm: str) -> dict[Key, float]:
        path = self.run / f"seed-{seed}/eval/rollouts/{arm}/episodes.jsonl"
        return new_states(read_jsonl(path), EARLIER_STATES.get(self.recipe.collect.benchmark, 0))

    def _closed(self, variant: str) -> Callable[[int, str], dict[Key, float]]:
        def read(seed: int, arm: str) -> dict[Key, float]:
            if self.closed is None:
                return {}
            rows = read_jsonl(self.closed / f"seed-{seed}" / arm / "episodes.jsonl")
            rows = [row for row in rows if row["variant"] == variant]
            return new_states(rows, EARLIER_STATES["closed-loop"])

        return read

    def _modes(self, claim: Claim, seed: int) -> float | None:
        direct = self._closed("reasoning 0")(seed, claim.before)
        return paired(direct, self._closed("itself")(seed, claim.after))

    def _paired(
        self, claim: Claim, seed: int, read: Callable[[int, str], dict[Key, float]]
    ) -> float | None:
        return paired(read(seed, claim.before), read(seed, claim.after))

    def _curves(self, claim: Claim, seed: int) -> float | None:
        sides = [
            read_jsonl(self.run / f"seed-{seed}/online/{arm}/metrics.jsonl")
            for arm in (claim.before, claim.after)
        ]
        if not all(sides):
            return None
        budget = min(rows[-1]["episodes"] for rows in sides)
        before, after = (mean_success(rows, budget) for rows in sides)
        return after - before

    def _probe(self, claim: Claim, seed: int) -> float | None:
        if self.probed is None:
            return None
        result = read_json(self.probed)
        layer = str(result["head_layer"])
        found = {
            (row["arm"], row["seed"]): row["layers"][layer]["accuracy"]["value"]
            for row in result["backbones"]
            if layer in row["layers"]
        }
        sides = [
            found.get((arm, seed), found.get((arm, None))) for arm in (claim.before, claim.after)
        ]
        return None if None in sides else sides[1] - sides[0]


def new_states(rows: Sequence[Mapping[str, Any]], earlier: int) -> dict[Key, float]:
    """Return success by (task, seed) without crashes, and without the first states of each task."""
    first: dict[str, list[int]] = {}
    for row in rows:
        first.setdefault(row["task"], []).append(row["seed"])
    known = {task: set(sorted(set(seeds))[:earlier]) for task, seeds in first.items()}
    return {
        (row["task"], row["seed"]): float(row["success"])
        for row in rows
        if row["crash"] is None and row["seed"] not in known[row["task"]]
    }


def paired(before: Mapping[Key, float], after: Mapping[Key, float]) -> float | None:
    """Return the mean difference on the episodes of both; None if there is none."""
    shared = before.keys() & after.keys()
    return float(np.mean([after[key] - before[key] for key in shared])) if shared else None


def mean_success(rows: Sequence[Mapping[str, Any]], budget: int) -> float:
    """Return the mean success of the first `budget` rollouts, each update's at its own rate."""
    total, done = 0.0, 0
    for row in rows:
        count = min(row["episodes"], budget) - done
        total, done = total + max(count, 0) * row["success"], max(done, done + count)
    return total / budget


def analyse(records: Records) -> list[dict[str, Any]]:
    """Return a row for each claim. p is corrected by Holm within a hypothesis, over the claims that
    were measured."""
    rows = []
    for claim in CLAIMS:
        numbers = records.of(claim)
        row: dict[str, Any] = {
            **asdict(claim),
            "seeds": list(numbers),
            "each": list(numbers.values()),
        }
        if numbers:
            row |= dict(
                zip(
                    ("value", "low", "high", "p"),
                    interval(row["each"], claim.margin),
                    strict=True,
                )
            )
        rows.append(row)
    for hypothesis in dict.fromkeys(claim.hypothesis for claim in CLAIMS):
        own = [
            (row, claim)
            for row, claim in zip(rows, CLAIMS, strict=True)
            if claim.hypothesis == hypothesis and "p" in row and not claim.secondary
        ]
        for (row, claim), p in zip(own, holm([row["p"] for row, _ in own]), strict=True):
            row["p_holm"] = p
            row["verdict"] = verdict(claim, row["low"], row["high"], p, len(row["each"]))
    return rows


def line(row: Mapping[str, Any]) -> str:
    """Return one claim as a line."""
    after = row["after"] if row["source"] != "modes" else f"{row['after']} thinking"
    before = row["before"] if row["source"] != "modes" else "answering directly"
    head = f"{row['hypothesis']} {row['source']}: {after} minus {before}: "
    if "value" not in row:
        return head + "not measured"
    bounds = (
        f" ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})" if row["low"] is not None else ""
    )
    test = f", p = {row['p_holm']:.3f} (Holm): {row['verdict']}" if "verdict" in row else ""
    return (
        f"{head}{100 * row['value']:+.1f} points{bounds}, {len(row['each'])} training seeds{test}"
    )


def open_records(run: Path, closed: Path | None, probed: Path | None) -> Records:
    """Return where the records are. Raises RoboAlignError if one of the folders is no such folder."""
    if not (run / "recipe.yaml").is_file():
        raise RoboAlignError(
            "no run here: recipe.yaml does not exist", where=str(run), fix="give a run's folder"
        )
    if closed and not any(re.fullmatch(r"seed-\d+", one.name) for one in closed.iterdir()):
        raise RoboAlignError(
            "it has no folder seed-N", where=str(closed), fix="give the folder of the think curves"
        )
    return Records(run, load_recipe(run / "recipe.yaml"), closed, probed)


def main() -> int:
    """Print the claims."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--closed-loop", type=Path)
    parser.add_argument("--probe", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    def work() -> int:
        rows = analyse(open_records(options.run, options.closed_loop, options.probe))
        print("\n".join(map(line, rows)))
        if options.json:
            write_json(options.json, rows)
        return 0

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
