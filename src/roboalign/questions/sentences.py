"""The few sentence forms that every reasoning text is built of, and the parts that questions share.

A small model learns to reason only where the same sentence says the same thing under every question, so the forms are
written once, here: position, relation, distance, gripper, movement.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from roboalign.questions.scene import AXES, FAR, HIGH, LOW, NEAR, GridCell, Scene, Signs

KEEP_DROPPED = 0.8  # share of the frames without an opening or closing that are not asked about it
QUARTERS = ("first", "second", "third", "last")


@dataclass(frozen=True)
class World:
    """What the whole data set holds: where wrong options come from."""

    objects: dict[str, tuple[str, ...]]
    """task -> names of objects that are certainly not in its scenes (they share no word with what is)."""
    instructions: dict[str, tuple[str, ...]]
    """task -> instructions of tasks whose objects share no word with those of this task."""


@dataclass(frozen=True)
class Draft:
    """A question before its mode is chosen. `facts` are shuffled; the reasoning is facts + conclusion."""

    text: str
    answer: str
    facts: Sequence[str]
    conclusion: str


_Make = Callable[[Scene, World, random.Random], Draft | None]
"""None where the question cannot be asked of this frame (a body is missing or outside the image)."""


@dataclass(frozen=True)
class QuestionType:
    """A family of questions with the same answers. `group` is what the mixture weighs."""

    name: str
    kind: Literal["general", "embodied"]
    group: Literal["general", "spatial", "state", "planning", "trace"]
    make: _Make
    chance: float | None
    """Expected score of a uniform guess among the possible answers; None for image points (it depends on the grid)."""


def point(cell: GridCell) -> str:
    """`(12, 20)` -> `12 20`: column and row."""
    return f"{cell[0]} {cell[1]}"


def words(signs: Signs) -> list[str]:
    """Signs on x, y, z -> words of the axes that are not 0, in that order."""
    return [AXES[axis][sign > 0] for axis, sign in enumerate(signs) if sign]


def phrase(parts: Sequence[str]) -> str:
    """`right, forward and down`, as a sentence says it."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def relation_label(signs: Signs) -> str:
    """The answer form: `right, forward, down`, or `aligned`."""
    return ", ".join(words(signs)) or "aligned"


def movement_label(scene: Scene) -> str:
    """The answer form: `right, forward, down; keep`, or `stay; close`."""
    return f"{', '.join(words(scene.move)) or 'stay'}; {scene.command}"


def distance_bucket(metres: float) -> str:
    """near, medium or far."""
    return "near" if metres < NEAR else "far" if metres > FAR else "medium"


def height_bucket(metres: float) -> str:
    """low, middle or high."""
    return "low" if metres < LOW else "high" if metres > HIGH else "middle"


def position_sentence(scene: Scene, body: str) -> str | None:
    """`The drawer handle is at 25 14.`; None outside the image."""
    return (
        f"The {scene.nouns[body]} is at {point(scene.points[body])}."
        if body in scene.points
        else None
    )


def relation_sentence(scene: Scene, body: str) -> str:
    """`The drawer handle is right, forward and down of the gripper.`"""
    parts = words(scene.relations[body])
    return f"The {scene.nouns[body]} is {phrase(parts) + ' of' if parts else 'aligned with'} the gripper."


def distance_sentence(scene: Scene, body: str) -> str:
    """`The drawer handle is far from the gripper.`"""
    forms = {"near": "near", "medium": "at medium distance from", "far": "far from"}
    return (
        f"The {scene.nouns[body]} is {forms[distance_bucket(scene.distances[body])]} the gripper."
    )


def gripper_sentence(scene: Scene) -> str:
    """`The gripper is open.`"""
    return f"The gripper is {scene.gripper}."


def movement_sentence(scene: Scene) -> str:
    """`The gripper should move right, forward and down and stay open.`"""
    parts = words(scene.move)
    fingers = {
        "open": "open",
        "close": "close",
        "keep": f"stay {'open' if scene.gripper == 'open' else 'closed'}",
    }
    return f"The gripper should {'move ' + phrase(parts) if parts else 'stay'} and {fingers[scene.command]}."


def situation(scene: Scene, rng: random.Random, body: str) -> list[str]:
    """Two or three facts about the gripper and a body, chosen at random: what a reasoning starts from."""
    facts = [position_sentence(scene, "gripper")]
    if body != "gripper":
        facts += [position_sentence(scene, body), relation_sentence(scene, body)]
    known = [fact for fact in facts if fact]
    return known if rng.random() < 0.5 else rng.sample(known, max(1, len(known) - 1))


def options(rng: random.Random, right: str, wrong: Sequence[str]) -> tuple[str, str]:
    """Options in random order -> (`A: cup. B: drawer.`, the letter of the right one)."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    letters = "ABCD"[: len(choices)]
    return " ".join(f"{letter}: {choice}." for letter, choice in zip(letters, choices)), letters[
        choices.index(right)
    ]


def option_sentence(letter: str, text: str) -> str:
    """The conclusion of a multiple choice: `Option B is the drawer.`"""
    return f"Option {letter} is {text}."
