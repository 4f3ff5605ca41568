"""The checks of docs/reference/backbones.md, run again: a class that stops passing one fails here with the reason."""

from pathlib import Path

import pytest
from backbone_checks import CHECKS, run_check
from backbone_page import INTRODUCTION, PRESET_TEXT, page

from roboalign.mllm.tiny_classes import BUILDERS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "backbones.md"


def committed() -> dict[str, dict[str, str]]:
    """check -> class -> cell, as the committed page has them."""
    rows = [
        line
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ") and "`" not in line.split("|")[1]
    ]
    cells = {row.split(" | ")[0].removeprefix("| "): _cells(row) for row in rows}
    return {check: dict(zip(BUILDERS, cells[check], strict=True)) for check in CHECKS}


def _cells(row: str) -> list[str]:
    return [cell.replace("\\|", "|") for cell in row.removesuffix(" |").split(" | ")[1:]]


@pytest.mark.parametrize("name", BUILDERS)
def test_each_check_ends_as_the_page_says(name: str, tmp_path: Path) -> None:
    found = {title: run_check(check, name, tmp_path) for title, check in CHECKS.items()}
    assert found == {title: row[name] for title, row in committed().items()}


def test_the_page_is_what_the_module_writes() -> None:
    meanings = {title: check.__doc__ or "" for title, check in CHECKS.items()}
    assert page(committed(), meanings) == PAGE.read_text(), (
        "run `python tests/backbones/backbone_checks.py` again"
    )


def test_a_failing_check_is_shown_as_failing_with_its_reason(tmp_path: Path) -> None:
    def broken(name: str, folder: Path) -> str:
        raise ValueError("the image is not seen\nand more")

    cell = run_check(broken, "llava", tmp_path)
    assert cell == "**fails**: the image is not seen"
    written = page(
        {"hidden": dict.fromkeys(BUILDERS, "passes") | {"llava": cell}},
        {"hidden": "What it checks."},
    )
    assert (
        "| hidden | passes | passes | passes | **fails**: the image is not seen | passes |"
        in written
    )
    assert INTRODUCTION in written and PRESET_TEXT in written
