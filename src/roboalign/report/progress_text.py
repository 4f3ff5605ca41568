"""Tabulate chains: mean length and the share with 1 to 5 solved in a row."""

from collections.abc import Iterable, Mapping
from typing import Any

from roboalign.report.console import grid, render
from roboalign.report.summary import RunSummary
from roboalign.report.tables import Cell, Table, estimate_cell
from roboalign.report.text import interval, p_value, value

ChainRows = Mapping[str, Any]
"""What `evaluate.progress.progress_rows` returns."""


def format_progress(sides: Mapping[str, ChainRows | None]) -> str:
    """Format each side as a column of a table for the terminal; "" where no side has chains."""
    found = {name: rows for name, rows in sides.items() if rows}
    if not found:
        return ""
    table = grid("in a row", *found)
    for k in range(max(rows["parts"] for rows in found.values())):
        table.add_row(f"{k + 1}", *(_text(_kth(rows, k), "percent") for rows in found.values()))
    table.add_row("mean length", *(_text(rows["mean"], "number") for rows in found.values()))
    counts = (str(rows["mean"]["n"]) for rows in found.values())
    table.add_row("episodes", *counts)
    return render(table).rstrip()


def format_progress_difference(pair: Mapping[str, Any] | None) -> list[str]:
    """Return the paired differences as lines; none where episodes are no chains."""
    if pair is None or pair["mean"]["value"] is None:
        return []
    lines = [f"mean length, after minus before: {_text(pair['mean'], 'number')}"]
    for k, row in enumerate(pair["in_a_row"], start=1):
        lines.append(
            f"  {k} in a row: {_text(row['difference'], 'points')} points, by after alone "
            f"{row['only_after']}, by before alone {row['only_before']}: {p_value(row['p'])}"
        )
    return lines


def progress_table(run: RunSummary) -> Table | None:
    """Tabulate every arm's chains for the page; None where the episodes are no chains."""
    arms = {
        name: rows["progress"]
        for name, rows in ((run.success or {}).get("arms", {})).items()
        if rows.get("progress")
    }
    if not arms:
        return None
    parts = max(rows["parts"] for rows in arms.values())
    body: list[tuple[str, list[Cell]]] = []
    for name, rows in arms.items():
        shares = [estimate_cell(_kth(rows, k), "percent") for k in range(parts)]
        body.append((run.title(name), [estimate_cell(rows["mean"], "number"), *shares]))
    columns = ("Policies", "Mean length", *(f"{k} in a row" for k in _numbers(parts)))
    caption = "Subtasks solved in a row. 95% intervals by resampling chains."
    return Table(caption, columns, body)


def progress_differences_table(run: RunSummary) -> Table | None:
    """Tabulate the paired differences of chains for the page."""
    pairs = [pair for pair in (run.success or {}).get("pairs", []) if pair.get("progress")]
    if not pairs:
        return None
    parts = max(pair["progress"]["parts"] for pair in pairs)
    body: list[tuple[str, list[Cell]]] = []
    for pair in pairs:
        rows = pair["progress"]
        cells = [estimate_cell(rows["mean"], "number")]
        for row in rows["in_a_row"]:
            cell = estimate_cell(row["difference"], "points")
            cells.append(Cell(cell.text, f"{cell.small}\n{p_value(row['p'])}"))
        body.append((f"{run.title(pair['before'])} → {run.title(pair['after'])}", cells))
    columns = ("Policies", "Mean length", *(f"{k} in a row" for k in _numbers(parts)))
    caption = (
        "The same chains, after minus before; shares in percentage points with McNemar's exact p."
    )
    return Table(caption, columns, body)


def _numbers(parts: int) -> Iterable[int]:
    return range(1, parts + 1)


def _kth(rows: ChainRows, k: int) -> Mapping[str, Any]:
    shares = rows["in_a_row"]
    nothing = {"value": 0.0, "low": None, "high": None, "n": rows["mean"]["n"]}
    return shares[k] if k < len(shares) else nothing


def _text(estimate: Mapping[str, Any], kind: str) -> str:
    if estimate["value"] is None:
        return "–"
    bounds = interval(estimate, kind)
    return f"{value(estimate, kind)} ({bounds})" if bounds else value(estimate, kind)
