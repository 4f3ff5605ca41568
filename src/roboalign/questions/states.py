"""How answers to the questions computed from robot states (`questions/vqa/states.py`) are scored."""

import re
from dataclasses import dataclass

from roboalign.core.errors import RoboAlignError

TOLERANCE = {"cm": 1.0, "degrees": 5.0}
"""What a number may miss by on each axis: the first step beyond rounding, and an angle that an image can show."""
SHARE = 0.2
"""Or by this share of the expected number, where that is more."""
MIRRORED = {
    "left": ("right", -1),
    "back": ("forward", -1),
    "down": ("up", -1),
    "tilt down": ("tilt up", -1),
    "roll left": ("roll right", -1),
    "turn right": ("turn left", -1),
}
"""The negative word of each axis -> (its positive word, the sign)."""
POSITIVE = {"cm": ("right", "forward", "up"), "degrees": ("tilt up", "roll right", "turn left")}

_CM = re.compile(r"(\d{1,5}) cm (right|left|forward|back|up|down)")
_DEGREES = re.compile(
    r"(tilt up|tilt down|roll left|roll right|turn left|turn right) (\d{1,5}) degrees?"
)


@dataclass(frozen=True)
class StateAnswer:
    """What an answer of a type consists of: the label it opens with, and the score of a uniform guess."""

    label: str
    chance: float | None
    """As in `sentences.QuestionType`: None for points, 0.0 where the answers are open."""


STATES: dict[str, StateAnswer] = {
    "fingers_now": StateAnswer("gripper", 1 / 2),
    "gripper_cell": StateAnswer("point", None),
    "next_movement": StateAnswer("movement", 1 / 27),
    "next_movement_choice": StateAnswer("letter", 1 / 3),
    "displacement": StateAnswer("displacement", 0.0),
    "main_direction": StateAnswer("direction", 1 / 6),
    "next_rotation": StateAnswer("rotation", 1 / 7),
    "relative_pose": StateAnswer("pose", 0.0),
    "fingers_next": StateAnswer("fingers", 1 / 3),
    "quarter": StateAnswer("progress", 1 / 4),
    "subtask_now": StateAnswer("subtask", 1 / 5),
    "subtask_next": StateAnswer("subtask", 1 / 5),
    "gripper_trace": StateAnswer("trace", 0.0),
    "frame_order": StateAnswer("side", 1 / 2),
}
NUMBERS = {"displacement": ("cm",), "relative_pose": ("cm", "degrees")}
"""Types whose answers are numbers, with their units."""


def read_numbers(text: str, units: tuple[str, ...]) -> dict[tuple[str, str], int] | None:
    """`4 cm left, tilt up 3 degrees` -> {("cm", "right"): -4, ("degrees", "tilt up"): 3, the other axes: 0}.

    `0 cm` and `0 degrees` stand for none. None where a part is anything else, is of another unit than `units`, an axis
    comes twice, or a unit has no part.
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


def numbers_right(name: str, expected: str, predicted: str) -> bool:
    """Whether each axis is within TOLERANCE of its unit, or SHARE of the expected number.

    Raises RoboAlignError where `expected` cannot be read: the data is broken, not the answer.
    """
    target, found = read_numbers(expected, NUMBERS[name]), read_numbers(predicted, NUMBERS[name])
    if target is None:
        raise RoboAlignError(
            f"the expected answer {expected!r} holds no such numbers", where=f"question type {name}"
        )
    if found is None:
        return False
    return all(
        abs(found[key] - n) <= max(TOLERANCE[key[0]], SHARE * abs(n)) for key, n in target.items()
    )
