"""`roboalign table`: the paper's tables, with measured numbers below the published ones."""

import argparse
import json
from pathlib import Path
from typing import Any

from roboalign.cli.comparison.paper_runs import ELSEWHERE, comparison, offline, read_measured
from roboalign.cli.comparison.paper_sources import (
    chains_of,
    merged,
    on_libero,
    read_paper_source,
    suites_of,
)
from roboalign.core.errors import RoboAlignError
from roboalign.report.comparison import Measured, format_comparison, markdown_comparison
from roboalign.report.console import fold, grid, render
from roboalign.report.paper_numbers import CALVIN_TABLE, METRICS
from roboalign.report.paper_tables import (
    Source,
    fill_tables,
    format_tables,
    markdown_tables,
    unfilled,
)
from roboalign.report.text import number_text
from roboalign.run.arms import ARMS
from roboalign.run.benchmark import OFFLINE_NOTE


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the sources and for the form of the tables."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="SOURCE",
        help="a run's folder, one of docs/results/, the folder of an eval or bench, the file of a "
        "probe, or the log of a trial",
    )
    parser.add_argument(
        "--metric",
        help=f"of runs: this column alone, with differences between arms: {', '.join(METRICS)}",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown, for a paper")
    form.add_argument("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> int:
    """Print the tables."""
    form = "json" if options.json else "markdown" if options.markdown else "text"
    paths = [Path(one) for one in options.runs]
    print(column(paths, options.metric, form) if options.metric else tables(paths, form))
    return 0


def column(folders: list[Path], metric: str, form: str = "text") -> str:
    """Return one column of the paper for each run, with the differences between its arms.

    Raises RoboAlignError if there is no such column, or a folder holds no results.
    """
    if metric not in METRICS:
        raise RoboAlignError(
            f"the paper has no column `{metric}` here",
            where="--metric",
            fix=f"use one of {', '.join(METRICS)}",
        )
    return _written([offline(one) or comparison(one, metric) for one in folders], form)


def tables(paths: list[Path], form: str = "text") -> str:
    """Return the paper's tables, filled from all sources; then each run on another benchmark next to
    the paper's average.

    Raises RoboAlignError if a source holds no results, or two have one name.
    """
    sources: list[Source] = []
    others: list[dict[str, Any]] = []
    runs: list[Measured] = []
    for path in paths:
        if (source := read_paper_source(path)) is not None:
            sources.append(source)
        elif (found := offline(path)) is not None:
            others.append(found)
        elif on_libero(run := read_measured(path)):
            runs.append(run)
        elif run.benchmark == CALVIN_TABLE.benchmark:
            sources.append(chains_of(run))
        else:
            others.append(comparison(path, ELSEWHERE))
    sources = [*map(suites_of, merged(runs)), *sources]
    _refuse_equal_names(sources)
    filled = fill_tables(sources, {name: arm.title for name, arm in ARMS.items()})
    if form == "json":
        return json.dumps({"tables": filled, "others": others}, indent=2)
    write = markdown_tables if form == "markdown" else format_tables
    missing = "\n".join(map(fold, unfilled(filled))) + "\n" if filled and form == "text" else ""
    return "\n".join(filter(None, [write(filled), _written(others, form), missing]))


def _refuse_equal_names(sources: list[Source]) -> None:
    rows = [(row.table, row.arm, row.source) for source in sources for row in source.rows]
    if twice := sorted({row for row in rows if rows.count(row) > 1}):
        raise RoboAlignError(
            f"two sources are called {twice[0][2]} and measured the same",
            where="SOURCE",
            fix="give one of them, or rename its folder (a run: `name` in its recipe)",
        )


def _written(found: list[dict[str, Any]], form: str) -> str:
    """Write comparisons and open-loop errors of runs as text, Markdown or JSON (a list)."""
    if form == "json":
        return json.dumps(found, indent=2)
    parts = []
    for one in found:
        if "open_loop" not in one:
            parts.append((markdown_comparison if form == "markdown" else format_comparison)(one))
        else:
            text = format_offline(one)
            parts.append(f"```text\n{text}```\n" if form == "markdown" else text)
    return "\n".join(parts)


def format_offline(found: dict[str, Any]) -> str:
    """Format the open-loop errors of one run as text."""
    table = grid("arm", "open-loop error", title=found["name"])
    for arm, overall in found["open_loop"].items():
        table.add_row(arm, number_text(overall["policy"]["value"]))
    for method, title in (("mean", "mean action"), ("hold", "last action held")):
        overall = next(iter(found["open_loop"].values()))
        table.add_row(title, number_text(overall[method]["value"]))
    return render(table) + fold(OFFLINE_NOTE) + "\n"
