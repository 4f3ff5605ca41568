"""Ask embodied questions: positions, relations to the gripper, and the gripper's state."""

import random
from functools import partial

from roboalign.conversations.prompts import task_prefix
from roboalign.core.outcomes import Refused
from roboalign.questions.facts.scene import AXES, Scene
from roboalign.questions.sentences import (
    distance_bucket,
    distance_sentence,
    gripper_sentence,
    height_bucket,
    point,
    position_sentence,
    relation_label,
    relation_sentence,
    words,
)
from roboalign.questions.types import Draft, QuestionType, World

CLEARLY_CLOSER = 0.03  # meters; "which is closer" is not asked below this difference


def body_point(body: str, scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Where is the gripper / object / goal in the image? The goal is asked with its task, which defines it."""
    if body not in scene.points:
        return Refused("it is outside the image, or not in the episode")
    noun = scene.nouns[body]
    text = rng.choice(
        (
            "Where is the {}?",
            "Point to the {}.",
            "At which point is the {}?",
            "Give the position of the {}.",
        )
    ).format(noun)
    if body == "goal" or (body == "object" and rng.random() < 0.3):
        text = f"{task_prefix(scene.instruction)} {text}"
    others = [b for b in ("gripper", "object", "goal") if b != body and b in scene.points]
    facts = [
        fact
        for b in rng.sample(others, min(1, len(others)))
        if (fact := position_sentence(scene, b))
    ]
    if body != "gripper" and rng.random() < 0.6:
        facts.append(relation_sentence(scene, body))
    return Draft(text, point(scene.points[body]), facts, position_sentence(scene, body) or "")


def _body(scene: Scene, rng: random.Random) -> str | None:
    """Return a body to relate to the gripper; the object more often than the goal."""
    known = [body for body in ("object", "object", "object2", "goal") if body in scene.relations]
    return rng.choice(known) if known else None


def _points(scene: Scene, *bodies: str) -> list[str]:
    return [fact for body in bodies if (fact := position_sentence(scene, body))]


def relation_axis(axis: int, scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Is the body left or right (back or forward, down or up) of the gripper, or aligned with it?"""
    body = _body(scene, rng)
    if body is None:
        return Refused("no body to relate to the gripper")
    low, high = AXES[axis]
    names = (low, high) if rng.random() < 0.5 else (high, low)
    text = rng.choice(
        (
            "Is the {0} {1} or {2} of the gripper?",
            "Seen from the gripper, is the {0} {1} or {2}?",
            "Is the {0} more {1} or more {2} than the gripper?",
        )
    ).format(scene.nouns[body], *names)
    sign = scene.relations[body][axis]
    return Draft(
        text,
        AXES[axis][sign > 0] if sign else "aligned",
        _points(scene, "gripper", body),
        relation_sentence(scene, body),
    )


def relation(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Where is the body relative to the gripper, on all three axes?"""
    body = _body(scene, rng)
    if body is None:
        return Refused("no body to relate to the gripper")
    text = rng.choice(
        (
            "Where is the {} relative to the gripper?",
            "In which direction of the gripper is the {}?",
            "Seen from the gripper, where is the {}?",
        )
    ).format(scene.nouns[body])
    label = relation_label(scene.relations[body])
    return Draft(text, label, _points(scene, "gripper", body), relation_sentence(scene, body))


def distance(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """How far is the body from the gripper: near, medium or far?"""
    body = _body(scene, rng)
    if body is None:
        return Refused("no body to relate to the gripper")
    text = rng.choice(
        (
            "How far is the {} from the gripper?",
            "Is the {} near, medium or far from the gripper?",
            "What is the distance from the gripper to the {}?",
        )
    ).format(scene.nouns[body])
    bucket = distance_bucket(scene.distances[body])
    return Draft(text, bucket, _points(scene, "gripper", body), distance_sentence(scene, body))


def closer(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Which is closer to the gripper, the object or the goal? Skipped at similar distances."""
    if not {"object", "goal"} <= scene.distances.keys():
        return Refused("there are no two bodies to compare")
    difference = scene.distances["object"] - scene.distances["goal"]
    if abs(difference) < CLEARLY_CLOSER:
        return Refused("both are about as close")
    names = [scene.nouns["object"], scene.nouns["goal"]]
    rng.shuffle(names)
    text = rng.choice(
        (
            "Which is closer to the gripper, the {} or the {}?",
            "What is closer to the gripper: the {} or the {}?",
            "Is the {} or the {} closer to the gripper?",
        )
    ).format(*names)
    nearest = scene.nouns["object" if difference < 0 else "goal"]
    facts = [distance_sentence(scene, "object"), distance_sentence(scene, "goal")]
    return Draft(text, nearest, facts, f"The {nearest} is closer to the gripper.")


def gripper(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Is the gripper open, closed or holding something?"""
    text = rng.choice(
        (
            "Is the gripper open, closed or holding?",
            "What is the state of the gripper?",
            "How is the gripper?",
        )
    )
    facts = _points(scene, "gripper")
    if "object" in scene.distances:
        facts.append(distance_sentence(scene, "object"))
    return Draft(text, scene.gripper, facts, gripper_sentence(scene))


def height(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Is the gripper low, in the middle or high above the table?"""
    text = rng.choice(
        (
            "How high is the gripper?",
            "Is the gripper low, middle or high?",
            "What is the height of the gripper?",
        )
    )
    bucket = height_bucket(scene.height)
    facts = _points(scene, "gripper")
    if "object" in scene.relations and words(scene.relations["object"]):
        facts.append(relation_sentence(scene, "object"))
    return Draft(text, bucket, facts, f"The gripper is {bucket}.")


_embodied = partial(QuestionType, kind="embodied", facts="scene")
_spatial, _state = partial(_embodied, group="spatial"), partial(_embodied, group="state")
_point = partial(_spatial, label="point", chance=None, score="point")
EMBODIED_TYPES = (
    _point("gripper_point", make=partial(body_point, "gripper")),
    _point("object_point", make=partial(body_point, "object")),
    _point("goal_point", make=partial(body_point, "goal")),
    _spatial("left_right", label="side", make=partial(relation_axis, 0), chance=1 / 3),
    _spatial("back_forward", label="side", make=partial(relation_axis, 1), chance=1 / 3),
    _spatial("down_up", label="side", make=partial(relation_axis, 2), chance=1 / 3),
    _spatial("relation", label="relation", make=relation, chance=1 / 27),
    _spatial("distance", label="distance", make=distance, chance=1 / 3),
    _spatial("closer", label="closer", make=closer, chance=1 / 2),
    _state("gripper_state", label="gripper", make=gripper, chance=1 / 3),
    _state("height", label="height", make=height, chance=1 / 3),
)
