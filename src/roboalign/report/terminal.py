"""The headline table as plain text, for the terminal and for logs."""

from rich.console import Console
from rich.table import Table as RichTable

from roboalign.report.summary import RunSummary
from roboalign.report.tables import arms_table


def format_arms(run: RunSummary, *, width: int = 150) -> str:
    """One arm a row: success and token metrics with their 95% intervals; then what needs no model."""
    table = arms_table(run)
    if table is None:
        return "no arm was run\n"
    grid = RichTable(
        title=run.name, caption=table.caption, padding=0
    )  # else intervals are cut short at this width
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
