"""Format what `roboalign compare` prints."""

from collections.abc import Iterator, Mapping
from typing import Any

from roboalign.cli.comparison.answers import format_answers
from roboalign.report.console import fold, grid, render
from roboalign.report.progress_text import format_progress, format_progress_difference
from roboalign.report.text import count_text, p_value, points

MIN_TASKS = 8  # bootstrapping fewer tasks gives intervals that are far too narrow


def format_compared(result: Mapping[str, Any]) -> str:
    """Format the rates, then the pairs: counts first, then percentages of these counts. Lines of 80
    columns."""
    pair = result["pair"]
    n = pair["n"]
    lines = [f"before: {pair['before']}", f"after:  {pair['after']}", "", _rates(result)]
    crashed = pair["crashes_left_out"]
    lines.append(
        f"{count_text(n)} pairs of the same initial state and training seed"
        + (f", without {crashed} in which either simulator crashed" if crashed else "; no crash")
    )
    if n:
        gained = pair["only_after"] - pair["only_before"]
        lines += [
            f"solved by after alone {pair['only_after']}, by before alone {pair['only_before']}: "
            f"{p_value(pair['p'])} (McNemar, exact, two-sided)",
            f"after minus before: {gained:+d} of {n} = {points(gained / n)} points",
            *_intervals(pair),
            *format_progress_difference(pair.get("progress")),
        ]
        lines += [
            f"  training seed {seed}: {row['gained']:+d} of {row['n']} = {points(row['gained'] / row['n'])}"
            for seed, row in pair["by_training_seed"].items()
            if row["n"] and len(pair["by_training_seed"]) > 1
        ]
    if "answers" in result:
        lines += format_answers(result["answers"])
    lines += _remarks(result)
    return fold("\n".join(lines)) + "\n"


def _rates(result: Mapping[str, Any]) -> str:
    """Format both success rates: over all episodes with the 95% interval, by training seed, and by
    task."""
    pair, arms = result["pair"], result["arms"]
    sides = [arms[pair["before"]], arms[pair["after"]]]
    table = grid("success", "before", "after")
    table.add_row("all tasks", *(_rate(side["overall"]) for side in sides))
    table.add_row("  95% interval", *(_interval(side["overall"]) for side in sides))
    seeds = dict.fromkeys(seed for side in sides for seed in side["run_seeds"])
    if len(seeds) > 1:
        for seed in seeds:
            rows = (side["run_seeds"].get(seed) for side in sides)
            table.add_row(f"  training seed {seed}", *map(_rate, rows))
    tasks = sorted({task for side in sides for task in side["tasks"]})
    for task in tasks:
        # LIBERO's task names are sentences, and they wrap
        name = task.rpartition("/")[2].replace("_", " ")
        table.add_row(name, *(_rate(side["tasks"].get(task)) for side in sides))
    chains = format_progress(
        {"before": sides[0].get("progress"), "after": sides[1].get("progress")}
    )
    return render(table) + (f"\n{chains}\n" if chains else "")


def _rate(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    if not row["n"]:
        return f"all {row['crashes']} crashed"
    return f"{row['successes']}/{row['n']} = {100 * row['rate']:.1f}%"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{100 * row['low']:.1f} to {100 * row['high']:.1f}%" if row["n"] else ""


def _intervals(pair: Mapping[str, Any]) -> Iterator[str]:
    """Yield the 95% intervals of the difference, by what is resampled."""
    several = len(pair["by_training_seed"]) > 1
    drawn = {
        "difference": "episodes (these tasks, other initial states)",
        "by_state": "initial states, each with all its training seeds" if several else "",
        "difference_by_task": "tasks (other tasks)" if pair["tasks"] >= MIN_TASKS else "",
    }
    for name, text in drawn.items():
        estimate = pair[name]
        if text and estimate and estimate["low"] is not None:
            yield f"  {points(estimate['low'])} to {points(estimate['high'])}  95%, drawing {text}"


def _remarks(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield other versions of a package, and other differences between recipes or servers."""
    for name in sorted({name for versions in result["versions"] for name in versions}):
        a, b = (versions.get(name) for versions in result["versions"])
        if a and b and a != b:
            yield f"caution: {name} {a} before, {b} after"
    for kind in ("recipes", "servers"):
        differ = result.get(f"{kind}_differ_in", [])
        if differ:
            yield f"the {kind} differ in:"
        for row in differ:
            yield f"  {row['key']}: {row['before']} before, {row['after']} after"
