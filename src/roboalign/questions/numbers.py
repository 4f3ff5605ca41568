"""Score answers to questions computed from robot states (`questions/movement.py`)."""

import re

from roboalign.core.errors import RoboAlignError

TOLERANCE = {"cm": 1.0, "degrees": 5.0}
"""Allowed error of a number on each axis.

It is the first step beyond rounding, and an angle that an image can show.
"""
SHARE = 0.2
"""Allowed share of the expected number, if that is more."""
MIRRORED = {
    "left": ("right", -1),
    "back": ("forward", -1),
    "down": ("up", -1),
    "tilt down": ("tilt up", -1),
    "roll left": ("roll right", -1),
    "turn right": ("turn left", -1),
}
"""Negative word of each axis -> (its positive word, the sign)."""
POSITIVE = {"cm": ("right", "forward", "up"), "degrees": ("tilt up", "roll right", "turn left")}

_CM = re.compile(r"(\d{1,5}) cm (right|left|forward|back|up|down)")
_DEGREES = re.compile(
    r"(tilt up|tilt down|roll left|roll right|turn left|turn right) (\d{1,5}) degrees?"
)


def read_numbers(text: str, units: tuple[str, ...]) -> dict[tuple[str, str], int] | None:
    """Parse `4 cm left, tilt up 3 degrees`.

    Returns {("cm", "right"): -4, ("degrees", "tilt up"): 3, the other axes: 0}. `0 cm` and `0
    degrees` mean none. Returns None if a part is anything else or has a unit outside `units`, if an
    axis is repeated, or if a unit has no part.
    """
    found: dict[tuple[str, str], int] = {}
    said: set[str] = set()
    for part in re.sub(r"\s+", " ", text).strip().rstrip(".").lower().split(", "):
        if part in ("0 cm", "0 degrees"):
            said.add(part[2:])
            continue
        if moved := _CM.fullmatch(part):
            unit, number, word = "cm", int(moved[1]), moved[2]
        elif turned := _DEGREES.fullmatch(part):
            unit, number, word = "degrees", int(turned[2]), turned[1]
        else:
            return None
        axis, sign = MIRRORED.get(word, (word, 1))
        if (unit, axis) in found:
            return None
        found[unit, axis] = sign * number
        said.add(unit)
    if said != set(units):
        return None
    return {(unit, axis): found.get((unit, axis), 0) for unit in units for axis in POSITIVE[unit]}


def numbers_right(name: str, units: tuple[str, ...], expected: str, predicted: str) -> bool:
    """Return whether each axis is within its unit's TOLERANCE, or SHARE of the expected number.

    Raises RoboAlignError if `expected` cannot be read: the data is broken, not the answer.
    """
    target, found = read_numbers(expected, units), read_numbers(predicted, units)
    if target is None:
        raise RoboAlignError(
            f"the expected answer {expected!r} holds no such numbers", where=f"question type {name}"
        )
    if found is None:
        return False
    return all(
        abs(found[key] - n) <= max(TOLERANCE[key[0]], SHARE * abs(n)) for key, n in target.items()
    )
