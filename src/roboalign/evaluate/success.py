"""Compute success rates of policies from their episode records: per task, per training seed, and in
pairs.

One record is one rollout: {"task": str, "seed": int, "success": bool, "steps": int, "crash": str |
None, "seconds": float}, and "run_seed": int if an arm was trained several times (default 0). An
episode whose simulator crashed says nothing about the policy: it is counted separately and never as
a failure.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from roboalign.core.errors import RoboAlignError
from roboalign.core.state import State, read_records
from roboalign.evaluate.progress import progress_difference, progress_rows
from roboalign.evaluate.statistics import holm, mcnemar_exact, paired_difference, wilson

RolloutRecord = Mapping[str, Any]


class EpisodeState(State):
    """One line of episodes.jsonl."""

    task: str
    seed: int
    success: bool
    steps: int = Field(ge=0)
    crash: str | None
    seconds: float = Field(0.0, ge=0)
    run_seed: int = 0
    counts: dict[str, int] = Field(default_factory=dict)
    """What the policy counted over the episode's decisions."""
    progress: int | None = Field(None, ge=0)
    """Parts of the episode that were solved, where it has several."""


def read_episodes(
    path: Path, wanted: Iterable[tuple[str, int]], fix: str = ""
) -> list[dict[str, Any]]:
    """Read the records of an episodes.jsonl, one for each of the `wanted` (task, seed) pairs.

    Raises RoboAlignError that names the file if a record is missing, duplicated, not wanted, or
    damaged.
    """
    records, wanted = read_records(path, EpisodeState, fix), list(wanted)
    found = Counter((row["task"], row["seed"]) for row in records)
    if missing := set(wanted) - found.keys():
        task, seed = min(missing)
        problem = f"{len(missing)} of {len(wanted)} episodes are missing, as {task} seed {seed}"
        raise RoboAlignError(problem, where=str(path), fix=fix)
    for (task, seed), count in found.items():
        if count > 1:
            problem = f"{task} seed {seed} is recorded {count} times"
            raise RoboAlignError(problem, where=str(path), fix=fix)
    if others := found.keys() - set(wanted):
        task, seed = min(others)
        problem = f"{task} seed {seed} is none of the episodes of this run"
        raise RoboAlignError(problem, where=str(path), fix=fix)
    return records


_Key = tuple[int, str, int]  # run seed, task, episode seed


def success_table(
    arms: Mapping[str, Sequence[RolloutRecord]],
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    resamples: int = 10_000,
) -> dict[str, Any]:
    """Return rates and paired differences of `arms` (name -> episode records).

    `pairs` names the arms to compare as (before, after); None compares every pair, in the order
    given. Returns {"arms": {name: {"overall": row, "tasks": {task: row}, "run_seeds": {seed:
    row}}}, "pairs": [pair]}, ready for JSON; where episodes have several parts an arm also has
    `progress` (evaluate/progress.py). row = {successes, n, crashes, rate, low, high,
    mean_steps} (Wilson 95%; rate is None if n = 0). pair is what `compare_arms` returns, plus
    p_holm, its p corrected for the number of pairs. Raises RoboAlignError on an incomplete or
    repeated record and on an unknown arm in `pairs`.
    """
    keyed = {name: _by_key(records, name) for name, records in arms.items()}
    if pairs is None:
        pairs = list(combinations(arms, 2))
    for name in {name for pair in pairs for name in pair} - set(arms):
        raise RoboAlignError(
            f"no arm is called {name!r}", where="pairs", fix=f"choose from {', '.join(arms)}"
        )
    compared = [
        {
            "before": before,
            "after": after,
            **compare_arms(keyed[before], keyed[after], resamples=resamples),
        }
        for before, after in pairs
    ]
    for pair, adjusted in zip(compared, holm([pair["p"] for pair in compared])):
        pair["p_holm"] = adjusted
    return {
        "arms": {name: _arm_rows(records, resamples) for name, records in keyed.items()},
        "pairs": compared,
    }


def compare_arms(
    before: Mapping[_Key, RolloutRecord],
    after: Mapping[_Key, RolloutRecord],
    *,
    resamples: int = 10_000,
) -> dict[str, Any]:
    """Compare two arms in pairs over the episodes that both finished.

    Returns {n, crashes_left_out, only_before, only_after, p, difference, difference_by_task}; p is
    McNemar's exact p. The differences are in success rate (after minus before). The interval of
    `difference` resamples episodes (these tasks, other initial states); that of
    `difference_by_task` resamples tasks (other tasks; None with fewer than two tasks). Episodes of
    several parts add `progress`.
    """
    shared = sorted(before.keys() & after.keys())
    usable = [key for key in shared if before[key]["crash"] is None and after[key]["crash"] is None]
    a = [bool(before[key]["success"]) for key in usable]
    b = [bool(after[key]["success"]) for key in usable]
    tasks = [task for _, task, _ in usable]
    test = mcnemar_exact(a, b)
    by_task = (
        paired_difference(a, b, clusters=tasks, resamples=resamples)
        if len(set(tasks)) > 1
        else None
    )
    progress = progress_difference(
        [before[key] for key in usable], [after[key] for key in usable], resamples=resamples
    )
    return {
        **({"progress": progress} if progress else {}),
        "n": test.n,
        "crashes_left_out": len(shared) - len(usable),
        "only_before": test.only_a,
        "only_after": test.only_b,
        "p": test.p,
        "difference": asdict(paired_difference(a, b, resamples=resamples)),
        "difference_by_task": asdict(by_task) if by_task else None,
    }


def format_success(table: Mapping[str, Any], *, width: int = 100) -> str:
    """Format the table of `success_table` as plain text for a terminal or a log."""
    console = Console(width=width, no_color=True, highlight=False)
    tasks = sorted({task for arm in table["arms"].values() for task in arm["tasks"]})
    rates = Table("arm", "task", "success", "95% interval", "crashes", title="Success")
    for name, arm in table["arms"].items():
        rates.add_row(name, "all", *_cells(arm["overall"]))
        if len(arm["run_seeds"]) > 1:
            for seed, row in arm["run_seeds"].items():
                rates.add_row("", f"all, training seed {seed}", *_cells(row))
        for task in tasks:
            if task in arm["tasks"]:
                rates.add_row("", task, *_cells(arm["tasks"][task]))
    columns = ("before", "after", "pairs", "difference", "95% interval", "p", "p (Holm)")
    differences = Table(*columns, title="Same episodes")
    for pair in table["pairs"]:
        differences.add_row(pair["before"], pair["after"], str(pair["n"]), *_difference_cells(pair))
    with console.capture() as capture:
        console.print(rates)
        if table["pairs"]:
            console.print(differences)
    return capture.get()


def _by_key(records: Iterable[RolloutRecord], arm: str) -> dict[_Key, RolloutRecord]:
    keyed: dict[_Key, RolloutRecord] = {}
    for number, record in enumerate(records, start=1):
        where = f"episodes of arm {arm!r}, record {number}"
        missing = {"task", "seed", "success", "steps", "crash"} - record.keys()
        if missing:
            raise RoboAlignError(
                f"lacks {', '.join(sorted(missing))}", where=where, fix="evaluate the arm again"
            )
        key = (record.get("run_seed", 0), record["task"], record["seed"])
        if key in keyed:
            raise RoboAlignError(
                f"task {key[1]} seed {key[2]} was already recorded",
                where=where,
                fix="remove the repeated record",
            )
        keyed[key] = record
    return keyed


def _arm_rows(keyed: Mapping[_Key, RolloutRecord], resamples: int) -> dict[str, Any]:
    tasks = sorted({task for _, task, _ in keyed})
    seeds = sorted({run_seed for run_seed, _, _ in keyed})
    progress = progress_rows(list(keyed.values()), resamples=resamples)
    return {
        **({"progress": progress} if progress else {}),
        "overall": _row(keyed.values()),
        "tasks": {task: _row(r for key, r in keyed.items() if key[1] == task) for task in tasks},
        "run_seeds": {
            str(seed): _row(r for key, r in keyed.items() if key[0] == seed) for seed in seeds
        },
    }


def _row(records: Iterable[RolloutRecord]) -> dict[str, Any]:
    records = list(records)
    finished = [r for r in records if r["crash"] is None]
    successes = [r for r in finished if r["success"]]
    low, high = wilson(len(successes), len(finished))
    return {
        "successes": len(successes),
        "n": len(finished),
        "crashes": len(records) - len(finished),
        "rate": len(successes) / len(finished) if finished else None,
        "low": low,
        "high": high,
        "mean_steps": sum(r["steps"] for r in successes) / len(successes) if successes else None,
    }


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    if not row["n"]:
        return "no finished episode", "", str(row["crashes"])
    rate = f"{row['successes']}/{row['n']} = {100 * row['rate']:.1f}%"
    return rate, f"{100 * row['low']:.1f} to {100 * row['high']:.1f}%", str(row["crashes"])


def _difference_cells(pair: Mapping[str, Any]) -> tuple[str, str, str, str]:
    difference = pair["difference"]
    if difference["value"] is None:
        return "no shared episode", "", "", ""
    interval = (
        ""
        if difference["low"] is None
        else f"{100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}"
    )
    return (
        f"{100 * difference['value']:+.1f} points",
        interval,
        f"{pair['p']:.3g}",
        f"{pair['p_holm']:.3g}",
    )
