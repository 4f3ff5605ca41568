"""Read a reply and score it: what was answered, why it could not be read, and how right it is."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from roboalign.bench.items import BenchItem
from roboalign.bench.judge import MOST_SCORE, BenchJudge, require_judge
from roboalign.bench.letters import LETTER_RULES, yes_or_no
from roboalign.bench.points import (
    Box,
    Convention,
    Spot,
    bare_pair,
    boxes_in,
    spots_in,
    to_fraction,
    to_pixel,
)
from roboalign.bench.presets import Protocol
from roboalign.bench.regions import Corners, in_polygon, mask_score, outside
from roboalign.conversations.prompts import Mode
from roboalign.conversations.reply import OK, answer_of
from roboalign.conversations.styles.base import PromptStyle
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.pictures import decoded

ANSWER_LABELS = {"letter": "letter", "yes-no": "verdict", "point": "point", "judged": "answer"}
"""Label of the answer in the style `labelled`, by kind of item."""
_ACTION = re.compile(r"<ACTION_(?:START|END)>|<FAST_\d+>")
_TAG = re.compile(r"</?(?:think|answer)>")
Extent = tuple[int, int]


@dataclass(frozen=True)
class Spoken:
    """The answer of a reply, without its reasoning."""

    answer: str | None
    reason: str
    """"ok", or why there is no answer."""


@dataclass(frozen=True)
class ReplyReading:
    """What became of a reply."""

    read: str
    """The letter, `yes` or `no`, or the points as pixels of the mask; "" where it is unreadable."""
    reason: str
    """"ok", or why it is unreadable."""
    score: float
    """From 0 to 1; 0 where it is unreadable."""
    points: int = 0
    outside: int = 0
    """Of the points, those outside of the image: misses."""

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def spoken(text: str, style: PromptStyle, mode: Mode, label: str) -> Spoken:
    """Return the answer of a decoded reply, by the grammar of replies.

    It is what stands between `<answer>` and `</answer>`; without such a pair what follows
    `</think>`, and in a reply without tags all of it. A reasoning that does not end has no answer.
    """
    if _ACTION.search(text):
        return Spoken(None, "action tokens")
    said = answer_of(text)
    if said is None:
        rest = text.rpartition("</think>")[2]
        if "<think>" in rest:
            return Spoken(None, "a reasoning without an end")
        said = _TAG.sub("", rest.partition("</answer>")[0]).strip()
    if not said:
        return Spoken(None, "an empty answer")
    answer = style.answer_text(said, label)
    if not answer:
        return Spoken(None, f"not opened with `{label}`, as the model's prompt style asks")
    return Spoken(answer, OK)


def grade(
    text: str,
    item: BenchItem,
    protocol: Protocol,
    style: PromptStyle,
    mode: Mode,
    size: Extent,
    seen: Extent,
    judge: BenchJudge | None = None,
) -> ReplyReading:
    """Read and score the reply to an item.

    `size` is (width, height) of its image, and `seen` that after the processor's resize. Raises
    RoboAlignError if the judge of an open answer does not answer.
    """
    said = spoken(text, style, mode, ANSWER_LABELS[item.kind])
    if said.answer is None:
        return ReplyReading("", said.reason, 0.0)
    if item.kind == "letter":
        letter = LETTER_RULES[protocol.letter](said.answer, item.letters)
        if letter not in item.letters or not letter:
            return ReplyReading("", "no letter of an option", 0.0)
        return ReplyReading(letter, OK, float(letter == item.answer))
    if item.kind == "yes-no":
        word = yes_or_no(said.answer, protocol.yes_no)
        reason = OK if word else "neither yes nor no, or both"
        return ReplyReading(word, reason, float(bool(word) and word == item.answer))
    if item.kind == "judged":
        return _judged(said.answer, item, judge)
    return _read_points(said.answer, item, protocol, size, seen)


def mask_of(item: BenchItem, threshold: int) -> np.ndarray:
    """Return the region that an item asks for, bool [H, W], from the first channel of its mask.

    Raises RoboAlignError if it has none, or if the file cannot be read.
    """
    if item.mask is None:
        raise RoboAlignError(
            f"item {item.id} has no mask", fix="use the data set's own files, masks included"
        )
    values = decoded(item.mask, _first_channel)
    return values > threshold


def chance_of(item: BenchItem, mask: np.ndarray | None) -> float | None:
    """Return the expected score of a uniform guess; of a point, the region's share of the image."""
    if item.kind == "letter":
        return 1 / len(item.letters)
    if item.kind == "yes-no":
        return 0.5
    if item.kind == "judged":
        return None
    return None if mask is None else float(mask.mean())


def _judged(said: str, item: BenchItem, judge: BenchJudge | None) -> ReplyReading:
    score = require_judge(judge, f"item {item.id}").score(item.text, item.answer, said)
    if score is None:
        return ReplyReading("", "the judge gave no score", 0.0)
    return ReplyReading(f"{score:g} of {MOST_SCORE:g}", OK, score / MOST_SCORE)


def _first_channel(image: Image.Image) -> np.ndarray:
    if image.mode == "P" or image.mode == "1":
        image = image.convert("L")
    values = np.asarray(image)
    return values[..., 0] if values.ndim == 3 else values


def _read_points(
    said: str, item: BenchItem, protocol: Protocol, size: Extent, seen: Extent
) -> ReplyReading:
    spots = spots_in(said, protocol.form)
    if protocol.convention == "cells":
        spots = bare_pair(said) or spots
    boxes = boxes_in(said, protocol.form)
    if not spots and not (boxes and protocol.boxes):
        return ReplyReading("", "a box where a point is asked" if boxes else "no point", 0.0)
    if protocol.polygon:
        return _against_polygon(spots, item, protocol.convention, size, seen)
    mask = mask_of(item, protocol.threshold)
    whole = (mask.shape[1], mask.shape[0])
    pixels = [to_pixel(spot, protocol.convention, size, seen, whole) for spot in spots]
    areas = _corners(boxes, protocol, size, seen, whole) if protocol.boxes else []
    score = mask_score(mask, pixels, protocol.points, areas)
    read = "; ".join(", ".join(map(str, numbers)) for numbers in [*pixels, *areas])
    return ReplyReading(read, OK, score, len(pixels), outside(pixels, whole))


def _against_polygon(
    spots: Sequence[Spot], item: BenchItem, convention: Convention, size: Extent, seen: Extent
) -> ReplyReading:
    """Score the first point alone, as RoboSpatial-Eval's script does."""
    x, y = to_fraction(spots[0], convention, size, seen)
    score = float(len(item.polygon) > 2 and in_polygon(x, y, item.polygon))
    away = not (0 <= x < 1 and 0 <= y < 1)
    return ReplyReading(f"{x:.6g}, {y:.6g}", OK, score, 1, int(away))


def _corners(
    boxes: Sequence[Box], protocol: Protocol, size: Extent, seen: Extent, mask: Extent
) -> list[Corners]:
    """Return boxes in pixels of the mask."""
    found = []
    for box in boxes:
        left, top = to_pixel(box.first, protocol.convention, size, seen, mask)
        right, bottom = to_pixel(box.last, protocol.convention, size, seen, mask)
        found.append((left, top, right, bottom))
    return found
