"""The section of docs/how-to/when-serving-fails.md that shows what robot and operator see.

python -m tools.failure_page runs every case and writes it into the page.
"""

from collections.abc import Callable
from pathlib import Path

from tools.failure_cases import CASES, Stage, run

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "when-serving-fails.md"
HEADING = "## The cases"
LEFT_OUT = ("[serve]   ", "[serve] warming up")
"""Lines that every server prints before it answers."""


def section(title: str, case: Callable[[Stage], None], stage: Stage) -> str:
    """A case as Markdown."""
    what = " ".join((case.__doc__ or "").split())
    operator = [line for line in stage.operator if not line.startswith(LEFT_OUT)]
    sides = [("Robot", stage.robot), ("Operator", operator)]
    shown = [f"{side}:\n\n```text\n" + "\n".join(lines) + "\n```\n" for side, lines in sides]
    return "\n".join([f"### {title}\n", f"{what}\n", *shown])


def main() -> None:
    """Write the page."""
    written = PAGE.read_text().split(HEADING)[0]
    sections = [section(title, case, run(case)) for title, case in CASES.items()]
    PAGE.write_text("\n".join([f"{written}{HEADING}\n", *sections]))


if __name__ == "__main__":
    main()
