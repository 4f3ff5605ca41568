"""Run the tasks of the two passes over the sources.

The first finds the samples; the second examines those that were drawn.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from roboalign.conversations.conversation import Conversation, Turn
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.mixture.mixing import sources, store
from roboalign.mixture.mixing.config import MixtureConfig
from roboalign.mixture.mixing.evaluation import Evaluated
from roboalign.mixture.mixing.keys import TOP, first_bytes, key_of, signed
from roboalign.mixture.mixing.looks import look_of, thumbnail
from roboalign.mixture.mixing.parts import FRAME_BITS, Candidate, Dropped, Part, Wanted
from roboalign.mixture.mixing.tokens import load_tokens

_WINDOW = 64
"""Number of images decoded at a time."""
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Looked:
    """A sample with the results of examining its image."""

    conversation: Conversation
    sha: bytes
    look: int
    thumb: bytes
    group: str
    leak: tuple[str, str] | None


def scan_part(work: Path, config: MixtureConfig, part: Part) -> str:
    """Write the samples of a part to a file, each with its key in the draw.

    Returns the part's fingerprint.
    """
    path = scanned_file(work, part)
    if not path.exists():
        with store.task_file(path, store.SCANNED) as out:
            for batch in batches(sources.scan(config, part), store.BATCH):
                # The key includes the place: ids may repeat, and records that share one must not be
                # drawn together.
                out.executemany(
                    "INSERT INTO items VALUES (?, ?)",
                    (
                        (one[0], key_of(config.seed, "draw", part.name, *one))
                        for one in batch
                        if not isinstance(one, Dropped)
                    ),
                )
                out.executemany(
                    "INSERT INTO dropped VALUES (?, ?, ?, ?)",
                    (
                        (one.place, one.id, one.what, one.reason)
                        for one in batch
                        if isinstance(one, Dropped)
                    ),
                )
    return sources.fingerprint(part)


def scanned_file(work: Path, part: Part) -> Path:
    """Return the file that `scan_part` writes."""
    return work / "scanned" / f"{part.source}-{part.number}.sqlite"


def examine_part(
    work: Path, config: MixtureConfig, part: Part, turn: int, slice_: int, threads: int
) -> None:
    """Examine the samples of a part drawn in this round, and store them with the results."""
    path = examined_file(work, part, turn, slice_)
    if path.exists():
        return
    tokens = load_tokens(work / "tokenizer") if config.tokenizer else None
    evaluated = Evaluated(work, config.near) if config.evaluation else None
    with (
        store.reading(work / "index.sqlite") as index,
        store.task_file(path, store.EXAMINED) as out,
        ThreadPoolExecutor(threads) as pool,
    ):
        wanted = map(
            Wanted._make,
            index.execute(
                "SELECT i.place, i.item, i.key FROM items i CROSS JOIN chosen c ON c.item = i.item WHERE c.round = ? "
                "AND i.source = ? AND i.part = ? AND (i.place >> ?) % ? = ? ORDER BY i.place",
                (turn, part.source, part.number, FRAME_BITS, part.slices, slice_),
            ),
        )
        for batch in batches(sources.fetch(config, part, wanted, tokens), _WINDOW):
            # Threads decode; a single one would only add overhead. The results keep the order.
            looked = list(
                (pool.map if threads > 1 else map)(lambda one: look_at(one[1], evaluated), batch)
            )
            put_away(out, config, part, [one for one, _ in batch], looked)


def examined_file(work: Path, part: Part, turn: int, slice_: int) -> Path:
    """Return the file that `examine_part` writes."""
    return work / "examined" / f"{turn}-{part.source}-{part.number}-{slice_}.sqlite"


def batches(stream: Iterable[_Row], size: int) -> Iterator[list[_Row]]:
    """Yield the stream in lists of at most `size`."""
    stream = iter(stream)
    while batch := list(islice(stream, size)):
        yield batch


def look_at(draft: Candidate | Dropped, evaluated: Evaluated | None) -> Looked | Dropped:
    """Open the image of a sample and compare it with the evaluation sets.

    Broken images are dropped.
    """
    if isinstance(draft, Dropped):
        return draft
    conversation = draft.conversation
    data = conversation.image if draft.image is None else draft.image.data()
    if isinstance(data, Fault):
        return Dropped(0, ascii(conversation.id)[1:-1], "fault", data.problem)
    try:
        thumb = thumbnail(data)
    except RoboAlignError as error:
        return Dropped(0, ascii(conversation.id)[1:-1], "fault", error.problem)
    try:
        json.dumps(
            [vars(turn) for turn in conversation.turns] + [conversation.id], ensure_ascii=False
        ).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: possible in JSON, not in parquet
        return Dropped(0, ascii(conversation.id)[1:-1], "fault", "a text is not Unicode")
    sha, look = hashlib.sha256(data).digest(), look_of(thumb)
    if draft.image is not None:
        episode = f"{conversation.task}/{sha.hex()[:16]}"  # samples of one image belong together
        conversation = Conversation(**{**vars(conversation), "image": data, "episode_id": episode})
    leak = (
        evaluated.leak(first_bytes(sha), look, thumb, conversation.episode_id, draft.actions)
        if evaluated
        else None
    )
    return Looked(conversation, sha, look, thumb.tobytes(), draft.group or sha.hex(), leak)


def put_away(
    out: sqlite3.Connection,
    config: MixtureConfig,
    part: Part,
    wanted: list[Wanted],
    looked: list[Looked | Dropped],
) -> None:
    """Store samples, and the outcome of each."""
    rows, drawn = [], []
    for (place, item, key), one in zip(wanted, looked, strict=True):
        if isinstance(one, Dropped):
            out.execute(
                "INSERT INTO dropped VALUES (?, ?, ?, ?, NULL)",
                (place, one.id, one.what, one.reason),
            )
            row: tuple[Any, ...] = (item, part.source, key, one.id, one.what, None, None, None)
        else:
            conversation = one.conversation
            what = "leak" if one.leak else "held" if held_out(config, one.group) else "good"
            if one.leak:
                out.execute(
                    "INSERT INTO dropped VALUES (?, ?, 'leak', ?, ?)",
                    (place, conversation.id, *one.leak),
                )
            else:
                rows.append((item, to_text(conversation), one.thumb, conversation.image))
            row = (
                item,
                part.source,
                key,
                conversation.id,
                what,
                first_bytes(one.sha),
                signed(one.look),
                content_of(one),
            )
        drawn.append(row)
    out.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
    out.executemany("INSERT INTO drawn VALUES (?, ?, ?, ?, ?, ?, ?, ?)", drawn)


def content_of(looked: Looked) -> int:
    """Return a number that is equal for samples with the same image file and turns."""
    turns = [list(vars(turn).values()) for turn in looked.conversation.turns]
    return first_bytes(
        hashlib.blake2b(looked.sha + json.dumps(turns).encode(), digest_size=8).digest()
    )


def held_out(config: MixtureConfig, group: str) -> bool:
    """Return whether an image or episode is excluded from training."""
    return (
        config.heldout is not None
        and key_of(config.seed, "heldout", group) < config.heldout.share * TOP
    )


def to_text(conversation: Conversation) -> str:
    """Return a conversation as text, without its image."""
    values: dict[str, Any] = {
        **vars(conversation),
        "turns": [list(vars(t).values()) for t in conversation.turns],
    }
    del values["image"]
    return json.dumps(values)


def from_text(text: str, image: bytes) -> Conversation:
    """Invert `to_text`."""
    values = json.loads(text)
    chunk = values["chunk"] and tuple(map(tuple, values["chunk"]))
    return Conversation(
        **{
            **values,
            "turns": tuple(Turn(*turn) for turn in values["turns"]),
            "image": image,
            "target": values["target"] and tuple(values["target"]),
            "chunk": chunk,
        }
    )
