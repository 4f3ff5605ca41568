"""Question-answering data in: Hugging Face messages, LLaVA and ShareGPT, from JSON, JSONL and parquet, as `Sample`s.

Files are streamed: what is in memory is one record, whatever the file's size.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.conversations.qa.images import LazyImage, Store, image_of, open_store
from roboalign.conversations.qa.normal import (
    DECIMALS,
    IMAGE_MARK,
    KINDS,
    WRITTEN,
    Sample,
    Style,
    parse_target,
    split_reply,
)
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault, Refused

CHUNK = 1 << 20
LONGEST = 64 << 20
"""Characters of one record; past it a file is taken for broken."""
ROWS = 32
"""Parquet rows read at a time: they may carry their images."""
SPACE = " \t\n\r"
Record = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """What the fields of a layout are called in one data set."""

    turns: str = ""
    """The list of turns; "" where `question` and `answer` hold the one turn."""
    role: str = "from"
    text: str = "value"
    user: tuple[str, ...] = ("human",)
    assistant: tuple[str, ...] = ("gpt",)
    system: tuple[str, ...] = ()
    images: tuple[str, ...] = ("images", "image")
    """The first of these that a record fills: one image or a list."""
    question: str = "question"
    answer: str = "answer"
    id: str = "id"
    anchor: str = ""
    """Of an image path only the part from this folder on counts."""


LAYOUTS = {
    "messages": Columns("messages", "role", "content", ("user",), ("assistant",), ("system",)),
    "llava": Columns("conversations"),
    "sharegpt": Columns(
        "conversations",
        user=("human", "user"),
        assistant=("gpt", "assistant", "model"),
        system=("system",),
    ),
    "pairs": Columns(),
}


@dataclass(frozen=True)
class Answers:
    """How a source writes its answers: which of points, boxes and choice it has, and its coordinate style."""

    kinds: tuple[str, ...] = ()
    style: Style | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - {"points", "boxes", "choice"})
        if (
            unknown
            or (self.style is None and set(self.kinds) - {"choice"})
            or self.style not in (None, *DECIMALS)
        ):
            fix = f"kinds are points, boxes and choice; the first two need a style of {', '.join(DECIMALS)}"
            raise RoboAlignError(
                f"answers of kinds {self.kinds} in the style {self.style}", fix=fix
            )


def read_qa(
    path: str | Path,
    layout: str,
    *,
    columns: Columns | None = None,
    images: str | Path | None = None,
    source: str = "",
    kind: str = "general",
    answers: Answers | None = None,
    prepare: Callable[[Record], Record] | None = None,
) -> Iterator[Sample | Fault]:
    """Every record of a .json (an array), .jsonl or .parquet file, in order; a `Fault` for each that does not fit.

    `layout`: a name of LAYOUTS; `columns` replaces its field names. `images`: the folder, .zip or .tar that image paths
    are relative to; the file's own folder where None. `prepare` changes a record before it is read. A `Fault` names the
    file, the record (counted from 1) and the field. Raises RoboAlignError where the file as a whole cannot be read.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        fix = f"use one of {', '.join(LAYOUTS)}"
        raise RoboAlignError(f"unknown layout {layout!r}", where=str(path), fix=fix)
    if kind not in KINDS:
        raise RoboAlignError(
            f"unknown kind {kind!r}", where=str(path), fix=f"use one of {', '.join(KINDS)}"
        )
    if not path.is_file():
        raise RoboAlignError(
            "the file does not exist", where=str(path), fix="give a .json, .jsonl or .parquet file"
        )
    columns, store = (
        columns or LAYOUTS[layout],
        open_store(path.parent if images is None else images),
    )
    return _samples(
        path,
        records(path, columns),
        columns,
        store,
        source or path.stem,
        kind,
        answers or Answers(),
        prepare,
    )


def _samples(
    path: Path,
    found: Iterator[Any],
    columns: Columns,
    store: Store,
    source: str,
    kind: str,
    answers: Answers,
    prepare: Callable[[Record], Record] | None,
) -> Iterator[Sample | Fault]:
    for number, record in enumerate(found, start=1):
        where = f"{path}, record {number}"
        if isinstance(record, Fault):
            yield record
            continue
        try:
            if not isinstance(record, dict):
                raise RoboAlignError(
                    f"a record is {type(record).__name__}, not an object", where="record"
                )
            record = prepare(record) if prepare else record
            id_ = record.get(columns.id)
            id_ = f"{path.stem}-{number}" if id_ is None or id_ == "" else str(id_)
            system, turns, pictures = read_record(record, columns, store, where)
            targets = tuple(
                _target(question, answer, answers, pictures) for question, answer in turns
            )
            yield Sample(id_, source, pictures, turns, kind, targets, system)
        except RoboAlignError as error:
            yield Fault(
                f"{where}, field {error.where}", error.problem, error.fix or "drop this record"
            )


def _target(question: str, answer: str, answers: Answers, pictures: Sequence[LazyImage]) -> Any:
    answer, size = split_reply(answer)[1], None
    if answers.style == "pixels" and WRITTEN.match(answer):
        if len(pictures) != 1:
            return Refused(f"pixels of which of {len(pictures)} images is not said")
        found = pictures[0].size()
        if isinstance(found, Fault):
            raise RoboAlignError(found.problem, where="image", fix=found.fix)
        size = found
    if answers.style == "pixels" and size is None:
        answers = Answers(
            tuple(kind for kind in answers.kinds if kind == "choice")
        )  # no coordinates in the answer
    return parse_target(question, answer, answers.kinds, answers.style, size)


def read_record(
    record: Record, columns: Columns, store: Store, where: str
) -> tuple[str, tuple[tuple[str, str], ...], tuple[LazyImage, ...]]:
    """(system text, turns, images) of one record. Raises RoboAlignError whose `where` is the field that does not fit.

    Afterwards the questions hold one `<image>` for each image; where the record marks none of them, they come first.
    """
    field = columns.turns or columns.question
    messages = _messages(record, columns)
    system = ""
    if messages[0][0] in columns.system:
        system = _content(messages.pop(0)[1], field)[0].strip()
    _check_roles(messages, columns, field)
    texts, inline = [], []
    for number, (_, content) in enumerate(messages, start=1):
        text, images = _content(content, field)
        if not text.replace(IMAGE_MARK, "").strip():
            raise RoboAlignError(f"the text of turn {number} is empty", where=field)
        if (images and number % 2 == 0) or IMAGE_MARK in system:
            raise RoboAlignError(f"{IMAGE_MARK} outside a question", where=field)
        texts.append(text)
        inline += images
    column = next((name for name in columns.images if record.get(name) not in (None, "", [])), None)
    value = record[column] if column else []
    listed = value if isinstance(value, list) else [value]
    if not inline and listed:
        texts[0] = f"{IMAGE_MARK}\n" * len(listed) + texts[0]
        inline = [None] * len(listed)
    values = _fill(inline, listed, field)
    images = [image_of(value, store, where, anchor=columns.anchor) for value in values]
    return system, tuple(zip(texts[::2], texts[1::2])), tuple(images)


def _fill(inline: list[Any], listed: list[Any], field: str) -> list[Any]:
    """The images in the order of their marks; a mark that carries none takes the next of the record's list."""
    if sum(value is None for value in inline) != len(listed):
        given = len(listed) + sum(value is not None for value in inline)
        fix = "mark every image once, or none"
        raise RoboAlignError(
            f"{len(inline)} {IMAGE_MARK} marks and {given} images", where=field, fix=fix
        )
    waiting = iter(listed)
    return [next(waiting) if value is None else value for value in inline]


def _messages(record: Record, columns: Columns) -> list[tuple[str, Any]]:
    """(role, content) in order, whatever the layout."""
    if not columns.turns:
        for name in (columns.question, columns.answer):
            if record.get(name) is None:
                raise RoboAlignError("there is no such field, or it is empty", where=name)
        return [
            (columns.user[0], record[columns.question]),
            (columns.assistant[0], record[columns.answer]),
        ]
    turns = record.get(columns.turns)
    if isinstance(
        turns, dict
    ):  # a Sequence of structs, as the datasets library stores it: one list for each field
        roles, texts = turns.get(columns.role), turns.get(columns.text)
        if isinstance(roles, list) and isinstance(texts, list) and len(roles) == len(texts):
            turns = [{columns.role: role, columns.text: text} for role, text in zip(roles, texts)]
    if not isinstance(turns, list) or not turns:
        raise RoboAlignError("there is no list of turns", where=columns.turns)
    for turn in turns:
        if not isinstance(turn, dict) or columns.role not in turn or columns.text not in turn:
            problem = f"a turn without {columns.role} and {columns.text}"
            raise RoboAlignError(problem, where=columns.turns, fix="name the fields with columns=")
    return [(turn[columns.role], turn[columns.text]) for turn in turns]


def _check_roles(messages: list[tuple[str, Any]], columns: Columns, field: str) -> None:
    for number, (role, _) in enumerate(messages):
        expected = columns.assistant if number % 2 else columns.user
        if role not in expected:
            kind = "an answer" if number % 2 else "a question"
            problem = f"turn {number + 1} is of the role {role!r} where {kind} ({'/'.join(expected)}) belongs"
            raise RoboAlignError(problem, where=field)
    if len(messages) % 2 or not messages:
        raise RoboAlignError("the last question has no answer", where=field)


def _content(content: Any, field: str) -> tuple[str, list[Any]]:
    """(text with marks, one entry for each mark): the image where it stands inline, else None."""
    if isinstance(content, str):
        return content, [None] * content.count(IMAGE_MARK)
    if not isinstance(content, list):
        raise RoboAlignError(f"a text is {type(content).__name__}, not a string", where=field)
    texts, placed = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text, value = part["text"], None
            placed += [None] * text.count(IMAGE_MARK)
        elif kind in ("image", "image_url"):
            url = part.get("image_url")
            value = next(
                (
                    v
                    for v in (part.get("image"), part.get("path"), part.get("url"))
                    if v is not None
                ),
                None,
            )
            value = (url.get("url") if isinstance(url, dict) else url) if value is None else value
            text = IMAGE_MARK
            placed.append(value)
        else:
            raise RoboAlignError(
                f"a content part of the type {kind!r}, not text or image", where=field
            )
        texts.append(text)
    return "\n".join(texts), placed


def records(path: Path, columns: Columns) -> Iterator[Any]:
    """The records of a file as they stand, a Fault for a broken line. Raises RoboAlignError on a broken file."""
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
    """The elements of a JSON array, one at a time, as `json.load` would give them.

    No more than the current element and a chunk is held. Raises RoboAlignError where the text is no JSON array, at the
    element that is broken: what follows it cannot be found again.
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
    """What has been read of a file and not been taken yet."""

    def __init__(self, file: TextIO, chunk: int) -> None:
        self.file, self.chunk, self.text, self.at, self.ended = file, chunk, "", 0, False
        self.decoder = json.JSONDecoder()

    def more(self) -> None:
        # What is not whole yet is parsed again from its start: reading as much again keeps that linear.
        read = self.file.read(max(self.chunk, len(self.text) - self.at))
        self.text, self.at, self.ended = self.text[self.at :] + read, 0, not read

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
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
                # A number may go on behind the window, and `1.` is read as 1: an element ends where one may end.
                if self.ended or self.text[end : end + 1] in (*SPACE, ",", "]"):
                    self.at = end
                    return value
                problem = "not valid JSON"
            except RecursionError:
                raise RoboAlignError("nested too deeply", where=f"record {number}") from None
            except ValueError as error:
                problem = f"not valid JSON ({error})"
            if self.ended or len(self.text) - self.at > LONGEST:
                raise RoboAlignError(
                    problem, where=f"record {number}", fix="get this file again"
                ) from None
            self.more()


def _lines(path: Path) -> Iterator[Any]:
    number = 0
    with path.open("rb") as file:
        while line := file.readline(LONGEST + 1):
            if len(line) > LONGEST:
                raise RoboAlignError(
                    f"a line of more than {LONGEST} bytes", where=f"{path}, line {number + 1}"
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


def _parquet(path: Path, columns: Columns) -> Iterator[Any]:
    try:
        # pre_buffer, on by default, keeps all that was read of the file until it is closed.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        there = file.schema_arrow.names
        needed = [columns.turns] if columns.turns else [columns.question, columns.answer]
        if missing := [name for name in needed if name not in there]:
            problem = f"no column {', '.join(missing)}; it has {', '.join(there)}"
            raise RoboAlignError(problem, where=str(path), fix="name the fields with columns=")
        wanted = [name for name in there if name in {*needed, columns.id, *columns.images}]
        for batch in file.iter_batches(ROWS, columns=wanted):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        fix = "download it again"
        raise RoboAlignError(
            f"not a readable parquet file ({error})", where=str(path), fix=fix
        ) from None
