"""One mutation of one file, decided by a seed."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from fuzz_files import rows_in_hdf5

VALUES: tuple[Any, ...] = (None, True, -1, 0, 2**63, 0.5, "x", "", [], {}, [None], {"x": 1})
"""What a value is replaced by."""
SKIPPED = (".lock", "index.html")
"""Files that no command reads back."""


@dataclass(frozen=True)
class Mutation:
    """What was done to which file. `key`: the path of a changed JSON or YAML value, or the column of a table."""

    kind: str
    file: str
    key: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.file}" + (f" [{'/'.join(self.key)}]" if self.key else "")


def files_of(root: Path) -> list[Path]:
    """What may be mutated, in order."""
    return [p for p in sorted(root.rglob("*")) if p.is_file() and p.name not in SKIPPED]


def mutate(root: Path, seed: int) -> Mutation:
    """Change one file below `root`. The same seed does the same to the same files."""
    rng = random.Random(seed)
    files = files_of(root)
    # A folder first, then a file in it: one file of settings matters as much as twenty of pictures.
    folders = sorted({path.parent for path in files})
    folder = rng.choice(folders)
    path = rng.choice([one for one in files if one.parent == folder])
    named = str(path.relative_to(root))
    kinds = [*WHOLE, *BYTES, *BYTES]
    if changes := CHANGES.get(path.suffix):
        kinds += [*changes] * 4
    for kind in rng.sample(kinds, len(kinds)):
        work = WHOLE.get(kind) or BYTES.get(kind) or (changes or {})[kind]
        key = work(path, rng)
        if key is not None:
            return Mutation(kind, named, key)
    raise AssertionError(f"no mutation fits {path}")


# The whole file ----------------------------------------------------------------------------------


def removed(path: Path, rng: random.Random) -> tuple[str, ...]:
    path.unlink()
    return ()


def emptied(path: Path, rng: random.Random) -> tuple[str, ...]:
    path.write_bytes(b"")
    return ()


def folder_there(path: Path, rng: random.Random) -> tuple[str, ...]:
    path.unlink()
    path.mkdir()
    return ()


def dead_link(path: Path, rng: random.Random) -> tuple[str, ...]:
    path.unlink()
    path.symlink_to("nowhere")
    return ()


def circle(path: Path, rng: random.Random) -> tuple[str, ...]:
    path.unlink()
    path.symlink_to(path.name)
    return ()


def fifo(path: Path, rng: random.Random) -> tuple[str, ...]:
    path.unlink()
    os.mkfifo(path)
    return ()


# Bytes -------------------------------------------------------------------------------------------


def changed(path: Path, rng: random.Random, change: Callable[[bytearray, int], None]) -> Any:
    data = bytearray(path.read_bytes())
    if not data:
        return None
    before = bytes(data)
    change(data, rng.randrange(len(data)))
    if bytes(data) == before:
        return None
    replace(path, bytes(data))
    return ()


def replace(path: Path, data: bytes) -> None:
    """A new file of the name, so that hard links to the sound one are not touched."""
    path.unlink()
    path.write_bytes(data)


def bit(path: Path, rng: random.Random) -> Any:
    def change(data: bytearray, at: int) -> None:
        data[at] ^= 1 << rng.randrange(8)

    return changed(path, rng, change)


def bits(path: Path, rng: random.Random) -> Any:
    def change(data: bytearray, at: int) -> None:
        for _ in range(8):
            data[at] ^= 1 << rng.randrange(8)
            at = min(at + rng.randrange(1, 40), len(data) - 1)

    return changed(path, rng, change)


def cut(path: Path, rng: random.Random) -> Any:
    def change(data: bytearray, at: int) -> None:
        del data[at:]

    return changed(path, rng, change)


def zeros(path: Path, rng: random.Random) -> Any:
    def change(data: bytearray, at: int) -> None:
        end = min(at + 64, len(data))
        data[at:end] = bytes(end - at)

    return changed(path, rng, change)


def length_field(path: Path, rng: random.Random) -> Any:
    """Four or eight bytes, in the first or last 256 where files keep their lengths, become a huge number."""

    def change(data: bytearray, at: int) -> None:
        at = at % min(len(data), 256)
        at = len(data) - at if rng.random() < 0.5 else at
        width = rng.choice((4, 8))
        data[at : at + width] = (rng.choice((2**31 - 1, 2**31, 2**32 - 1))).to_bytes(
            width, "little"
        )

    return changed(path, rng, change)


def appended(path: Path, rng: random.Random) -> Any:
    def change(data: bytearray, at: int) -> None:
        data += bytes(rng.randrange(256) for _ in range(32))

    return changed(path, rng, change)


# JSON and YAML -----------------------------------------------------------------------------------


def spots(value: Any, key: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a value."""
    inner: list[tuple[Any, ...]] = []
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = list(enumerate(value))[:20]
    for name, one in items:
        inner += [(*key, name), *spots(one, (*key, name))]
    return inner


def edited(document: Any, rng: random.Random, edit: Callable[[Any, Any], bool]) -> Any:
    """Change one value in place; its path, or None where nothing fits."""
    places = spots(document)
    for key in rng.sample(places, len(places)):
        parent = document
        for name in key[:-1]:
            parent = parent[name]
        if edit(parent, key[-1]):
            return tuple(map(str, key))
    return None


def other_type(rng: random.Random) -> Callable[[Any, Any], bool]:
    def edit(parent: Any, name: Any) -> bool:
        there = parent[name]
        parent[name] = rng.choice([one for one in VALUES if type(one) is not type(there)])
        return True

    return edit


def without(parent: Any, name: Any) -> bool:
    if not isinstance(parent, dict):
        return False
    del parent[name]
    return True


def in_document(
    load: Callable[[str], Any], dump: Callable[[Any], str], edit: Callable[[random.Random], Any]
) -> Callable[[Path, random.Random], Any]:
    def work(path: Path, rng: random.Random) -> Any:
        document = load(path.read_text())
        key = edited(document, rng, edit(rng))
        if key is not None:
            replace(path, dump(document).encode())
        return key

    return work


def key_doubled(path: Path, rng: random.Random) -> Any:
    """A second value for a key, right after the first."""
    lines = path.read_text().splitlines()
    places = [
        n for n, line in enumerate(lines) if ":" in line and not line.lstrip().startswith("#")
    ]
    if not places or path.suffix == ".json":
        text = path.read_text()
        place = text.find('": ')
        start = text.rfind('"', 0, place) if place > 0 else -1
        if start < 0:
            return None
        name = text[start + 1 : place]
        replace(path, (text[:start] + f'"{name}": null, ' + text[start:]).encode())
        return (name,)
    at = rng.choice(places)
    lines.insert(at, lines[at].split(":")[0] + ": 1")
    replace(path, ("\n".join(lines) + "\n").encode())
    return (lines[at].split(":")[0].strip(),)


def in_lines(
    change: Callable[[list[str], int, random.Random], Any],
) -> Callable[[Path, random.Random], Any]:
    def work(path: Path, rng: random.Random) -> Any:
        lines = path.read_text().splitlines()
        if not lines:
            return None
        before = list(lines)
        key = change(lines, rng.randrange(len(lines)), rng)
        if lines == before:
            return None
        replace(path, ("\n".join(lines) + "\n").encode())
        return key or ()

    return work


def line_removed(lines: list[str], at: int, rng: random.Random) -> None:
    del lines[at]


def line_doubled(lines: list[str], at: int, rng: random.Random) -> None:
    lines.insert(at, lines[at])


def lines_swapped(lines: list[str], at: int, rng: random.Random) -> None:
    lines[at], lines[at - 1] = lines[at - 1], lines[at]


def line_value(lines: list[str], at: int, rng: random.Random) -> Any:
    document = json.loads(lines[at])
    key = edited(document, rng, other_type(rng))
    lines[at] = json.dumps(document)
    return key


def line_key(lines: list[str], at: int, rng: random.Random) -> Any:
    document = json.loads(lines[at])
    key = edited(document, rng, lambda parent, name: without(parent, name))
    lines[at] = json.dumps(document)
    return key


# Tables ------------------------------------------------------------------------------------------


def in_table(
    change: Callable[[pa.Table, random.Random], tuple[pa.Table, tuple[str, ...]]],
) -> Callable[[Path, random.Random], Any]:
    def work(path: Path, rng: random.Random) -> Any:
        table = pq.read_table(path)
        if not table.num_rows or not table.num_columns:
            return None
        try:
            new, key = change(table, rng)
        except pa.ArrowNotImplementedError:  # a column without any value cannot be reordered
            return None
        if new.equals(table):
            return None
        path.unlink()
        pq.write_table(new, path)
        return key

    return work


def row_removed(table: pa.Table, rng: random.Random) -> tuple[pa.Table, tuple[str, ...]]:
    at = rng.randrange(table.num_rows)
    return table.take([n for n in range(table.num_rows) if n != at]), ()


def row_doubled(table: pa.Table, rng: random.Random) -> tuple[pa.Table, tuple[str, ...]]:
    at = rng.randrange(table.num_rows)
    return table.take(sorted([*range(table.num_rows), at])), ()


def rows_reordered(table: pa.Table, rng: random.Random) -> tuple[pa.Table, tuple[str, ...]]:
    return table.take(rng.sample(range(table.num_rows), table.num_rows)), ()


def column_removed(table: pa.Table, rng: random.Random) -> tuple[pa.Table, tuple[str, ...]]:
    name = rng.choice(table.column_names)
    return table.drop_columns([name]), (name,)


def column_null(table: pa.Table, rng: random.Random) -> tuple[pa.Table, tuple[str, ...]]:
    name = rng.choice(table.column_names)
    at, values = rng.randrange(table.num_rows), table[name].to_pylist()
    values[at] = None
    column = pa.array(values, table.schema.field(name).type)
    return table.set_column(table.column_names.index(name), name, column), (name,)


def column_text(table: pa.Table, rng: random.Random) -> tuple[pa.Table, tuple[str, ...]]:
    name = rng.choice(table.column_names)
    column = pa.array([str(value)[:20] for value in table[name].to_pylist()])
    return table.set_column(table.column_names.index(name), name, column), (name,)


def hdf5_row(path: Path, rng: random.Random) -> tuple[str, ...]:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    path.unlink()
    copy.rename(path)
    rows_in_hdf5(path, rng.randrange(6))
    return ("actions",)


WHOLE = {
    "file removed": removed,
    "file emptied": emptied,
    "file is a folder": folder_there,
    "file is a dead link": dead_link,
    "file links to itself": circle,
    "file is a pipe": fifo,
}
BYTES = {
    "bit flipped": bit,
    "bits flipped": bits,
    "file cut": cut,
    "block zeroed": zeros,
    "length field": length_field,
    "bytes appended": appended,
}
LINES = {
    "row removed": in_lines(line_removed),
    "row doubled": in_lines(line_doubled),
    "rows reordered": in_lines(lines_swapped),
    "value of another type": in_lines(line_value),
    "key removed": in_lines(line_key),
}
CHANGES: dict[str, dict[str, Callable[[Path, random.Random], Any]]] = {
    ".json": {
        "value of another type": in_document(json.loads, json.dumps, other_type),
        "key removed": in_document(json.loads, json.dumps, lambda rng: without),
        "key doubled": key_doubled,
    },
    ".jsonl": LINES,
    ".yaml": {
        "value of another type": in_document(yaml.safe_load, yaml.safe_dump, other_type),
        "key removed": in_document(yaml.safe_load, yaml.safe_dump, lambda rng: without),
        "key doubled": key_doubled,
    },
    ".parquet": {
        "row removed": in_table(row_removed),
        "row doubled": in_table(row_doubled),
        "rows reordered": in_table(rows_reordered),
        "column removed": in_table(column_removed),
        "null in a column": in_table(column_null),
        "column as text": in_table(column_text),
    },
    ".hdf5": {"row removed": hdf5_row},
}
