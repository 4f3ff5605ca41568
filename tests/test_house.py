"""How the code is built (docs/explanation/design.md): levels of rooms, sizes, names, line lengths, number of settings.

Every check is a function of a folder of code. It is applied to `src/roboalign`, some also to the code around it, and to
a small tree that violates it.
"""

import ast
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from roboalign.run.recipe import Recipe

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "roboalign"
AROUND = [ROOT / name for name in ("tests", "plugins", "benchmarks", "studies", "tools")]
LEVELS = [
    {"core", "__init__"},
    {"actions"},
    {"episodes", "mllm", "sim"},
    {"conversations"},
    {"questions"},
    {"mixture"},
    {"align", "vla"},
    {"evaluate", "online"},
    {"serve"},
    {"trial"},
    {"bench", "harness", "report"},
    {"run"},
    {"plan"},
    {"cli"},
    {"__main__"},
]
HOOKS = {"main", "add_options"}
"""Names that may occur in several modules: a program's entry, and what each verb of the CLI defines."""
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FOLDER = 4200
COLUMNS = 100
WIDE_SHARE = 0.05
MOST_SETTINGS = 295
SQL = re.compile(
    r"\b(SELECT|INSERT INTO|DELETE FROM|CREATE (TABLE|INDEX)|PRAGMA)\b|\bUPDATE \w+ SET\b"
    r"|\bsqlite3\b|\.execute(many|script)?\("
)
SQL_PLACES = {"mixture/database.py", "mixture/store.py"}
"""The class of every query, `SampleStore`, and its base, which opens the files."""


def modules_of(source: Path) -> dict[str, Path]:
    """Dotted name below the package -> file, `__init__` for the package itself."""
    names = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return names


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name or "") of every import from the package, wherever in the file it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (alias.name.removeprefix("roboalign."), "")
                for alias in node.names
                if alias.name.startswith("roboalign.")
            )
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            if (node.module or "").split(".")[0] == "roboalign":
                module = (node.module or "").removeprefix("roboalign").removeprefix(".")
                yield from ((module, alias.name) for alias in node.names)


def level_of(room: str) -> int:
    for level, rooms in enumerate(LEVELS):
        if room in rooms:
            return level
    raise AssertionError(
        f"room {room!r} has no level: add it to docs/explanation/design.md and to this test"
    )


def climbing_imports(source: Path) -> list[str]:
    """Imports of a room on the same level or above, also those inside functions."""
    climbing = []
    for module, path in modules_of(source).items():
        room = module.split(".")[0]
        for target, name in imported(ast.parse(path.read_text())):
            other = (target or name).split(".")[0]
            if other in (room, "__version__") or room == "__init__":
                continue
            if level_of(other) >= level_of(room):
                climbing.append(f"{path.relative_to(source)} imports {other}")
    return climbing


def import_circle(source: Path) -> list[str]:
    """The modules of one circle of imports, first and last equal; empty where there is none."""
    modules = modules_of(source)
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        targets = set()
        for target, name in imported(ast.parse(path.read_text())):
            below = f"{target}.{name}" if target else name
            targets.add(below if below in modules else target)
        graph[module] = (targets & set(modules)) - {module}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def long_files(source: Path) -> list[str]:
    return [
        f"{path.relative_to(source)}: {count} lines"
        for path in sorted(source.rglob("*.py"))
        if (count := len(lines_of(path))) > MOST_LINES_OF_A_FILE
    ]


def imported_test_modules(folder: Path) -> list[str]:
    """Imports of a file test_*.py: what tests share is in modules of other names."""
    tests = {path.stem for path in folder.rglob("test_*.py")}
    found = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
            targets = {part for name in names for part in name.split(".")} & tests
            found += [f"{path.relative_to(folder)} imports {name}" for name in sorted(targets)]
    return found


def large_folders(source: Path) -> list[str]:
    """Folders whose own files, without those of their subfolders, have too many lines."""
    counts: Counter[Path] = Counter()
    for path in source.rglob("*.py"):
        counts[path.parent] += len(lines_of(path))
    return [
        f"{folder.relative_to(source)}: {count} lines"
        for folder, count in sorted(counts.items())
        if count > MOST_LINES_OF_A_FOLDER
    ]


def public_names(tree: ast.Module) -> set[str]:
    """What a module defines at its top level, inside `if` and `try` too; imports do not count."""
    names: set[str] = set()
    statements = list(tree.body)
    while statements:
        node = statements.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for part in (part for target in targets for part in ast.walk(target)):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    names.add(part.id)
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            statements += [child for child in ast.walk(node) if isinstance(child, ast.stmt)][1:]
    return {name for name in names if not name.startswith("_")} - HOOKS


def names_defined_twice(source: Path) -> list[str]:
    places = defaultdict(list)
    for module, path in modules_of(source).items():
        for name in public_names(ast.parse(path.read_text())):
            places[name].append(module)
    return [f"{name}: {', '.join(at)}" for name, at in sorted(places.items()) if len(at) > 1]


def format_markers(source: Path) -> list[str]:
    """Comments that switch the formatter off."""
    found = []
    for path in sorted(source.rglob("*.py")):
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                words = token.string.strip("# ").replace(" ", "")
                if token.type == tokenize.COMMENT and words.startswith(("fmt:", "yapf:")):
                    found.append(f"{path.relative_to(source)}:{token.start[0]}")
    return found


def share_of_wide_lines(source: Path) -> float:
    lines = [line for path in source.rglob("*.py") for line in lines_of(path)]
    return sum(len(line) > COLUMNS for line in lines) / len(lines)


def sql_elsewhere(source: Path) -> list[str]:
    """Modules of the mixture and its questions that ask a database themselves."""
    paths = [path for room in ("mixture", "questions") for path in (source / room).rglob("*.py")]
    return [
        name
        for path in sorted(paths)
        if (name := str(path.relative_to(source))) not in SQL_PLACES
        and SQL.search(path.read_text())
    ]


def settings_count(schema: dict[str, Any]) -> int:
    """Keys with a value of their own.

    A settings class that several sections share counts once, as for a reader who knows `rl` and so `distill.rl`. A
    benchmark's section is written out in the schema and counts where it is.
    """

    def own(node: dict[str, Any]) -> int:
        fields = node.get("properties", {}).values()
        sections = [field for field in fields if "properties" in field]
        values = [
            field
            for field in fields
            if "properties" not in field
            and not any("$ref" in option for option in field.get("anyOf", [field]))
        ]
        return len(values) + sum(map(own, sections))

    return own(schema) + sum(map(own, schema.get("$defs", {}).values()))


def tree_of(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_imports_run_downwards(tmp_path: Path) -> None:
    assert climbing_imports(SOURCE) == []
    wrong = {
        "core/a.py": "def f():\n    from roboalign.sim.base import Task\n",
        "sim/base.py": "from roboalign.core import a\nimport roboalign.mllm.load\nfrom roboalign import core, vla\n",
        "align/b.py": "from roboalign.align.c import d\nfrom roboalign import __version__\n",
    }
    assert climbing_imports(tree_of(tmp_path, wrong)) == [
        "core/a.py imports sim",
        "sim/base.py imports mllm",
        "sim/base.py imports vla",
    ]
    with pytest.raises(AssertionError, match="room 'attic' has no level"):
        climbing_imports(tree_of(tmp_path, {"attic/a.py": "import roboalign.core.files\n"}))


def test_no_import_runs_in_a_circle(tmp_path: Path) -> None:
    assert import_circle(SOURCE) == []
    straight = {"core/a.py": "from roboalign.core import b\n", "core/b.py": "B = 1\n"}
    assert import_circle(tree_of(tmp_path, straight)) == []
    circle = import_circle(tree_of(tmp_path, {"core/b.py": "from roboalign.core.a import A\n"}))
    assert circle[0] == circle[-1] and set(circle) == {"core.a", "core.b"}


def test_no_file_and_no_folder_is_too_long(tmp_path: Path) -> None:
    for folder in (SOURCE, *AROUND):
        assert long_files(folder) == []
    assert large_folders(SOURCE) == []
    files = {f"sim/file_{index}.py": "a = 1\n" * 400 for index in range(11)}
    tree = tree_of(tmp_path, {**files, "core/a.py": "a = 1\n" * 401})
    assert long_files(tree) == ["core/a.py: 401 lines"]
    assert large_folders(tree) == ["sim: 4400 lines"]


def test_no_test_module_is_imported(tmp_path: Path) -> None:
    for folder in AROUND:
        assert imported_test_modules(folder) == []
    files = {
        "a/test_a.py": "from shapes import test_b\nimport numpy.testing\n",
        "a/test_b.py": "def f():\n    import test_a as a\n",
        "b/c.py": "from a.test_a import talks\nfrom tests.a import test_b\n",
        "b/test_d.py": "from numpy import test_this\nimport c\n",
    }
    assert imported_test_modules(tree_of(tmp_path, files)) == [
        "a/test_a.py imports test_b",
        "a/test_b.py imports test_a",
        "b/c.py imports test_a",
        "b/c.py imports test_b",
    ]


def test_no_public_name_is_defined_twice(tmp_path: Path) -> None:
    assert names_defined_twice(SOURCE) == []
    files = {
        "core/a.py": "SIZE, width = 1, 2\ndef read(): ...\ndef _own(): ...\ndef main(): ...\n",
        "sim/b.py": "from roboalign.core.a import read\nclass width: ...\ndef _own(): ...\ndef main(): ...\n",
        "sim/c.py": "try:\n    SIZE: int = 3\nexcept ValueError:\n    pass\nother = {width for width in ()}\n",
    }
    tree = tree_of(tmp_path, files)
    assert names_defined_twice(tree) == ["SIZE: core.a, sim.c", "width: core.a, sim.b"]


def test_nothing_switches_the_formatter_off(tmp_path: Path) -> None:
    for folder in ("src", "tests", "tools", "benchmarks", "studies"):
        assert format_markers(ROOT / folder) == []
    marked = {"core/a.py": '"# fmt: skip"\nb = 2  # fmt: skip\n# the fmt: none\n# fmt:off\n'}
    assert format_markers(tree_of(tmp_path, marked)) == ["core/a.py:2", "core/a.py:4"]


def test_few_lines_are_wide(tmp_path: Path) -> None:
    assert share_of_wide_lines(SOURCE) <= WIDE_SHARE
    lines = ["x" * COLUMNS] * 3 + ["x" * (COLUMNS + 1)]
    assert share_of_wide_lines(tree_of(tmp_path, {"core/a.py": "\n".join(lines)})) == 0.25


def test_one_class_asks_the_database_of_a_mixture(tmp_path: Path) -> None:
    assert sql_elsewhere(SOURCE) == []
    assert all(SQL.search((SOURCE / name).read_text()) for name in SQL_PLACES)
    files = {
        "mixture/store.py": "import sqlite3\n",
        "mixture/draw.py": "count = index.number('SELECT count(*) FROM kept')\n",
        "mixture/sources/a.py": "db.executemany(query, rows)\n",
        "questions/b.py": "# Select the frames and insert into what is drawn\nupdate = 1\n",
    }
    assert sql_elsewhere(tree_of(tmp_path, files)) == ["mixture/draw.py", "mixture/sources/a.py"]


def test_a_recipe_has_a_number_of_settings_that_can_be_read() -> None:
    class Inner(BaseModel):
        a: int = 1
        b: list[str] = []

    class Outer(BaseModel):
        first: Inner
        second: Inner | None = None
        sizes: dict[str, int] = {}

    assert settings_count(Outer.model_json_schema()) == 3
    written_out = {"properties": {"a": {"properties": {"b": {}, "c": {}}}, "d": {}}}
    assert settings_count(written_out) == 3
    assert settings_count(Recipe.model_json_schema()) <= MOST_SETTINGS
