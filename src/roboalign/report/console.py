"""Format plain text for a terminal of 80 columns: folded lines, and tables without a frame."""

import textwrap

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

TERMINAL_WIDTH = 80
"""Default width of a terminal, in columns; wider tables belong in the report."""
_DEEPER = "  "


def fold(text: str, *, width: int = TERMINAL_WIDTH) -> str:
    """Fold the text into lines of at most `width` columns, broken between words.

    Continuation lines are indented two columns deeper than their first line. A word longer than a
    line, such as a path, stays whole.
    """
    return "\n".join(_fold_line(line, width) for line in text.split("\n"))


def _fold_line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line,
        width,
        subsequent_indent=indent + _DEEPER,
        break_long_words=False,
        break_on_hyphens=False,
    )


def grid(*columns: str, title: str | None = None) -> Table:
    """Return an empty table to fill with `add_row`: a rule below its head, two columns of space
    between cells."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def render(table: Table, *, width: int = TERMINAL_WIDTH) -> str:
    """Render the table as text that ends with a line break, without color and without trailing
    spaces."""
    console = Console(width=width, no_color=True, highlight=False, markup=False)
    if table.title and isinstance(table.title, str):
        table.title = Text(table.title)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
