"""Define a conversation: one image and several turns, stored as one parquet row."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.conversations import prompts
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, hash_file
from roboalign.core.state import State, read_state

TURN_KINDS = ("general", "embodied", "reasoning", "action")
SPLITS = ("train", "rl", "heldout")
REBUILD = "build the mixture again, or copy the whole folder"
ROW = pa.schema(
    [
        ("id", pa.string()),
        ("episode_id", pa.string()),
        ("frame", pa.int32()),
        ("task", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_sha256", pa.string()),
        (
            "turns",
            pa.list_(
                pa.struct(
                    [
                        (name, pa.string())
                        for name in ("kind", "type", "mode", "question", "answer", "expected")
                    ]
                )
            ),
        ),
        ("target", pa.list_(pa.int32())),
        ("chunk", pa.list_(pa.list_(pa.float32()))),
        ("direct_question", pa.string()),
    ]
)


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
    """The whole user message."""
    answer: str
    """The whole reply, with its tags, that training imitates."""
    expected: str
    """The text inside `<answer>` after the label; for an action the whole block. Scores use it."""


class Listed(State):
    """The file list in a mixture's manifest.json: name -> sha256."""

    shards: dict[str, str]


@dataclass(frozen=True)
class Conversation:
    """One image and the turns about it."""

    id: str
    episode_id: str
    frame: int
    task: str
    image: bytes
    """PNG."""
    turns: tuple[Turn, ...]
    target: tuple[int, ...] | None = None
    """FAST ids of the clean action chunk; in the rl split and in held-out action samples."""
    chunk: tuple[tuple[float, ...], ...] | None = None
    """The normalized actions [H, A] that `target` encodes."""
    direct_question: str | None = None
    """The action question in direct mode, if the turn asks it in think mode."""


def messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return the Hugging Face messages form: alternating user and assistant messages.

    The image comes first in the first user message.
    """
    result = []
    for number, turn in enumerate(conversation.turns):
        result += [
            prompts.user_message(turn.question, image=number == 0),
            prompts.assistant_message(turn.answer),
        ]
    return result


def image_hash(png: bytes) -> str:
    """Return the sha256 of a PNG file, in hex.

    It identifies the same frame in two data sets written by LeRobotWriter.
    """
    return hashlib.sha256(png).hexdigest()


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write one parquet shard."""
    rows = []
    for c in conversations:
        row = {
            name: getattr(c, name)
            for name in ("id", "episode_id", "frame", "task", "target", "chunk")
        }
        row |= {"image": {"bytes": c.image, "path": None}, "image_sha256": image_hash(c.image)}
        row |= {"turns": [vars(turn) for turn in c.turns], "direct_question": c.direct_question}
        rows.append(row)
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=ROW), temporary, use_dictionary=False)


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
        for row in read_table(path).to_pylist():
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
    """Return a stored row with only its turns of the wanted kinds, possibly none."""
    turns = tuple(Turn(**turn) for turn in row["turns"] if turn["kind"] in wanted)
    same = {name: row[name] for name in ("id", "episode_id", "frame", "task", "direct_question")}
    chunk = None if row["chunk"] is None else tuple(tuple(step) for step in row["chunk"])
    target = None if row["target"] is None else tuple(row["target"])
    return Conversation(
        **same, image=row["image"]["bytes"], turns=turns, target=target, chunk=chunk
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
    with _readable(path):
        return pq.read_table(path, schema=ROW, columns=columns, memory_map=False)


def row_groups(path: Path) -> list[int]:
    """Return the number of rows of each row group of a shard.

    Raises RoboAlignError as `read_table` does.
    """
    with _readable(path):
        metadata = pq.read_metadata(path)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def read_group(path: Path, group: int) -> pa.Table:
    """Read one row group of a shard. Raises RoboAlignError as `read_table` does."""
    with _readable(path), pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=ROW.names, use_threads=False).select(ROW.names)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, OSError) as error:
        fix = "build the mixture again"
        raise RoboAlignError(
            f"not a readable mixture shard ({error})", where=str(path), fix=fix
        ) from None
