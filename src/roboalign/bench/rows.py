"""Read the rows of a benchmark from where the user has its files: parquet, or JSON with images.

Nothing of a data set is executed or unpickled: Arrow's parquet, JSON, and image files.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_readable, read_json, read_jsonl
from roboalign.episodes.pictures import read_picture_file

_BATCH = 64


@dataclass(frozen=True)
class BenchRow:
    """One row of a file."""

    values: dict[str, Any]
    file: Path
    number: int
    """Its place in the file, from 0."""

    @property
    def split(self) -> str:
        """Return the split in the file's name: `context` of `context-00000-of-00001.parquet`."""
        return re.split(r"[-.]", self.file.name)[0]

    @property
    def where(self) -> str:
        """Return where the row is, for messages."""
        return f"{self.file}, row {self.number}"

    def text(self, column: str) -> str:
        """Return a column that holds text (a number becomes text)."""
        value = self.values.get(column)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.wrong(column, "text")
        return str(value)

    def texts(self, column: str) -> list[str]:
        """Return a column that holds a list of texts."""
        value = self.values.get(column)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(column, "a list of texts")
        return list(value)

    def whole(self, column: str, below: int) -> int:
        """Return a column that holds a whole number from 0 to before `below`."""
        value = self.values.get(column)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
            raise self.wrong(column, f"a whole number from 0 to {below - 1}")
        return value

    def letter(self, column: str, letters: str) -> str:
        """Return a column that holds one of `letters`, alone or as `(B)`."""
        value = self.values.get(column)
        said = value.strip().strip("()").strip().upper() if isinstance(value, str) else ""
        if len(said) != 1 or said not in letters:
            raise self.wrong(column, f"one of the letters {letters}")
        return said

    def picture(self, column: str) -> bytes:
        """Return the bytes of a column's image file, stored in the row or named by it."""
        return self._bytes(self.values.get(column), column)

    def pictures(self, column: str) -> tuple[bytes, ...]:
        """Return the images of a column that holds a list of them."""
        value = self.values.get(column)
        if not isinstance(value, list) or not value:
            raise self.wrong(column, "a list of images")
        return tuple(self._bytes(one, column) for one in value if one is not None)

    def wrong(self, column: str, wanted: str) -> RoboAlignError:
        """Return the error for a column that holds something else."""
        given = repr(self.values.get(column))[:80]
        return RoboAlignError(
            f"`{column}` is not {wanted}, but {given}",
            where=self.where,
            fix="use the benchmark's own files, or correct the row",
        )

    def _bytes(self, value: Any, column: str) -> bytes:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return value
        if isinstance(value, str) and value:
            return read_picture_file(self.file.parent / value, self.file.parent)
        raise self.wrong(column, "an image")


def bench_rows(root: Path, patterns: Sequence[str], columns: Sequence[str]) -> Iterator[BenchRow]:
    """Yield the rows of the files of a benchmark, file by file in the order of `patterns`.

    `root` is a folder, in which `patterns` are looked for at any depth, or one file. Raises
    RoboAlignError if there is no such file, if one cannot be read, or if it lacks one of `columns`.
    """
    for file in _files_of(root, patterns):
        rows = _parquet(file) if file.suffix == ".parquet" else _json(file)
        for number, values in enumerate(rows):
            if missing := [name for name in columns if name not in values]:
                raise RoboAlignError(
                    f"it has no column {', '.join(f'`{name}`' for name in missing)}; it has "
                    f"{', '.join(sorted(values))}",
                    where=str(file),
                    fix="give the benchmark's own files",
                )
            yield BenchRow(values, file, number)


def _files_of(root: Path, patterns: Sequence[str]) -> list[Path]:
    if root.is_file():
        return [root]
    found = [path for pattern in patterns for path in sorted(root.glob(f"**/{pattern}"))]
    if not found:
        raise RoboAlignError(
            f"no file of the benchmark is here; looked for {', '.join(patterns)}",
            where=str(root),
            fix="give the folder into which the data set was downloaded, or the file itself",
        )
    return list(dict.fromkeys(found))


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    check_readable(file)
    try:
        for batch in pq.ParquetFile(file).iter_batches(_BATCH):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise RoboAlignError(
            f"not a readable parquet file ({said})", where=str(file), fix="download it again"
        ) from None


def _json(file: Path) -> Iterator[dict[str, Any]]:
    if file.suffix == ".jsonl":
        check_readable(file)
        with file.open("rb") as stream:
            stream.seek(0, 2)
            size = stream.tell()
            stream.seek(max(0, size - 1))
            ended = stream.read() == b"\n"
        rows = read_jsonl(file)
        if not ended and size:
            rows.append(_last_line(file))
    else:
        rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RoboAlignError(
            "it is no list of mappings", where=str(file), fix="write one item a line, or a list"
        )
    yield from rows


def _last_line(file: Path) -> dict[str, Any]:
    """Return the last line of a file that other people wrote without a final newline."""
    line = file.read_text(encoding="utf-8").rpartition("\n")[2]
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        raise RoboAlignError(
            "its last line is not JSON", where=str(file), fix="download it again"
        ) from None
    return row
