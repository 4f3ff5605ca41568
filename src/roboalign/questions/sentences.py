"""Define the few sentence forms of every reasoning text, and the parts that questions share.

A small model learns to reason only if one sentence means the same in every question. The forms are
therefore written once, here: position, relation, distance, gripper, movement.
"""

import random
from collections.abc import Sequence

from roboalign.questions.facts.scene import AXES, FAR, HIGH, LOW, NEAR, GridCell, Scene, Signs

KEEP_DROPPED = 0.8  # share of the frames without opening or closing that are not asked about it
QUARTERS = ("first", "second", "third", "last")


def point(cell: GridCell) -> str:
    """Return column and row: `(12, 20)` -> `12 20`."""
    return f"{cell[0]} {cell[1]}"


def words(signs: Signs) -> list[str]:
    """Return words for the signs on x, y, z that are not 0, in that order."""
    return [AXES[axis][sign > 0] for axis, sign in enumerate(signs) if sign]


def phrase(parts: Sequence[str]) -> str:
    """Return `right, forward and down`, as in a sentence."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def relation_label(signs: Signs) -> str:
    """Return the answer form: `right, forward, down`, or `aligned`."""
    return ", ".join(words(signs)) or "aligned"


def movement_label(scene: Scene) -> str:
    """Return the answer form: `right, forward, down; keep`, or `stay; close`."""
    return f"{', '.join(words(scene.move)) or 'stay'}; {scene.command}"


def distance_bucket(metres: float) -> str:
    """Return near, medium or far."""
    return "near" if metres < NEAR else "far" if metres > FAR else "medium"


def height_bucket(metres: float) -> str:
    """Return low, middle or high."""
    return "low" if metres < LOW else "high" if metres > HIGH else "middle"


def position_sentence(scene: Scene, body: str) -> str | None:
    """Return `The drawer handle is at 25 14.`; None outside the image."""
    return (
        f"The {scene.nouns[body]} is at {point(scene.points[body])}."
        if body in scene.points
        else None
    )


def relation_sentence(scene: Scene, body: str) -> str:
    """Return `The drawer handle is right, forward and down of the gripper.`"""
    parts = words(scene.relations[body])
    return f"The {scene.nouns[body]} is {phrase(parts) + ' of' if parts else 'aligned with'} the gripper."


def distance_sentence(scene: Scene, body: str) -> str:
    """Return `The drawer handle is far from the gripper.`"""
    forms = {"near": "near", "medium": "at medium distance from", "far": "far from"}
    return (
        f"The {scene.nouns[body]} is {forms[distance_bucket(scene.distances[body])]} the gripper."
    )


def gripper_sentence(scene: Scene) -> str:
    """Return `The gripper is open.`"""
    return f"The gripper is {scene.gripper}."


def movement_sentence(scene: Scene) -> str:
    """Return `The gripper should move right, forward and down and stay open.`"""
    parts = words(scene.move)
    fingers = {
        "open": "open",
        "close": "close",
        "keep": f"stay {'open' if scene.gripper == 'open' else 'closed'}",
    }
    return f"The gripper should {'move ' + phrase(parts) if parts else 'stay'} and {fingers[scene.command]}."


def situation(scene: Scene, rng: random.Random, body: str) -> list[str]:
    """Return two or three random facts about the gripper and a body, to start a reasoning."""
    facts = [position_sentence(scene, "gripper")]
    if body != "gripper":
        facts += [position_sentence(scene, body), relation_sentence(scene, body)]
    known = [fact for fact in facts if fact]
    return known if rng.random() < 0.5 else rng.sample(known, max(1, len(known) - 1))


def options(rng: random.Random, right: str, wrong: Sequence[str]) -> tuple[str, str]:
    """Return options in random order: (`A: cup. B: drawer.`, the letter of the correct one)."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    letters = "ABCD"[: len(choices)]
    return " ".join(f"{letter}: {choice}." for letter, choice in zip(letters, choices)), letters[
        choices.index(right)
    ]


def option_sentence(letter: str, text: str) -> str:
    """Return the conclusion of a multiple choice: `Option B is the drawer.`"""
    return f"Option {letter} is {text}."
