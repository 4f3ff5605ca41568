"""Ask general questions: what is in the image, and what is being done."""

import random
from functools import partial

from roboalign.core.outcomes import Refused
from roboalign.questions.facts.scene import Scene
from roboalign.questions.sentences import (
    gripper_sentence,
    option_sentence,
    options,
    position_sentence,
)
from roboalign.questions.types import Draft, QuestionType, World


def _shown(scene: Scene, rng: random.Random) -> list[str]:
    """Return one or two facts that show the object."""
    facts = [f"The image shows the {scene.nouns['object']}."]
    position = position_sentence(scene, "object")
    return [*facts, position] if position and rng.random() < 0.7 else facts


def presence(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Is this object in the image? The answers yes and no are equally likely."""
    absent = world.objects[scene.task]
    if "object" not in scene.nouns or not absent:
        return Refused("the task's objects cannot be told from others'")
    yes = rng.random() < 0.5
    noun = scene.nouns["object"] if yes else rng.choice(absent)
    text = rng.choice(
        (
            "Is the {} in the image?",
            "Does the image show the {}?",
            "Can you see the {}?",
            "Is there the {} here?",
        )
    ).format(noun)
    conclusion = f"The {noun} is {'in' if yes else 'not in'} the image."
    return Draft(text, "yes" if yes else "no", _shown(scene, rng), conclusion)


def object_choice(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Which of three objects is in the image?"""
    absent = world.objects[scene.task]
    if "object" not in scene.nouns or len(absent) < 2:
        return Refused("the task's objects cannot be told from others'")
    listed, letter = options(rng, scene.nouns["object"], rng.sample(absent, 2))
    text = rng.choice(
        (
            "Which object is in the image?",
            "Which of these can you see?",
            "What does the image show?",
        )
    )
    conclusion = option_sentence(letter, f"the {scene.nouns['object']}")
    return Draft(f"{text} {listed}", letter, _shown(scene, rng), conclusion)


def object_name(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Name the object, without options; asked only if the scene has no other object."""
    if "object" not in scene.nouns or "scene" in scene.nouns:
        return Refused("the scene has other objects, or none is named")
    text = rng.choice(
        (
            "What object is in the image?",
            "Name the object in the image.",
            "What is the object on the table?",
        )
    )
    facts = [
        fact for fact in (position_sentence(scene, "gripper"), gripper_sentence(scene)) if fact
    ]
    noun = scene.nouns["object"]
    return Draft(text, noun, rng.sample(facts, 1), f"The image shows the {noun}.")


def task_choice(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """What is the robot doing? The two options have different objects, so one frame decides."""
    others = world.instructions[scene.task]
    if "object" not in scene.nouns or not others:
        return Refused("no other task has objects of its own")
    listed, letter = options(rng, scene.instruction.rstrip("."), [rng.choice(others).rstrip(".")])
    text = rng.choice(
        ("What is the robot doing?", "Which task is this?", "What is the task of the robot?")
    )
    return Draft(
        f"{text} {listed}", letter, _shown(scene, rng), option_sentence(letter, "the task")
    )


_general = partial(QuestionType, kind="general", group="general", facts="scene")
GENERAL_TYPES = (
    _general("presence", label="verdict", make=presence, chance=1 / 2),
    _general("object_choice", label="letter", make=object_choice, chance=1 / 3),
    _general("object_name", label="object", make=object_name),
    _general("task_choice", label="letter", make=task_choice, chance=1 / 2),
)
