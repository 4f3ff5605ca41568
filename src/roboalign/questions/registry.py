"""List every question type once: name, group, the facts it is made from, how it is scored."""

import re
from collections.abc import Mapping

from roboalign.core.errors import RoboAlignError
from roboalign.questions.embodied import EMBODIED_TYPES
from roboalign.questions.general import GENERAL_TYPES
from roboalign.questions.movement import MOVEMENT_TYPES
from roboalign.questions.numbers import numbers_right
from roboalign.questions.planning import PLANNING_TYPES
from roboalign.questions.types import Facts, QuestionType

SOURCE_TYPES = (
    QuestionType("choice", "general", "source", "source", "letter", None, 1 / 2),
    QuestionType("point", "general", "source", "source", "point", None, None, "point"),
    QuestionType("text", "general", "source", "source", "answer", None),
)
"""Types read from a source (conversations/qa) or written by a teacher.

The number of options of a choice is unknown here. Two is the minimum, so that a guess among more
scores less.
"""
QUESTION_TYPES: dict[str, QuestionType] = {
    kind.name: kind
    for kind in (
        *GENERAL_TYPES,
        *EMBODIED_TYPES,
        *PLANNING_TYPES,
        *MOVEMENT_TYPES,
        *SOURCE_TYPES,
    )
}
OPTIONAL = frozenset({"trace"})
"""Groups that a mixture asks and measures only if its weights name them.

All others are always measured.
"""
POINT_TOLERANCE = 2
"""Cells by which an answered point may be off, on each axis."""


def types_from(facts: Facts) -> dict[str, QuestionType]:
    """Return the types made from these facts, in the order of the registry."""
    return {name: kind for name, kind in QUESTION_TYPES.items() if kind.facts == facts}


def asked_types(weights: Mapping[str, float], facts: Facts = "scene") -> list[str]:
    """Return the types that a mixture of these group weights asks or measures, in order."""
    return [
        name
        for name, kind in types_from(facts).items()
        if kind.group not in OPTIONAL or weights.get(kind.group, 0) > 0
    ]


def type_of(name: str) -> QuestionType:
    """Return the row of a type. Raises RoboAlignError if there is none."""
    if name not in QUESTION_TYPES:
        raise RoboAlignError(
            f"unknown question type {name!r}", fix=f"use one of {', '.join(QUESTION_TYPES)}"
        )
    return QUESTION_TYPES[name]


def label_of(name: str) -> str:
    """Return the label that opens answers of this type: what they consist of."""
    return type_of(name).label


def chance(name: str, grid: int = 32) -> float:
    """Return the expected score of a uniform guess among the answers of this type.

    It is 0.0 for open answers. For a choice read from a source it is the upper bound. For points it
    is the share of the grid that the tolerance covers. Always guessing the most frequent answer can
    score higher: compare with both.
    """
    by_chance = type_of(name).chance
    return ((2 * POINT_TOLERANCE + 1) / grid) ** 2 if by_chance is None else by_chance


def score_answer(name: str, expected: str, predicted: str | None) -> float:
    """Return 1.0 for a correct answer and 0.0 otherwise; None (no readable answer) is wrong.

    A point is correct within POINT_TOLERANCE cells on both axes. A trace needs the expected number
    of points, each of them correct. Centimeters and degrees computed from states are scored as in
    `questions.numbers`. Every other type, including choices and free text from a source, must match
    the expected words (ignoring case, spaces and a final period). Raises RoboAlignError on an
    unknown type.
    """
    kind = type_of(name)
    if predicted is None:
        return 0.0
    if kind.score == "point":
        return float(_near(name, expected, predicted))
    if kind.score == "numbers":
        return float(numbers_right(name, kind.units, expected, predicted))
    if kind.score == "points":
        targets, points = expected.split(", "), predicted.split(", ")
        near = [_near(name, target, found) for target, found in zip(targets, points)]
        return float(all(near) and len(points) == len(targets))
    return float(_normal(predicted) == _normal(expected))


def _near(name: str, expected: str, predicted: str) -> bool:
    target, found = _point(expected), _point(predicted)
    if target is None:
        raise RoboAlignError(
            f"the expected answer {expected!r} is not a point", where=f"question type {name}"
        )
    return found is not None and all(abs(a - b) <= POINT_TOLERANCE for a, b in zip(target, found))


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().rstrip(".").lower()


def _point(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"\s*(\d{1,4})[\s,]+(\d{1,4})\s*\.?\s*", text)
    return (int(match[1]), int(match[2])) if match else None
