"""Format the inspection of a robot data set as text for a terminal."""

from roboalign.episodes.survey.measures import Dimension
from roboalign.episodes.survey.statistics import Survey
from roboalign.report.attention import attention
from roboalign.report.console import fold, grid, render
from roboalign.report.inspection import (
    _facts,
    camera_table,
    dimension_table,
    fault_table,
    instruction_table,
    repeat_table,
    token_table,
)
from roboalign.report.tables import Table

EXTENT = ("Dimension", "minimum", "q01", "q99", "maximum", "outliers", "remark")
"""The columns of a dimension that fit into 80 columns of text."""


def inspection_text(survey: Survey) -> str:
    """Return the facts, findings and tables as text of 80 columns, without figures; only the page
    has every column."""
    found = attention(survey) or ["Nothing that this inspection looks for."]
    tables = (
        _extent_table(survey.action, survey, "action"),
        _extent_table(survey.state, survey, "state"),
        token_table(survey),
        camera_table(survey),
        instruction_table(survey),
        repeat_table(survey),
        fault_table(survey),
    )
    lines = [survey.name, *(f"  {name}: {fact}" for name, fact in _facts(survey))]
    lines += ["", "What needs attention", *(f"- {sentence}" for sentence in found)]
    for table in tables:
        if table is not None:
            lines += ["", _text_table(table).rstrip(), table.caption]
    return fold("\n".join(lines)) + "\n"


def _text_table(table: Table) -> str:
    shown = grid(*table.columns)
    for head, cells in table.rows:
        shown.add_row(
            head, *("\n".join(part for part in (cell.text, cell.small) if part) for cell in cells)
        )
    return render(shown)


def _extent_table(found: list[Dimension], survey: Survey, what: str) -> Table | None:
    """Return `dimension_table` with only the columns that fit into 80 columns of text."""
    table = dimension_table(found, survey, what)
    if table is None:
        return None
    kept = [place for place, name in enumerate(table.columns) if name in EXTENT]
    columns = tuple(table.columns[place] for place in kept)
    rows = [(head, [cells[place - 1] for place in kept if place]) for head, cells in table.rows]
    caption = (
        f"Raw units of the {what}; the page has medians, means and shares at the limits too. Outliers "
        "are beyond 3 times q99 − q01 outside of these two."
    )
    return Table(caption, columns, rows)
