"""What a source is cut into, and what comes out of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from roboalign.conversations.conversation import Conversation
from roboalign.conversations.qa.images import LazyImage
from roboalign.core.errors import RoboAlignError

FRAME_BITS = 20
"""Bits of a place that number the frame in its episode; those above number the record or episode in its part."""
STREAMED = {"pre_buffer": False, "buffer_size": 1 << 20}
"""How a parquet file is opened to be read a batch at a time: by default pyarrow keeps all that it has read of it."""
Read = TypeVar("Read")


@dataclass(frozen=True)
class Part:
    """One file of a source, or one robot data set."""

    source: int
    number: int
    file: Path
    name: str
    """The path below the source: the same wherever the source lies."""
    images: Path | None = None
    slices: int = 1


@dataclass(frozen=True)
class Dropped:
    """What is no sample: `what` is fault (broken) or refused (whole, but with no place in a mixture)."""

    place: int
    id: str
    what: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A drawn sample before its image has been looked at."""

    conversation: Conversation
    """Its image is still empty where `image` is given."""
    image: LazyImage | None = None
    group: str = ""
    """By which it is held out or not; "" for the image itself."""
    actions: str = ""
    """Of robot data: the digest of its episode's actions, by which an evaluated episode is known."""


class Wanted(NamedTuple):
    """A sample that is to be looked at: its place in its part, its number in the index, its key in the draw."""

    place: int
    item: int
    key: int


def matched(
    read: Iterable[tuple[int, Read]], wanted: Iterable[Wanted], where: str
) -> Iterator[tuple[Wanted, Read]]:
    """What stands at the wanted places; both come in the order of their places, and neither is held in memory.

    Reading ends with the last of them. Raises RoboAlignError where one is not there any more.
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
    """The error of a file that no longer holds what it held in the first pass."""
    return RoboAlignError(
        "it has changed while it was read", where=where, fix="run the same command again"
    )
