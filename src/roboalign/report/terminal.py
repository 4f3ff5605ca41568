"""Format the main table as plain text, for the terminal and for logs."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from roboalign.report.console import fold, grid, render
from roboalign.report.progress_text import format_progress
from roboalign.report.summary import RunSummary
from roboalign.report.tables import arms_table, lookup
from roboalign.report.text import interval, value
from roboalign.report.verdict import Finding, findings


def format_arms(run: RunSummary, *, width: int = 150) -> str:
    """Format one arm per row: success and token metrics with their 95% intervals; then the
    baselines that need no model."""
    table = arms_table(run)
    if table is None:
        return "no arm was run\n"
    grid = RichTable(
        title=run.name, caption=table.caption, padding=0
    )  # otherwise intervals are truncated at this width
    for column in table.columns:
        grid.add_column(column)
    for head, cells in table.rows:
        grid.add_row(
            head, *("\n".join(part for part in (cell.text, cell.small) if part) for cell in cells)
        )
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(grid)
    return capture.get()


def format_end(run: RunSummary) -> str:
    """Format the end of a run for a terminal: three sentences and one table, in lines of 80
    columns."""
    measured = "open-loop error" if run.replays else "success"
    table = grid("arm", measured, "reasoned action error", "kept answers")
    for arm in run.arms:
        success = lookup(run.success, ("arms", arm.name, "overall"))
        error = lookup(arm.mllm, ("actions", "think", "l1_all")) if arm.mllm else None
        answers = lookup(arm.mllm, ("vqa", "direct", "accuracy")) if arm.mllm else None
        rate = {**success, "value": success["rate"]} if success and success["n"] else None
        first = (rate, "percent")
        if replayed := run.replays.get(arm.name):
            first = (replayed["overall"]["policy"], "number")
        cells = (first, (error, "number"), (answers, "percent"))
        table.add_row(arm.name, *(_cell(estimate, kind) for estimate, kind in cells))
    sentences = (fold(_sentence(finding)) for finding in findings(run))
    note = "With 95% intervals. Action error: mean L1, lower is better."
    if run.replays:
        note += (
            "\nOpen-loop error: share of the spread on held-out episodes, lower is better.\n"
            "Nothing was measured in closed loop."
        )
    arms = (run.success or {}).get("arms", {})
    chains = format_progress({name: rows.get("progress") for name, rows in arms.items()})
    below = [note, "", chains] if chains else [note]
    return "\n".join([*sentences, "", render(table), *below]) + "\n"


def _cell(estimate: Mapping[str, Any] | None, kind: str) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    bounds = interval(estimate, kind)
    return f"{value(estimate, kind)} ({bounds})" if bounds else value(estimate, kind)


def _sentence(finding: Finding) -> str:
    if finding.mark == "missing":
        return f"{finding.label}: {finding.detail}."
    change = f"{finding.before} before RL, {finding.after} after: {finding.word}"
    return f"{finding.label}: {change} ({finding.difference}; {finding.detail})."
