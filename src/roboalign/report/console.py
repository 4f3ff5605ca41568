"""Plain text for a terminal of 80 columns: folded lines, and tables without a frame."""

import textwrap

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

TERMINAL_WIDTH = 80
"""Columns of a terminal as it opens; wider tables are for the report."""
_DEEPER = "  "


def fold(text: str, *, width: int = TERMINAL_WIDTH) -> str:
    """The same text in lines of at most `width` columns, broken between words.

    What continues a line is indented two columns deeper than the line. A word that is longer than a line, such as a
    path, stays whole.
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
    """A table to fill with `add_row`: a line below its head, two columns of space between cells."""
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
    """The table as text that ends with a line break, without color and without spaces at the ends of lines."""
    console = Console(width=width, no_color=True, highlight=False, markup=False)
    if table.title and isinstance(table.title, str):
        table.title = Text(table.title)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
