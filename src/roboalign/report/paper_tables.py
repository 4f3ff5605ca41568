"""Fill the paper's tables: published and measured rows, one below the other, and what differs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from roboalign.report.console import fold, grid, render
from roboalign.report.paper_numbers import MODEL, PAPER_TABLES, SOURCE, PaperTable
from roboalign.report.text import number_text


@dataclass(frozen=True)
class MeasuredCell:
    """A measured number in the unit of its column, with its 95% interval."""

    value: float
    low: float | None
    high: float | None
    n: int
    """Episodes, chains, trials, items or frames."""


@dataclass(frozen=True)
class MeasuredRow:
    """What one source measured of one arm or model in one table."""

    table: str
    """A key of PAPER_TABLES."""
    arm: str
    """The paper's row if the table has it; else the row stands alone."""
    source: str
    """Name of the run, bench, probe or trial."""
    cells: Mapping[str, MeasuredCell]
    """By column of the table; one that was not measured is left out."""


@dataclass
class Source:
    """What one folder or file holds for the paper's tables."""

    name: str
    rows: list[MeasuredRow] = field(default_factory=list)
    differs: dict[str, list[str]] = field(default_factory=dict)
    """Table -> why its measured numbers are no reproduction of the paper's, a sentence each."""


def fill_tables(sources: Sequence[Source], titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the tables that `sources` fill, ready for JSON: {"table", "title", "trials", "columns",
    "rows", "differs"}.

    Rows follow the order of `titles` (arm -> title), then other models. A row has "arm", "title",
    "from" (`paper` or a source's name) and "cells", None where nothing is known.
    """
    filled = []
    for name, table in PAPER_TABLES.items():
        rows = [row for source in sources for row in source.rows if row.table == name]
        if not rows:
            continue
        others = dict.fromkeys(row.arm for row in rows if row.arm not in titles)
        arms = [arm for arm in titles if arm in table.rows or any(row.arm == arm for row in rows)]
        filled.append(
            {
                "table": name,
                "title": table.title,
                "trials": table.trials,
                "columns": list(table.columns),
                "rows": [
                    row
                    for arm in (*arms, *others)
                    for row in _rows_of(table, arm, titles.get(arm, arm), rows)
                ],
                "differs": [
                    f"{source.name}: {sentence}"
                    for source in sources
                    for sentence in source.differs.get(name, [])
                ],
            }
        )
    return filled


def _rows_of(
    table: PaperTable, arm: str, title: str, rows: Sequence[MeasuredRow]
) -> Iterable[dict[str, Any]]:
    """Yield the paper's row of an arm, then what each source measured."""
    if arm in table.rows:
        cells = [None if one is None else {"value": one} for one in table.rows[arm]]
        yield {"arm": arm, "title": title, "from": "paper", "cells": cells}
    for row in rows:
        if row.arm == arm:
            found = [row.cells.get(column) for column in table.columns]
            measured = [None if cell is None else asdict(cell) for cell in found]
            yield {"arm": arm, "title": title, "from": row.source, "cells": measured}


def unfilled(filled: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which tables have no measured number yet, and what fills them."""
    done = {one["table"] for one in filled}
    return [
        f"not measured: {table.title.split(',')[0].split(':')[0]}; give {table.fill}"
        for name, table in PAPER_TABLES.items()
        if name not in done
    ]


def format_tables(filled: Sequence[Mapping[str, Any]]) -> str:
    """Format the tables as plain text of 80 columns."""
    parts = []
    for one in filled:
        table = grid("", "from", *one["columns"])
        digits = _digits(one)
        for row, first in _with_first(one["rows"]):
            cells = [_cell(cell, places, "\n") for cell, places in zip(row["cells"], digits)]
            table.add_row(row["title"] if first else "", row["from"], *cells)
        parts.append("\n".join([fold(one["title"]), "", render(table)]) + _below(one))
    return "\n".join(parts)


def _below(one: Mapping[str, Any]) -> str:
    """Return the lines below a table: what the paper's numbers are, and what differs."""
    lines = [_published(one), *(f"- {sentence}" for sentence in one["differs"])]
    return "\n".join(map(fold, lines)) + "\n"


def _published(one: Mapping[str, Any]) -> str:
    return f"paper: {SOURCE}, {MODEL}, {one['trials']}, without intervals. Measured: 95% intervals and n."


def markdown_tables(filled: Sequence[Mapping[str, Any]]) -> str:
    """Format the tables as Markdown, for a paper or a README."""
    parts = []
    for one in filled:
        columns = [column.replace("\n", "") for column in one["columns"]]
        lines = [
            f"**{one['title']}**",
            "",
            "| " + " | ".join(["", "from", *columns]) + " |",
            "|---" * 2 + "|---:" * len(columns) + "|",
        ]
        for row in one["rows"]:
            cells = [_cell(cell, places, " ") for cell, places in zip(row["cells"], _digits(one))]
            lines.append("| " + " | ".join([row["title"], row["from"], *cells]) + " |")
        lines += ["", _published(one), "", *(f"- {sentence}" for sentence in one["differs"])]
        parts.append("\n".join(lines).rstrip() + "\n")
    return "\n".join(parts)


def _with_first(rows: Sequence[Mapping[str, Any]]) -> Iterable[tuple[Mapping[str, Any], bool]]:
    """Yield each row, and whether it is the first of its arm."""
    before = None
    for row in rows:
        yield row, row["arm"] != before
        before = row["arm"]


def _digits(one: Mapping[str, Any]) -> tuple[int, ...]:
    return PAPER_TABLES[one["table"]].digits or (1,) * len(one["columns"])


def _cell(cell: Mapping[str, Any] | None, digits: int, between: str) -> str:
    """Format `73.0`, and below or after it `64–81 (n = 100)` if it was measured."""
    if cell is None:
        return "–"
    text = number_text(cell["value"], digits)
    if "n" not in cell:
        return text
    if cell["low"] is None:
        return f"{text}{between}(n = {cell['n']})"
    shown = max(digits - 1, 0)
    bounds = f"{number_text(cell['low'], shown)}–{number_text(cell['high'], shown)}"
    return f"{text}{between}{bounds}{between}n = {cell['n']}"
