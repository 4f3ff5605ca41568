"""What a benchmark asks: one item, and the controls under which it is asked again."""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

ItemKind = Literal["letter", "yes-no", "point", "judged"]
Control = Literal["asked", "blank", "text", "shuffled"]
CONTROLS: tuple[Control, ...] = get_args(Control)
BLANK_GRAY = 127


@dataclass(frozen=True)
class BenchItem:
    """One question of a benchmark, as its files have it."""

    id: str
    kind: ItemKind
    images: tuple[bytes, ...]
    """Image files, in the order in which they are shown."""
    text: str
    """The question, with its options."""
    answer: str = ""
    """A letter, `yes` or `no`, or the reference that a judge reads; "" where a region is asked."""
    options: tuple[tuple[int, int], ...] = ()
    """Where in `text` the text of each option is; () if that is not known."""
    letters: str = ""
    """The letters of the options."""
    group: str = ""
    subgroup: str = ""
    mask: bytes | None = None
    """Image file of the region that is asked for."""
    polygon: tuple[tuple[float, float], ...] = ()
    """The same region as corners, fractions of width and height."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Further columns that a wording uses."""


def controlled(item: BenchItem, control: Control) -> BenchItem | None:
    """Return the item as a control asks it; None if that control cannot ask it.

    Only `shuffled` changes the item itself; `images_under` changes the images.
    """
    return _shuffled(item) if control == "shuffled" else item


def images_under(images: tuple[np.ndarray, ...], control: Control) -> tuple[np.ndarray, ...]:
    """Return the images that a control shows: as they are, gray ones of the same sizes, or none."""
    if control == "text":
        return ()
    if control == "blank":
        return tuple(np.full_like(image, BLANK_GRAY) for image in images)
    return images


def _shuffled(item: BenchItem) -> BenchItem | None:
    """Return the item with its options in another order, which depends on its id alone."""
    if len(item.options) < 2 or item.answer not in item.letters:
        return None
    texts = [item.text[start:end] for start, end in item.options]
    order = list(range(len(texts)))
    digest = hashlib.sha256(item.id.encode()).digest()
    rng = random.Random(int.from_bytes(digest[:8], "big"))
    while order == sorted(order):
        rng.shuffle(order)
    text, spans, at = "", [], 0
    for (start, end), source in zip(item.options, order):
        text += item.text[at:start]
        spans.append((len(text), len(text) + len(texts[source])))
        text, at = text + texts[source], end
    right = order.index(item.letters.index(item.answer))
    return replace(
        item, text=text + item.text[at:], options=tuple(spans), answer=item.letters[right]
    )
