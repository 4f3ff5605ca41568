"""Define the parts of a source, and what is read from them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, TypeVar

from roboalign.conversations.conversation import Conversation
from roboalign.conversations.qa.images import LazyImage
from roboalign.core.errors import RoboAlignError

FRAME_BITS = 20
"""Bits of a place for the frame in its episode; higher bits number the record or episode."""
STREAMED = {"pre_buffer": False, "buffer_size": 1 << 20}
"""How to open a parquet file for reading in batches.

By default pyarrow keeps everything that it has read.
"""
Read = TypeVar("Read")


@dataclass(frozen=True)
class Part:
    """One file of a source, or one robot data set."""

    source: int
    number: int
    file: Path
    name: str
    """The path below the source; it does not depend on where the source is stored."""
    images: Path | None = None
    slices: int = 1


class Fate(StrEnum):
    """What became of a sample that was found; the index and dropped.jsonl spell it so."""

    GOOD = "good"
    """Fit to be trained on."""
    HELD = "held"
    """Held out."""
    LEAK = "leak"
    """An evaluation set has its image or episode."""
    FAULT = "fault"
    """Broken."""
    REFUSED = "refused"
    """Intact, but unsuitable for a mixture."""
    DUPLICATE = "duplicate"
    """Equal to one that is trained on."""
    HELD_DUPLICATE = "held duplicate"
    """Equal to one that is held out."""
    SEEN = "seen"
    """Held out until training was found to show the same picture."""


@dataclass(frozen=True)
class Dropped:
    """What is not a sample: a FAULT or REFUSED."""

    place: int
    id: str
    what: Fate
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A drawn sample before its image is examined."""

    conversation: Conversation
    """Its images are still missing if `images` are given."""
    images: tuple[LazyImage, ...] = ()
    group: str = ""
    """The group by which it is held out; "" means its images, or its text if it has none."""
    actions: str = ""
    """For robot data: the digest of its episode's actions, which identifies the episode."""
    unasked: Mapping[str, int] = field(default_factory=dict)
    """For packed robot data: `type: reason` -> how often a question was drawn that does not apply."""


class Wanted(NamedTuple):
    """A sample to examine: its place in its part, its number in the index, its key in the draw."""

    place: int
    item: int
    key: int


def matched(
    read: Iterable[tuple[int, Read]], wanted: Iterable[Wanted], where: str
) -> Iterator[tuple[Wanted, Read]]:
    """Yield what is at the wanted places.

    Both inputs are in the order of their places, and neither is held in memory. Reading ends with
    the last wanted place. Raises RoboAlignError if one no longer exists.
    """
    left = iter(wanted)
    one = next(left, None)
    stream = iter(read)
    while one is not None:
        place, found = next(stream, (one.place + 1, None))
        if place > one.place:
            raise changed(where)
        if place == one.place:
            assert found is not None
            yield one, found
            one = next(left, None)


def changed(where: str) -> RoboAlignError:
    """Return the error for a file that has changed since the first pass."""
    return RoboAlignError(
        "it has changed while it was read", where=where, fix="run the same command again"
    )
