"""Read the records of a question-answering file, one at a time.

JSON arrays, JSON lines and parquet are supported. Only one record is in memory, whatever the file's
size.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault

CHUNK = 1 << 20
_LONGEST = 64 << 20
"""Maximum characters of one record; a file with a longer one counts as broken."""
_ROWS = 32
"""Parquet rows read at a time: they may contain their images."""
SPACE = " \t\n\r"
QaRecord = dict[str, Any]


@dataclass(frozen=True)
class QaColumns:
    """The field names of a layout in one data set."""

    turns: str = ""
    """The list of turns; "" if `question` and `answer` contain the only turn."""
    role: str = "from"
    text: str = "value"
    user: tuple[str, ...] = ("human",)
    assistant: tuple[str, ...] = ("gpt",)
    system: tuple[str, ...] = ()
    images: tuple[str, ...] = ("images", "image")
    """Fields for one image or a list; the first one that a record fills is used."""
    question: str = "question"
    answer: str = "answer"
    id: str = "id"
    anchor: str = ""
    """Only the part of an image path from this folder on is used."""


def records(path: Path, columns: QaColumns) -> Iterator[Any]:
    """Yield the records of a file unchanged, and a Fault for a broken line.

    Raises RoboAlignError on a broken file.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path, columns)
    if suffix in (".jsonl", ".ndjson"):
        return _lines(path)
    if suffix == ".json":
        return _array(path)
    raise RoboAlignError(
        f"unknown file type {suffix!r}", where=str(path), fix="give .json, .jsonl or .parquet"
    )


def _array(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from read_array(file)
    except UnicodeDecodeError as error:
        raise RoboAlignError(
            f"not UTF-8 ({error})", where=str(path), fix="get this file again"
        ) from None
    except RoboAlignError as error:
        raise RoboAlignError(error.problem, where=f"{path}, {error.where}", fix=error.fix) from None


def read_array(file: TextIO, chunk: int = CHUNK) -> Iterator[Any]:
    """Yield the elements of a JSON array one at a time, as `json.load` would return them.

    Only the current element and a chunk are in memory. Raises RoboAlignError if the text is not a
    JSON array, or at a broken element: the next one cannot be located.
    """
    window, count = _Window(file, chunk), 0
    mark = window.take()
    if mark != "[":
        fix = "write one array of records, or one record a line in a .jsonl file"
        raise RoboAlignError(
            f"the file begins with {mark!r}, not with [", where="record 1", fix=fix
        )
    if window.peek() == "]":
        mark = window.take()
    while mark != "]":
        count += 1
        yield window.element(count)
        mark = window.take()
        if mark not in (",", "]"):
            problem = f"{mark!r} behind the record" if mark else "the array is cut short"
            raise RoboAlignError(problem, where=f"record {count}", fix="get this file again")
    if window.peek():
        raise RoboAlignError(
            "more text behind the array", where=f"record {count}", fix="get this file again"
        )


class _Window:
    """Text that has been read from a file but not consumed yet."""

    def __init__(self, file: TextIO, chunk: int) -> None:
        self.file, self.chunk, self.text, self.at, self.ended = file, chunk, "", 0, False
        self.decoder = json.JSONDecoder()

    def more(self) -> None:
        # Incomplete text is parsed again from its start. Reading as much again keeps the total time
        # linear.
        read = self.file.read(max(self.chunk, len(self.text) - self.at))
        self.text, self.at, self.ended = self.text[self.at :] + read, 0, not read

    def peek(self) -> str:
        """Return the next character that is not a space; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in SPACE:
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def take(self) -> str:
        char = self.peek()
        self.at += len(char)
        return char

    def element(self, number: int) -> Any:
        while True:
            if not self.peek():
                raise RoboAlignError(
                    "the array is cut short", where=f"record {number}", fix="get this file again"
                )
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                # A number may continue after the window, and `1.` is read as 1: require a delimiter
                # after an element.
                if self.ended or self.text[end : end + 1] in (*SPACE, ",", "]"):
                    self.at = end
                    return value
                problem = "not valid JSON"
            except RecursionError:
                raise RoboAlignError("nested too deeply", where=f"record {number}") from None
            except ValueError as error:
                problem = f"not valid JSON ({error})"
            if self.ended or len(self.text) - self.at > _LONGEST:
                raise RoboAlignError(
                    problem, where=f"record {number}", fix="get this file again"
                ) from None
            self.more()


def _lines(path: Path) -> Iterator[Any]:
    number = 0
    with path.open("rb") as file:
        while line := file.readline(_LONGEST + 1):
            if len(line) > _LONGEST:
                raise RoboAlignError(
                    f"a line of more than {_LONGEST} bytes", where=f"{path}, line {number + 1}"
                )
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not text:
                continue
            number += 1
            try:
                yield json.loads(text)
            except (ValueError, RecursionError) as error:
                yield Fault(
                    f"{path}, record {number}", f"not valid JSON ({error})", "remove that line"
                )


def _parquet(path: Path, columns: QaColumns) -> Iterator[Any]:
    try:
        # pre_buffer, on by default, keeps everything read from the file until it is closed.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        there = file.schema_arrow.names
        needed = [columns.turns] if columns.turns else [columns.question, columns.answer]
        if missing := [name for name in needed if name not in there]:
            problem = f"no column {', '.join(missing)}; it has {', '.join(there)}"
            raise RoboAlignError(problem, where=str(path), fix="name the fields with columns=")
        wanted = [name for name in there if name in {*needed, columns.id, *columns.images}]
        for batch in file.iter_batches(_ROWS, columns=wanted):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        fix = "download it again"
        raise RoboAlignError(
            f"not a readable parquet file ({error})", where=str(path), fix=fix
        ) from None
