"""`roboalign compare LOG`: unblind the log of `roboalign trial`, and print what the trials showed."""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.report.console import fold, grid, render
from roboalign.report.text import p_value, percent, points
from roboalign.trial.plan import LOG_ENDING, PLAN_ENDING
from roboalign.trial.results import results_of

FEW_TRIALS = 20
"""Below this many, differences of single tasks are hardly ever shown."""


def compare_trials(options: argparse.Namespace) -> str:
    """Return the results of a log as text or JSON. Raises RoboAlignError as `results_of` does."""
    if len(options.runs) > 1 or options.arm or options.seed:
        raise RoboAlignError(
            "a log of trials is compared alone: its plan names arms and comparisons",
            where=options.runs[0],
            fix="give the log only",
        )
    log = Path(options.runs[0])
    result = results_of(log, plan_of(log, options.plan), unfinished=options.unfinished)
    return json.dumps(result, indent=2) if options.json else format_trials(result)


def format_trials(result: Mapping[str, Any]) -> str:
    """Format the table of success, the tests, and what was void. Lines of 80 columns."""
    lines = [f"{result['study']}: {result['done']} of {result['total']} trials", *_looks(result)]
    lines += [
        f"plan {result['plan_sha256'][:12]}, {result['sessions']} sessions, "
        f"operators: {', '.join(result['operators'])}",
        "",
        _success(result),
    ]
    for pair in result["comparisons"]:
        lines += [*_tested(pair, result), ""]
    lines += [_happened(result), *_remarks(result)]
    return fold("\n".join(lines).rstrip())


def plan_of(log: Path, given: str | None) -> Path:
    """Return the plan of a log: the one that is given, else the one next to it."""
    if given:
        return Path(given)
    if not log.name.endswith(LOG_ENDING):
        raise RoboAlignError(
            "the plan of this log is not known", where=str(log), fix="pass --plan PLAN"
        )
    return log.with_name(log.name.removesuffix(LOG_ENDING) + PLAN_ENDING)


def _looks(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what has to be said first: that the study is not done, or was not blind to its end."""
    if result["done"] < result["total"]:
        yield (
            f"UNFINISHED: {result['total'] - result['done']} trials are left. This look is written in "
            "the log; p-values and intervals do not hold for a study that is stopped or continued "
            "because of them."
        )
    early = [done for done in result["looks"] if done < result["total"]]
    if early and result["done"] == result["total"]:
        yield (
            f"NOT BLIND TO THE END: unblinded after {', '.join(map(str, early))} of "
            f"{result['total']} trials"
        )


def _success(result: Mapping[str, Any]) -> str:
    """Format the paper's table: success of each arm in each task and over all of them."""
    arms = result["arms"]
    table = grid("success", *arms)
    for task in result["tasks"]:
        table.add_row(task, *(_rate(arm["tasks"][task]) for arm in arms.values()))
        if task in next(iter(arms.values()))["progress"]:
            shares = (percent(arm["progress"][task]) for arm in arms.values())
            table.add_row("  stages reached", *shares)
    table.add_row("all tasks", *(_rate(arm["overall"]) for arm in arms.values()))
    table.add_row("  95% interval", *(_interval(arm["overall"]) for arm in arms.values()))
    return render(table)


def _tested(pair: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    yield f"before: {pair['before']}   after: {pair['after']}"
    if not pair["n"]:
        yield "no pair is complete"
        return
    yield (
        f"of {pair['n']} pairs, solved by after alone {pair['only_after']}, by before alone "
        f"{pair['only_before']}: {p_value(pair['p'])} (McNemar, exact, two-sided)"
    )
    if len(result["comparisons"]) > 1:
        yield f"  {p_value(pair['p_holm'])} after Holm's correction for all comparisons"
    yield (
        f"after minus before: {points(pair['difference'])} points, 95% {points(pair['low'])} to "
        f"{points(pair['high'])} (Tango's score interval)"
    )
    shown = pair["p_holm"] <= result["alpha"]
    better = pair["after"] if pair["difference"] > 0 else pair["before"]
    yield f"  {f'shown: {better} is better' if shown else 'no difference is shown'} at alpha {result['alpha']:g}"
    if len(pair["tasks"]) > 1:
        for task, row in pair["tasks"].items():
            yield (
                f"  {task}: {points(row['difference'])} points, {p_value(row['p'])} "
                f"({row['n']} pairs; not corrected)"
            )
    void = pair["void_as_failures"]
    yield (
        f"if every trial with a void attempt were a failure: {points(void['difference'])} points, "
        f"{p_value(void['p'])}"
    )
    yield f"void attempts differ between the two: {p_value(pair['void_differs_p'])} (Fisher, exact)"


def _happened(result: Mapping[str, Any]) -> str:
    """Format the counts of everything but success."""
    arms = result["arms"].values()
    table = grid("counts", *result["arms"])
    for title, key in {"void": "void", "failure": "failures"}.items():
        for reason in dict.fromkeys(reason for arm in arms for reason in arm[key]):
            table.add_row(f"{title}: {reason}", *(str(arm[key].get(reason, 0)) for arm in arms))
    for title, key in {
        "attempts, with void ones": "attempts",
        "a person stepped in": "interventions",
        "outcomes corrected": "corrections",
        "faults of the policy": "faults",
    }.items():
        table.add_row(title, *(str(arm[key]) for arm in arms))
    return render(table)


def _remarks(result: Mapping[str, Any]) -> Iterator[str]:
    arms = result["arms"]
    per_task = min(row["n"] for arm in arms.values() for row in arm["tasks"].values())
    if len(result["tasks"]) > 1 and per_task < FEW_TRIALS:
        yield f"caution: only {per_task} trials in some task; single tasks say little"
    for name, model in result["policies"].items():
        yield f"{name} is policy {model}"
    for task, criterion in result["tasks"].items():
        yield f"{task}: success if {criterion}"


def _rate(row: Mapping[str, Any]) -> str:
    return f"{row['successes']}/{row['n']} = {percent(row['rate'])}" if row["n"] else "–"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{100 * row['low']:.1f} to {100 * row['high']:.1f}%" if row["n"] else ""
