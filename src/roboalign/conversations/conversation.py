"""Define a conversation: any number of images and turns, stored as one parquet row.

The page docs/reference/conversations.md describes the columns and who else reads them.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.conversations.row_groups import Footer, row_groups_of
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, hash_file
from roboalign.core.state import State, read_state
from roboalign.mllm.placement import IMAGE_MARK, kept_images, marked, unmarked

TURN_KINDS = ("general", "embodied", "reasoning", "action")
SPLITS = ("train", "rl", "heldout")
REBUILD = "build the mixture again, or copy the whole folder"
PARQUET: dict[str, Any] = {"use_dictionary": False}
"""How the parquet files of a mixture are written."""
_PART = pa.struct([("type", pa.string()), ("text", pa.string())])
_FEATURES = {"info": {"features": {"images": {"feature": {"_type": "Image"}, "_type": "List"}}}}
"""What the `datasets` library reads from a parquet file: that column is images."""
ROW = pa.schema(
    [
        ("id", pa.string()),
        ("episode_id", pa.string()),
        ("frame", pa.int32()),
        ("task", pa.string()),
        (
            "messages",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(_PART))])),
        ),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("image_sha256", pa.list_(pa.string())),
        ("chat", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        (
            "turns",
            pa.list_(
                pa.struct([(name, pa.string()) for name in ("kind", "type", "mode", "expected")])
            ),
        ),
        ("target", pa.list_(pa.int32())),
        ("chunk", pa.list_(pa.list_(pa.float32()))),
        ("direct_question", pa.string()),
    ],
    metadata={"huggingface": json.dumps(_FEATURES)},
)
IMAGE_LENGTH = 1_000
"""Characters that an image counts as in the length of a conversation: those of some 250 tokens."""
OWN = [name for name in ROW.names if name != "messages"]
"""The columns that are read here: `messages` says the same as `chat`, for other tools."""


@dataclass(frozen=True)
class Turn:
    """One question and its reply."""

    kind: str
    """general, embodied, reasoning or action."""
    type: str
    """A name of questions.TYPES, or action."""
    mode: str
    """direct or think: whether the question asks for reasoning."""
    question: str
    """The whole user message; `<image>` in it shows an image (`mllm.placement`)."""
    answer: str
    """The whole reply, with its tags, that training imitates."""
    expected: str
    """The text inside `<answer>` after the label; for an action the whole block. Scores use it."""


class Listed(State):
    """The file list in a mixture's manifest.json: name -> sha256."""

    shards: dict[str, str]


@dataclass(frozen=True)
class Conversation:
    """Images and the turns about them."""

    id: str
    episode_id: str
    frame: int
    task: str
    images: tuple[bytes, ...]
    """Image files as their source has them (JPEG, PNG, WebP, ...), in the order they are shown.
    If no question has a marker, all come before the first question."""
    turns: tuple[Turn, ...]
    target: tuple[int, ...] | None = None
    """FAST ids of the clean action chunk; in the rl split and in held-out action samples."""
    chunk: tuple[tuple[float, ...], ...] | None = None
    """The normalized actions [H, A] that `target` encodes."""
    direct_question: str | None = None
    """The action question in direct mode, if the turn asks it in think mode."""


def messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return the Hugging Face messages form: alternating user and assistant messages in parts.

    Raises RoboAlignError if the markers are not as many as the images.
    """
    return [
        {"role": one["role"], "content": _parts(one["content"], one["role"] == "user")}
        for one in _chat(conversation)
    ]


def _parts(text: str, asked: bool) -> list[dict[str, str]]:
    """Return a text as the parts of a message: between two texts of a question is an image."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_MARK) if asked else [text]):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece}] if piece or not asked else []
    return parts


def _chat(conversation: Conversation) -> list[dict[str, str]]:
    """Return the messages as texts, with a marker for every image.

    Raises RoboAlignError if the markers are not as many as the images, or an answer has one, where
    other tools would look for an image.
    """
    chat = []
    for question, turn in zip(marked_questions(conversation), conversation.turns):
        if IMAGE_MARK in turn.answer:
            raise RoboAlignError(
                f"an answer spells {IMAGE_MARK}",
                where=f"conversation {conversation.id}",
                fix="reword it, or drop this conversation",
            )
        chat += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": turn.answer},
        ]
    return chat


def marked_questions(conversation: Conversation) -> list[str]:
    """Return the questions with a marker for every image.

    Raises RoboAlignError naming the conversation if the markers are not as many as the images.
    """
    try:
        return marked([turn.question for turn in conversation.turns], len(conversation.images))
    except RoboAlignError as error:
        where = f"conversation {conversation.id}"
        raise RoboAlignError(error.problem, where=where, fix=error.fix) from None


def turn_alone(conversation: Conversation, number: int) -> Conversation:
    """Return the conversation with this turn alone, and the images shown until then before it.

    Raises RoboAlignError as `marked_questions`.
    """
    keep = [place == number for place in range(len(conversation.turns))]
    questions, images = kept_images(marked_questions(conversation), keep)
    turn = replace(conversation.turns[number], question=unmarked(questions)[0])
    shown = tuple(conversation.images[image] for image in images)
    return replace(conversation, images=shown, turns=(turn,))


def with_images_of(conversation: Conversation, donor: Conversation) -> Conversation:
    """Return the conversation with the images of another one, repeated to as many as it shows."""
    shown = len(conversation.images)
    images = tuple(islice(cycle(donor.images), shown)) if donor.images else conversation.images
    return replace(conversation, images=images)


def image_hash(image: bytes) -> str:
    """Return the sha256 of an image file, in hex.

    It identifies the same frame in two data sets written by LeRobotWriter.
    """
    return hashlib.sha256(image).hexdigest()


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write one parquet shard, in row groups of `row_groups_of`. Raises RoboAlignError as `row_of`."""
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, ROW, **PARQUET) as writer:
        for rows in row_groups_of(map(row_of, conversations)):
            writer.write_table(pa.Table.from_pylist(rows, schema=ROW))


def row_of(c: Conversation) -> dict[str, Any]:
    """Return a parquet row.

    Raises RoboAlignError if its markers are not as many as its images, or an answer has one.
    """
    row = {
        name: getattr(c, name)
        for name in ("id", "episode_id", "frame", "task", "target", "chunk", "direct_question")
    }
    row |= {"messages": messages(c), "chat": _chat(c)}
    row |= {
        "images": [{"bytes": image, "path": None} for image in c.images],
        "image_sha256": [image_hash(image) for image in c.images],
    }
    told = ROW.field("turns").type.value_type.names
    return row | {"turns": [{name: getattr(turn, name) for name in told} for turn in c.turns]}


def read_conversations(
    folder: str | Path, split: str, kinds: Sequence[str] | None = None
) -> list[Conversation]:
    """Return the conversations of a split, as `iterate_conversations` yields them."""
    return list(iterate_conversations(folder, split, kinds))


def iterate_conversations(
    folder: str | Path, split: str, kinds: Sequence[str] | None = None
) -> Iterator[Conversation]:
    """Yield the conversations of one split of a mixture, with one shard in memory at a time.

    The splits are "train", "rl" and "heldout". With `kinds`, only turns of these kinds are kept and
    conversations without any are dropped: ("general", "embodied", "reasoning") is the language-only
    part. Raises RoboAlignError on an unknown split or kind and on a broken shard.
    """
    wanted = wanted_kinds(folder, split, kinds)
    for path in shards(folder, split):
        for row in read_table(path, OWN).to_pylist():
            conversation = from_row(row, wanted)
            if conversation.turns:
                yield conversation


def wanted_kinds(folder: str | Path, split: str, kinds: Sequence[str] | None) -> frozenset[str]:
    """Return the kinds of turns to keep. Raises RoboAlignError on an unknown split or kind."""
    if split not in SPLITS:
        raise RoboAlignError(
            f"unknown split {split!r}", where=str(folder), fix=f"use one of {', '.join(SPLITS)}"
        )
    unknown = sorted(set(kinds or ()) - set(TURN_KINDS))
    if unknown:
        raise RoboAlignError(
            f"unknown kinds {unknown}",
            where=str(folder),
            fix=f"use some of {', '.join(TURN_KINDS)}",
        )
    return frozenset(kinds if kinds is not None else TURN_KINDS)


def from_row(row: dict[str, Any], wanted: frozenset[str]) -> Conversation:
    """Return a stored row with only its turns of the wanted kinds, possibly none.

    An image of a turn that is left out comes before the next turn that is kept.
    """
    turns, images = turns_of(row), tuple(image["bytes"] for image in row["images"])
    if keep := [turn.kind in wanted for turn in turns]:
        questions, numbers = kept_images(
            marked([turn.question for turn in turns], len(images)), keep
        )
        kept = [turn for turn, is_kept in zip(turns, keep) if is_kept]
        turns = tuple(replace(turn, question=q) for turn, q in zip(kept, unmarked(questions)))
        images = tuple(images[number] for number in numbers)
    same = {name: row[name] for name in ("id", "episode_id", "frame", "task", "direct_question")}
    chunk = None if row["chunk"] is None else tuple(tuple(step) for step in row["chunk"])
    target = None if row["target"] is None else tuple(row["target"])
    return Conversation(**same, images=images, turns=turns, target=target, chunk=chunk)


def turns_of(row: dict[str, Any]) -> tuple[Turn, ...]:
    """Return the turns of a stored row (columns turns and chat), as they are stored."""
    texts = [message["content"] for message in row["chat"]]
    questions = unmarked(texts[::2])
    return tuple(
        Turn(**told, question=question, answer=answer)
        for told, question, answer in zip(row["turns"], questions, texts[1::2], strict=True)
    )


def shards(folder: str | Path, split: str) -> list[Path]:
    """Return the parquet files of a split, in order, each as manifest.json lists it.

    Raises RoboAlignError if there is none, or if one is missing, unlisted, or has another sha256.
    """
    pattern = "train-*.parquet" if split == "train" else f"{split}.parquet"
    paths = sorted(Path(folder).glob(pattern))
    if not paths:
        raise RoboAlignError(f"no {split} shard", where=str(folder), fix="build the mixture first")
    manifest = Path(folder) / "manifest.json"
    if manifest.is_file():  # a mixture still being built has no manifest
        listed = read_state(manifest, Listed, fix=REBUILD)["shards"]
        wanted = {name: digest for name, digest in listed.items() if fnmatch(name, pattern)}
        _check_listed(paths, wanted)
    return paths


def _check_listed(paths: Sequence[Path], wanted: dict[str, str]) -> None:
    found = {path.name for path in paths}
    if missing := sorted(wanted.keys() - found):
        where = str(paths[0].with_name(missing[0]))
        raise RoboAlignError("manifest.json lists it, and it is missing", where=where, fix=REBUILD)
    for path in paths:
        if path.name not in wanted:
            raise RoboAlignError("manifest.json does not list it", where=str(path), fix=REBUILD)
        state = path.stat()
        if _digest(path, state.st_mtime_ns, state.st_size) != wanted[path.name]:
            raise RoboAlignError(
                "its sha256 is not the one in manifest.json", where=str(path), fix=REBUILD
            )


@functools.cache
def _digest(path: Path, written: int, size: int) -> str:
    """Return the sha256 of a file as written at that time.

    It is cached, because one process reads a split several times.
    """
    return hash_file(path)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one shard. Raises RoboAlignError if it is truncated or has another schema."""
    _check_schema(path)
    with _readable(path):
        return pq.read_table(path, schema=ROW, columns=columns, memory_map=False)


def row_groups(path: Path) -> list[int]:
    """Return the number of rows of each row group of a shard.

    Raises RoboAlignError as `read_table` does.
    """
    _check_schema(path)
    with _readable(path):
        metadata = pq.read_metadata(path)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def read_footer(path: Path) -> Footer:
    """Return where a shard's row groups are. Raises RoboAlignError as `read_table` does."""
    with _readable(path):
        return Footer(path)


def read_group(path: Path, footer: Footer, group: int) -> pa.Table:
    """Read one row group of a shard, the columns OWN. Raises RoboAlignError as `read_table` does."""
    # `pre_buffer` would hand each read to another thread, and wait for it.
    with (
        _readable(path),
        pq.ParquetFile(path, metadata=footer.metadata(group), pre_buffer=False) as file,
    ):
        return file.read_row_group(0, columns=OWN, use_threads=False).select(OWN)


def _check_schema(path: Path) -> None:
    with _readable(path):
        found = pq.read_schema(path).names
    if missing := [name for name in ROW.names if name not in found]:
        older = "image" in found and "images" not in found
        raise RoboAlignError(
            "a mixture of an earlier version, with one image a conversation"
            if older
            else f"not a mixture shard: it has no column {', '.join(missing)}",
            where=str(path),
            fix="remove its folder and run the same command again: this version writes `images`",
        )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, OSError) as error:
        fix = "build the mixture again"
        raise RoboAlignError(
            f"not a readable mixture shard ({error})", where=str(path), fix=fix
        ) from None
