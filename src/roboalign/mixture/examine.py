"""Run the tasks of the two passes over the sources.

The first finds the samples; the second examines those that were drawn.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.qa.convert import episode_of
from roboalign.conversations.qa.images import LazyImage
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.mixture.config import MixtureConfig
from roboalign.mixture.database import EXAMINED, SCANNED
from roboalign.mixture.keys import TOP, first_bytes, key_of, signed
from roboalign.mixture.leaks import Evaluated
from roboalign.mixture.looks import look_of, thumbnail
from roboalign.mixture.parts import Candidate, Dropped, Fate, Part, Wanted
from roboalign.mixture.sources import read as sources
from roboalign.mixture.store import SampleStore
from roboalign.mixture.tokens import load_tokens

_WINDOW = 64
"""Number of images decoded at a time."""
BATCH = 1_000
"""Rows in memory before they are written."""
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Shown:
    """What was found about one image."""

    sha: bytes
    look: int
    thumb: np.ndarray

    @classmethod
    def of(cls, data: bytes) -> "Shown":
        """Raises RoboAlignError if the file is not a complete image."""
        thumb = thumbnail(data)
        return cls(hashlib.sha256(data).digest(), look_of(thumb), thumb)


@dataclass(frozen=True)
class Looked:
    """A sample with the results of examining its images."""

    conversation: Conversation
    shown: list[Shown]
    group: str
    leak: tuple[str, str] | None
    unasked: Mapping[str, int]


def scan_part(work: Path, config: MixtureConfig, part: Part) -> str:
    """Write the samples of a part to a file, each with its key in the draw.

    Returns the part's fingerprint.
    """
    path = scanned_file(work, part)
    if not path.exists():
        with SampleStore.task_file(path, SCANNED) as out:
            for batch in batches(sources.scan(config, part), BATCH):
                dropped = [one for one in batch if isinstance(one, Dropped)]
                # The key includes the place: ids may repeat, and records that share one must not be
                # drawn together.
                out.add_scanned(
                    (
                        (one[0], key_of(config.seed, "draw", part.name, *one))
                        for one in batch
                        if not isinstance(one, Dropped)
                    ),
                    ((one.place, one.id, one.what, one.reason) for one in dropped),
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
        SampleStore.reading(work / "index.sqlite") as index,
        SampleStore.task_file(path, EXAMINED) as out,
        ThreadPoolExecutor(threads) as pool,
    ):
        wanted = index.chosen_of(turn, part, slice_)
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
    """Open the images of a sample and compare them with the evaluation sets.

    A sample with a broken image is dropped.
    """
    if isinstance(draft, Dropped):
        return draft
    conversation = draft.conversation
    try:
        data = [_read(image) for image in draft.images] or list(conversation.images)
        shown = [Shown.of(one) for one in data]
    except RoboAlignError as error:
        return Dropped(0, ascii(conversation.id)[1:-1], Fate.FAULT, error.problem)
    try:
        texts = json.dumps([vars(turn) for turn in conversation.turns], ensure_ascii=False).encode()
        conversation.id.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: possible in JSON, not in parquet
        return Dropped(0, ascii(conversation.id)[1:-1], Fate.FAULT, "a text is not Unicode")
    if draft.images:  # samples of the same images belong together
        episode = episode_of(conversation.task, [one.sha for one in shown])
        conversation = replace(conversation, images=tuple(data), episode_id=episode)
    return Looked(
        conversation,
        shown,
        draft.group or _group(shown, texts),
        _leak(conversation.episode_id, draft.actions, shown, evaluated),
        draft.unasked,
    )


def _read(image: LazyImage) -> bytes:
    if isinstance(data := image.data(), Fault):
        raise RoboAlignError(data.problem)
    return data


def _group(shown: Sequence[Shown], texts: bytes) -> str:
    """Return what samples of the same images share, or of the same text without any."""
    if len(shown) == 1:
        return shown[0].sha.hex()
    return hashlib.sha256(b"".join(one.sha for one in shown) or texts).hexdigest()


def _leak(
    episode: str, actions: str, shown: Sequence[Shown], evaluated: Evaluated | None
) -> tuple[str, str] | None:
    """Return how a sample leaks (`Evaluated.leak`): by one of its images, or by its episode."""
    if evaluated is None:
        return None
    for one in shown:
        if leak := evaluated.leak(first_bytes(one.sha), one.look, one.thumb, episode, actions):
            return leak
    return ("same episode", "") if evaluated.has_episode(episode, actions) else None


def put_away(
    out: SampleStore,
    config: MixtureConfig,
    part: Part,
    wanted: list[Wanted],
    looked: list[Looked | Dropped],
) -> None:
    """Store samples, and the outcome of each."""
    rows, shown, drawn, unasked = [], [], [], []
    dropped: list[tuple[Any, ...]] = []
    for (place, item, key), one in zip(wanted, looked, strict=True):
        if isinstance(one, Dropped):
            dropped.append((place, one.id, one.what, one.reason, None))
            row: tuple[Any, ...] = (item, part.source, key, one.id, one.what, None)
        else:
            conversation = one.conversation
            what = Fate.HELD if held_out(config, one.group) else Fate.GOOD
            what = Fate.LEAK if one.leak else what
            if one.leak:
                dropped.append((place, conversation.id, what, *one.leak))
            else:
                rows.append((item, to_text(conversation)))
                for number, (image, data) in enumerate(zip(one.shown, conversation.images)):
                    first, look = first_bytes(image.sha), signed(image.look)
                    shown.append((item, number, first, look, image.thumb.tobytes(), data))
            row = (item, part.source, key, conversation.id, what, content_of(one))
            unasked += [(item, *pair) for pair in one.unasked.items()]
        drawn.append(row)
    out.add_examined(drawn, rows, shown, dropped, unasked)


def content_of(looked: Looked) -> int:
    """Return a number that is equal for samples with the same image files and turns."""
    turns = [list(vars(turn).values()) for turn in looked.conversation.turns]
    shas = b"".join(image.sha for image in looked.shown)
    return first_bytes(hashlib.blake2b(shas + json.dumps(turns).encode(), digest_size=8).digest())


def held_out(config: MixtureConfig, group: str) -> bool:
    """Return whether an image or episode is excluded from training."""
    return (
        config.heldout is not None
        and key_of(config.seed, "heldout", group) < config.heldout.share * TOP
    )


def to_text(conversation: Conversation) -> str:
    """Return a conversation as text, without its images."""
    values: dict[str, Any] = {
        **vars(conversation),
        "turns": [list(vars(t).values()) for t in conversation.turns],
    }
    del values["images"]
    return json.dumps(values)


def from_text(text: str, images: tuple[bytes, ...]) -> Conversation:
    """Invert `to_text`."""
    values = json.loads(text)
    chunk = values["chunk"] and tuple(map(tuple, values["chunk"]))
    return Conversation(
        **{
            **values,
            "turns": tuple(Turn(*turn) for turn in values["turns"]),
            "images": images,
            "target": values["target"] and tuple(values["target"]),
            "chunk": chunk,
        }
    )
