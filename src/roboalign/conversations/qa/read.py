"""Read question-answering data as `QaSample`s.

The layouts are Hugging Face messages, LLaVA and ShareGPT; the files are JSON, JSONL and parquet.
Files are streamed: only one record is in memory, whatever the file's size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign.conversations.qa.images import LazyImage, Store, image_of, open_store
from roboalign.conversations.qa.normal import (
    DECIMALS,
    QA_KINDS,
    WRITTEN,
    QaSample,
    Style,
    parse_target,
)
from roboalign.conversations.qa.records import QaColumns, QaRecord, records
from roboalign.conversations.qa.texts import split_reply
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault, Refused
from roboalign.mllm.placement import IMAGE_MARK

LAYOUTS = {
    "messages": QaColumns("messages", "role", "content", ("user",), ("assistant",), ("system",)),
    "llava": QaColumns("conversations"),
    "sharegpt": QaColumns(
        "conversations",
        user=("human", "user"),
        assistant=("gpt", "assistant", "model"),
        system=("system",),
    ),
    "pairs": QaColumns(),
}


@dataclass(frozen=True)
class Answers:
    """How a source writes answers: its use of points, boxes and choice, and coordinate style."""

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
    columns: QaColumns | None = None,
    images: str | Path | None = None,
    links: bool = False,
    source: str = "",
    kind: str = "general",
    answers: Answers | None = None,
    prepare: Callable[[QaRecord], QaRecord] | None = None,
    take: Callable[[Path, QaColumns], Iterator[Any]] = records,
) -> Iterator[QaSample | Fault]:
    """Yield every record of a .json (an array), .jsonl or .parquet file, in order.

    A record that does not fit is a `Fault`, which names the file, the record (counted from 1) and
    the field. `layout` is a name of LAYOUTS; `columns` replaces its field names. `images` is the
    folder, .zip or .tar that image paths are relative to; None means the file's own folder. With
    `links`, an image may be a link that leaves it. `prepare` changes a record before it is read.
    `take` yields the records of the file: by default all of them.
    Raises RoboAlignError if the file as a whole cannot be read.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        fix = f"use one of {', '.join(LAYOUTS)}"
        raise RoboAlignError(f"unknown layout {layout!r}", where=str(path), fix=fix)
    if kind not in QA_KINDS:
        raise RoboAlignError(
            f"unknown kind {kind!r}", where=str(path), fix=f"use one of {', '.join(QA_KINDS)}"
        )
    if not path.is_file():
        problem = "this is a folder, not a file" if path.is_dir() else "the file does not exist"
        raise RoboAlignError(problem, where=str(path), fix="give a .json, .jsonl or .parquet file")
    columns, store = (
        columns or LAYOUTS[layout],
        open_store(path.parent if images is None else images, links=links),
    )
    return _samples(
        path,
        take(path, columns),
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
    columns: QaColumns,
    store: Store,
    source: str,
    kind: str,
    answers: Answers,
    prepare: Callable[[QaRecord], QaRecord] | None,
) -> Iterator[QaSample | Fault]:
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
            yield QaSample(id_, source, pictures, turns, kind, targets, system)
        except RoboAlignError as error:
            yield Fault(
                f"{where}, field {error.where}", error.problem, error.fix or "drop this record"
            )


def _target(question: str, answer: str, answers: Answers, pictures: Sequence[LazyImage]) -> Any:
    reply, size = split_reply(answer), None
    if isinstance(reply, Refused):
        return reply
    answer = reply[1]
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
    record: QaRecord, columns: QaColumns, store: Store, where: str
) -> tuple[str, tuple[tuple[str, str], ...], tuple[LazyImage, ...]]:
    """Return (system text, turns, images) of one record.

    The questions then contain one `<image>` per image; if the record marks none, they come first.
    Raises RoboAlignError whose `where` is the invalid field.
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
    """Return the images in the order of their marks.

    A mark without an image of its own takes the next one from the record's list.
    """
    if sum(value is None for value in inline) != len(listed):
        given = len(listed) + sum(value is not None for value in inline)
        fix = "mark every image once, or none"
        raise RoboAlignError(
            f"{len(inline)} {IMAGE_MARK} marks and {given} images", where=field, fix=fix
        )
    waiting = iter(listed)
    return [next(waiting) if value is None else value for value in inline]


def _messages(record: QaRecord, columns: QaColumns) -> list[tuple[str, Any]]:
    """Return (role, content) in order, for any layout."""
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
    ):  # a Sequence of structs, as the datasets library stores it: one list per field
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


def _check_roles(messages: list[tuple[str, Any]], columns: QaColumns, field: str) -> None:
    for number, (role, _) in enumerate(messages):
        expected = columns.assistant if number % 2 else columns.user
        if role not in expected:
            kind = "an answer" if number % 2 else "a question"
            problem = f"turn {number + 1} is of the role {role!r} where {kind} ({'/'.join(expected)}) belongs"
            raise RoboAlignError(problem, where=field)
    if len(messages) % 2 or not messages:
        raise RoboAlignError("the last question has no answer", where=field)


def _content(content: Any, field: str) -> tuple[str, list[Any]]:
    """Return (text with marks, one entry per mark): the inline image, or None."""
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
