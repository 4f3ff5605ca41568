"""Read points and boxes from an answer, and convert them by a named convention of coordinates.

The convention is part of a benchmark's number: (120, 80) is a point of the image in pixels, of an
image that the processor has resized, or of a grid of 1000 x 1000. It is never guessed; two
conventions of other people distinguish numbers with and without a decimal point, and say so.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

Convention = Literal[
    "unit",
    "thousand",
    "unit-or-thousand",
    "unit-or-pixels",
    "pixels",
    "seen-pixels",
    "cells",
]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
PointForm = Literal["tuples", "last-line", "pairs", "tuples-first", "fenced-json"]
CELLS = 32
"""Cells of each axis in this package's generated questions (`mix.grid`)."""
FARTHEST = 1e9
"""Larger coordinates count as this one: far outside, and still a number."""

_TUPLE = re.compile(r"\(([-+]?\d+\.?\d*(?:,\s*[-+]?\d+\.?\d*)*?)\)")
_NUMBER = r"[-+]?\d+\.?\d*"
_PAIR = re.compile(rf"[\[\(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\]\)]")
_UNSIGNED = re.compile(r"[\[\(]\s*(\d+\.?\d*)\s*,\s*(\d+\.?\d*)\s*[\]\)]")
_FOUR = re.compile(r"[\[\(]\s*" + r"\s*,\s*".join([f"({_NUMBER})"] * 4) + r"\s*[\]\)]")
_FENCE = re.compile(r"```(?:\w+)?\n(.*?)```", re.DOTALL)
_BARE_PAIR = re.compile(r"\s*(\d+(?:\.\d+)?)[\s,]+(\d+(?:\.\d+)?)\s*\.?\s*")


@dataclass(frozen=True)
class Spot:
    """Two numbers as they were written."""

    x: float
    y: float
    whole: bool
    """Neither was written with a decimal point."""


@dataclass(frozen=True)
class Box:
    """Two corners as they were written: left, top, right, bottom."""

    first: Spot
    last: Spot


def spots_in(text: str, form: PointForm) -> list[Spot]:
    """Return the points of an answer in the order in which they are written.

    `tuples`: `(x, y)` without other spaces (RoboPoint's script, lmms-eval's `where2place`).
    `last-line`: the same in the last line alone (FlagEvalMM). `pairs`: `[x, y]` or `(x, y)`, also
    inside JSON (lmms-eval's `_json` tasks). `tuples-first`: pairs without a sign, those in round
    brackets where there are any, else those in square ones (RoboSpatial-Eval's script).
    `fenced-json`: `point_2d` of a JSON list in a code fence (lmms-eval's `robo_spatial`).
    """
    if form == "fenced-json":
        return list(_fenced(text))
    if form == "pairs":
        return [_spot(*pair) for pair in _PAIR.findall(text)]
    if form == "tuples-first":
        found = list(_UNSIGNED.finditer(text))
        chosen = [pair for pair in found if pair[0].startswith("(")] or found
        return [_spot(pair[1], pair[2]) for pair in chosen]
    return [_spot(*numbers) for numbers in _tuples(text, form) if len(numbers) == 2]


def boxes_in(text: str, form: PointForm) -> list[Box]:
    """Return the boxes of an answer: four numbers where `spots_in` takes two."""
    if form == "fenced-json":
        return []
    bracketed = form in ("pairs", "tuples-first")
    found = _FOUR.findall(text) if bracketed else _tuples(text, form)
    return [Box(_spot(*four[:2]), _spot(*four[2:])) for four in found if len(four) == 4]


def bare_pair(text: str) -> list[Spot]:
    """Return the point of an answer that is two numbers and nothing else, as `12 7`."""
    found = _BARE_PAIR.fullmatch(text)
    return [_spot(found[1], found[2])] if found else []


def to_fraction(
    spot: Spot, convention: Convention, size: tuple[int, int], seen: tuple[int, int]
) -> tuple[float, float]:
    """Return (x, y) as fractions of the image's width and height; outside of [0, 1) is outside.

    `size` is (width, height) of the image, and `seen` that after the processor's resize.
    """
    if convention == "cells":
        return (spot.x + 0.5) / CELLS, (spot.y + 0.5) / CELLS
    if convention == "unit" or (convention.startswith("unit-or-") and not spot.whole):
        return spot.x, spot.y
    if convention in ("thousand", "unit-or-thousand"):
        return spot.x / 1000, spot.y / 1000
    width, height = seen if convention == "seen-pixels" else size
    return spot.x / width, spot.y / height


def to_pixel(
    spot: Spot,
    convention: Convention,
    size: tuple[int, int],
    seen: tuple[int, int],
    mask: tuple[int, int],
) -> tuple[int, int]:
    """Return the pixel (x, y) of a mask (width, height) that covers the whole image.

    Cut toward zero, as all the scripts do. Pixels of an image that is as large as its mask stay what
    they are: a fraction of them may be rounded below.
    """
    absolute = convention == "pixels" or (convention == "unit-or-pixels" and spot.whole)
    if absolute and size == mask:
        return int(spot.x), int(spot.y)
    x, y = to_fraction(spot, convention, size, seen)
    return int(x * mask[0]), int(y * mask[1])


def _tuples(text: str, form: PointForm) -> list[list[str]]:
    said = text.strip().split("\n")[-1] if form == "last-line" else text
    return [[part.strip() for part in found.split(",")] for found in _TUPLE.findall(said)]


def _spot(x: str, y: str) -> Spot:
    bounded = [min(max(float(number), -FARTHEST), FARTHEST) for number in (x, y)]
    return Spot(bounded[0], bounded[1], whole="." not in x + y)


def _fenced(text: str) -> Iterator[Spot]:
    fence = _FENCE.search(text)
    try:
        entries = json.loads(fence[1].strip()) if fence else []
    except (ValueError, RecursionError):
        return
    for entry in entries if isinstance(entries, list) else []:
        pair = entry.get("point_2d") if isinstance(entry, dict) else None
        if isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)):
            yield Spot(float(pair[0]), float(pair[1]), all(isinstance(n, int) for n in pair))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FARTHEST
