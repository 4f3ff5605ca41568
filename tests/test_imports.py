"""Imports run downwards only (docs/explanation/design.md): a room never imports a room beside it or above it."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "roboalign"
LEVELS = [
    {"core", "__init__"},
    {"actions"},
    {"episodes", "mllm", "sim"},
    {"conversations"},
    {"questions"},
    {"mixture"},
    {"align", "vla"},
    {"evaluate"},
    {"serve"},
    {"report"},
    {"run"},
    {"plan"},
    {"cli"},
    {"__main__"},
]


def room_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def level_of(room: str) -> int:
    found = [index for index, rooms in enumerate(LEVELS) if room in rooms]
    assert found, (
        f"room {room!r} has no level: add it to docs/explanation/design.md and to this test"
    )
    return found[0]


def imported_rooms(tree: ast.AST) -> set[str]:
    rooms = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "relative imports hide the direction"
            names = (
                [node.module]
                if node.module != "roboalign"
                else [f"roboalign.{a.name}" for a in node.names]
            )
        rooms |= {name.split(".")[1] for name in names if name.startswith("roboalign.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_imports_run_downwards(path: Path) -> None:
    room = room_of(path)
    for other in imported_rooms(ast.parse(path.read_text())):
        if other == room or room == "__init__":
            continue
        below = level_of(other) < level_of(room)
        assert below, f"{room} imports {other}"


def test_the_check_can_fail() -> None:
    assert imported_rooms(ast.parse("from roboalign.sim.base import Task")) == {"sim"}
    assert level_of("sim") > level_of("actions")
