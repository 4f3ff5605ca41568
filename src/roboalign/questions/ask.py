"""Define every question type, draw questions from scenes, and score answers."""

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from roboalign.conversations.prompts import Mode
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import Episode
from roboalign.questions import embodied as questions_embodied
from roboalign.questions import general as questions_general
from roboalign.questions import planning as questions_planning
from roboalign.questions.scene import Scene
from roboalign.questions.sentences import QuestionType, World
from roboalign.questions.states import NUMBERS, STATES, numbers_right

QUESTION_TYPES: dict[str, QuestionType] = {
    kind.name: kind
    for kind in (
        *questions_general.GENERAL_TYPES,
        *questions_embodied.EMBODIED_TYPES,
        *questions_planning.PLANNING_TYPES,
    )
}
OPTIONAL = frozenset({"trace"})
"""Groups that a mixture asks and measures only if its weights name them.

All others are always measured.
"""
LABELS = {
    "presence": "verdict",
    "object_name": "object",
    "gripper_state": "gripper",
    "gripper_command": "fingers",
    "move_left_right": "sideways",
    "move_back_forward": "depth",
    "move_down_up": "vertical",
    "left_right": "side",
    "back_forward": "side",
    "down_up": "side",
    "choice": "letter",
    "text": "answer",
}
_READ: dict[str, float | None] = {"choice": 1 / 2, "point": None, "text": 0.0}
"""Types of questions read from a source (conversations/qa) and their chance, as in `QuestionType`.

The number of options of a choice is unknown here. Two is the minimum, so that a guess among more
scores less.
"""
POINT_TOLERANCE = 2
"""Cells by which an answered point may be off, on each axis."""


@dataclass(frozen=True)
class Question:
    """A question whose answer is correct by construction."""

    type: str
    kind: str
    """general or embodied; reasoning if `reasoning` is given."""
    text: str
    answer: str
    reasoning: str | None


def ask(name: str, mode: Mode, scene: Scene, world: World, rng: random.Random) -> Question | None:
    """Draw a question of type `name`; return None if it does not apply to this scene."""
    kind = QUESTION_TYPES[name]
    draft = kind.make(scene, world, rng)
    if draft is None:
        return None
    if mode == "direct":
        return Question(name, kind.kind, draft.text, draft.answer, None)
    facts = list(dict.fromkeys(draft.facts))
    rng.shuffle(facts)
    return Question(
        name, "reasoning", draft.text, draft.answer, " ".join([*facts, draft.conclusion])
    )


def asked_types(weights: Mapping[str, float]) -> list[str]:
    """Return the types that a mixture of these group weights asks or measures.

    They are in the order of QUESTION_TYPES.
    """
    return [
        name
        for name, kind in QUESTION_TYPES.items()
        if kind.group not in OPTIONAL or weights.get(kind.group, 0) > 0
    ]


def survey_world(episodes: Iterable[Episode]) -> World:
    """Return what the data set contains, and per task what cannot be true of its scenes.

    That is, the objects and instructions to use as wrong options. A scene contains more than its
    own object: the mug is in front of the coffee machine whose button another task presses. Two
    tasks therefore count as separate only if what is said of them (instruction and nouns) shares no
    word of any object.
    """
    nouns: dict[str, set[str]] = {}
    instructions: dict[str, str] = {}
    said: dict[str, set[str]] = {}
    for episode in episodes:
        things = {noun for body, noun in episode.nouns.items() if body.startswith("object")}
        nouns.setdefault(episode.task, set()).update(things)
        instructions[episode.task] = episode.instruction
        texts = " ".join([episode.instruction, *episode.nouns.values()])
        said.setdefault(episode.task, set()).update(re.findall(r"\w+", texts.lower()))
    object_words = {
        word for things in nouns.values() for noun in things for word in noun.lower().split()
    }
    tasks = sorted(nouns)
    apart = {
        task: [other for other in tasks if not said[task] & said[other] & object_words]
        for task in tasks
    }
    return World(
        objects={
            task: tuple(sorted({noun for other in apart[task] for noun in nouns[other]}))
            for task in tasks
        },
        instructions={
            task: tuple(instructions[other] for other in apart[task] if nouns[other])
            for task in tasks
        },
    )


def score_answer(name: str, expected: str, predicted: str | None) -> float:
    """Return 1.0 for a correct answer and 0.0 otherwise; None (no readable answer) is wrong.

    A point is correct within POINT_TOLERANCE cells on both axes. A trace needs the expected number
    of points, each of them correct. Centimeters and degrees computed from states are scored as in
    `questions.states`. Every other type, including choices and free text from a source, must match
    the expected words (ignoring case, spaces and a final period). Raises RoboAlignError on an
    unknown type.
    """
    by_chance = _chance(name)
    if predicted is None:
        return 0.0
    if by_chance is None:
        return float(_near(name, expected, predicted))
    if name in NUMBERS:
        return float(numbers_right(name, expected, predicted))
    if name in ("trace", "gripper_trace"):
        targets, points = expected.split(", "), predicted.split(", ")
        near = [_near(name, target, found) for target, found in zip(targets, points)]
        return float(all(near) and len(points) == len(targets))
    return float(_normal(predicted) == _normal(expected))


def chance(name: str, grid: int = 32) -> float:
    """Return the expected score of a uniform guess among the answers of this type.

    It is 0.0 for open answers. For a choice read from a source it is the upper bound. For points it
    is the share of the grid that the tolerance covers. Always guessing the most frequent answer can
    score higher: compare with both.
    """
    by_chance = _chance(name)
    return ((2 * POINT_TOLERANCE + 1) / grid) ** 2 if by_chance is None else by_chance


def label_of(name: str) -> str:
    """Return the label that opens answers of this type: what they consist of."""
    if name in STATES:
        return STATES[name].label
    if _chance(name) is None:
        return "point"
    return "letter" if name.endswith("_choice") or name == "order" else LABELS.get(name, name)


def _chance(name: str) -> float | None:
    if name in _READ:
        return _READ[name]
    if name in STATES:
        return STATES[name].chance
    if name not in QUESTION_TYPES:
        raise RoboAlignError(
            f"unknown question type {name!r}",
            fix=f"use one of {', '.join([*QUESTION_TYPES, *STATES, *_READ])}",
        )
    return QUESTION_TYPES[name].chance


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
