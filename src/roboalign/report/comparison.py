"""Compare what a run measured with the paper's numbers, and state why the two are not
comparable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roboalign.evaluate.success import RolloutRecord, success_table
from roboalign.report.console import fold, grid, render
from roboalign.report.paper_numbers import MODEL, SOURCE, Metric
from roboalign.report.text import points, signed_text

AGAINST = ("sft", "base")  # the arms that the others are paired with


@dataclass(frozen=True)
class Measured:
    """The measured policies of one run."""

    name: str
    benchmark: str
    tasks: tuple[str, ...]
    model: str
    """The backbone model, in words."""
    counts: str
    """`baselines.counts` of its recipe."""
    success: Mapping[str, Mapping[str, Any]]
    """Arm -> its rows, as `evaluate.success.success_table` gives them."""
    episodes: Mapping[str, Sequence[RolloutRecord]]
    """Arm -> its episode records, for the paired differences; arms without stored records are left
    out."""


def compare_with_paper(run: Measured, metric: Metric, titles: Mapping[str, str]) -> dict[str, Any]:
    """Return {"run", "paper", "rows", "not_comparable"}, ready for JSON; rows follow the order of
    `titles` (arm -> title).

    A row has "arm" and "title"; "paper" and "paper_minus_sft" (None if the paper has no such
    number); "measured" (successes, n, crashes, rate, low, high: Wilson 95%); "training_seeds"; and
    "minus_sft" and "minus_base": the paired difference in success rate with its bootstrap interval
    and McNemar's p, None without records of both.
    """
    pairs = [
        (before, arm)
        for before in AGAINST
        for arm in run.episodes
        if before in run.episodes and arm != before
    ]
    compared = {
        (pair["before"], pair["after"]): pair
        for pair in success_table(run.episodes, pairs)["pairs"]
    }
    rows = [
        _row(run, metric, arm, title, compared)
        for arm, title in titles.items()
        if arm in run.success or arm in metric.values
    ]
    paper = {
        "source": SOURCE,
        "model": MODEL,
        "metric": metric.title,
        "unit": metric.unit,
        "trials": metric.trials,
    }
    return {
        "run": run.name,
        "paper": paper,
        "rows": rows,
        "not_comparable": not_comparable(run, metric),
    }


def _row(
    run: Measured,
    metric: Metric,
    arm: str,
    title: str,
    compared: Mapping[tuple[str, str], Mapping[str, Any]],
) -> dict[str, Any]:
    paper, sft = metric.values.get(arm), metric.values.get("sft")
    measured = run.success.get(arm)
    wanted = ("successes", "n", "crashes", "rate", "low", "high")
    row = {
        "arm": arm,
        "title": title,
        "paper": paper,
        "paper_minus_sft": None
        if paper is None or sft is None or arm == "sft"
        else round(paper - sft, 2),
        "measured": {name: measured["overall"][name] for name in wanted} if measured else None,
        "training_seeds": sorted(map(int, measured["run_seeds"])) if measured else [],
    }
    for before in AGAINST:
        pair = compared.get((before, arm))
        row[f"minus_{before}"] = (
            {**pair["difference"], "p": pair["p"]} if pair and pair["n"] else None
        )
    return row


def not_comparable(run: Measured, metric: Metric) -> list[str]:
    """Return why a measured number is no reproduction of the paper's number in its row; one
    sentence each."""
    found = []
    if run.benchmark != metric.benchmark:
        found.append(
            f"Another benchmark: the paper's column is {metric.title} ({metric.trials}); measured were "
            f"{len(run.tasks)} tasks of {run.benchmark} ({', '.join(run.tasks)})."
        )
    if metric.unit == "tasks":
        found.append(
            "Another unit: the paper counts tasks in a row, of five; measured is the share of solved "
            "episodes."
        )
    if MODEL.lower() not in run.model.lower():
        found.append(f"Another model: the paper's is {MODEL}; measured was one of {run.model}.")
    if run.counts == "matched" and {"language-sft", "action-sft"} & set(run.success):
        found.append(
            "Other counts: the paper's language-only and action-only SFT have 1.88 of the 2.28 million "
            "samples of the whole mixture; measured ones have as many as it."
        )
    if found:
        found.append(
            "So the two columns share no scale. Compare the signs of differences, where an interval leaves "
            "one."
        )
    return found


def format_comparison(comparison: Mapping[str, Any]) -> str:
    """Format the comparison as plain text of 80 columns: one arm per row, then what is not
    comparable."""
    paper, rows = comparison["paper"], comparison["rows"]
    percent = paper["unit"] == "percent"
    table = grid(
        "backbone", "paper", "paper\n− SFT", "measured", "measured\n− SFT", "measured\n− base"
    )
    for row in rows:
        table.add_row(
            row["title"],
            _number(row["paper"], percent),
            signed_text(row["paper_minus_sft"], 1 if percent else 2),
            _rate(row["measured"]),
            _difference(row["minus_sft"]),
            _difference(row["minus_base"]),
        )
    title = f"{comparison['run']} and the paper ({paper['source']}), column {paper['metric']}\n"
    notes = [
        _measured(rows),
        "Success with Wilson 95% intervals; differences in points over the same episodes, with bootstrap "
        "95% intervals.",
        *(f"- {sentence}" for sentence in comparison["not_comparable"]),
    ]
    return "\n".join([fold(title), render(table), *map(fold, notes)]) + "\n"


def _measured(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how many episodes an arm has and for which training seeds; once if all arms agree."""
    counted = {
        row["title"]: f"{row['measured']['n']} episodes of training seeds "
        f"{', '.join(map(str, row['training_seeds']))}"
        for row in rows
        if row["measured"]
    }
    if len(set(counted.values())) == 1:
        return f"Measured for each arm: {next(iter(counted.values()))}."
    return "Measured: " + "; ".join(f"{title} {text}" for title, text in counted.items()) + "."


def markdown_comparison(comparison: Mapping[str, Any]) -> str:
    """Format the comparison as Markdown: the same table, then the same list."""
    paper = comparison["paper"]
    percent = paper["unit"] == "percent"
    lines = [
        f"| backbone | paper: {paper['metric']} | paper, minus SFT | measured success | minus SFT, points |",
        "|---|---|---|---|---|",
    ]
    for row in comparison["rows"]:
        measured = row["measured"]
        counted = (
            f"{measured['successes']}/{measured['n']} = " if measured and measured["n"] else ""
        )
        cells = [
            row["title"],
            _number(row["paper"], percent),
            signed_text(row["paper_minus_sft"], 1 if percent else 2),
            counted + _in_brackets(_rate(measured)),
            _in_brackets(_difference(row["minus_sft"])),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return (
        "\n".join([*lines, "", *(f"- {sentence}" for sentence in comparison["not_comparable"])])
        + "\n"
    )


def _in_brackets(cell: str) -> str:
    number, *bounds = cell.split("\n")
    return f"{number} ({bounds[0]})" if bounds else number


def _number(value: float | None, percent: bool) -> str:
    return "–" if value is None else f"{value:.1f}%" if percent else f"{value:.2f}"


def _rate(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "not run"
    if not measured["n"]:
        return f"{measured['crashes']} crashed"
    return f"{100 * measured['rate']:.1f}%\n{100 * measured['low']:.1f} to {100 * measured['high']:.1f}"


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "–"
    if difference["low"] is None:
        return f"{points(difference['value'])}\nno interval"
    return f"{points(difference['value'])}\n{points(difference['low'])} to {points(difference['high'])}"
