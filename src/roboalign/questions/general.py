"""Ask general questions: what is in the image, and what is being done."""

import random

from roboalign.questions.scene import Scene
from roboalign.questions.sentences import (
    Draft,
    QuestionType,
    World,
    gripper_sentence,
    option_sentence,
    options,
    position_sentence,
)


def _shown(scene: Scene, rng: random.Random) -> list[str]:
    """Return one or two facts that show the object."""
    facts = [f"The image shows the {scene.nouns['object']}."]
    position = position_sentence(scene, "object")
    return [*facts, position] if position and rng.random() < 0.7 else facts


def presence(scene: Scene, world: World, rng: random.Random) -> Draft | None:
    """Is this object in the image? The answers yes and no are equally likely."""
    absent = world.objects[scene.task]
    if "object" not in scene.nouns or not absent:
        return None
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


def object_choice(scene: Scene, world: World, rng: random.Random) -> Draft | None:
    """Which of three objects is in the image?"""
    absent = world.objects[scene.task]
    if "object" not in scene.nouns or len(absent) < 2:
        return None
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


def object_name(scene: Scene, world: World, rng: random.Random) -> Draft | None:
    """Name the object, without options; asked only if the scene has no other object."""
    if "object" not in scene.nouns or "scene" in scene.nouns:
        return None
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


def task_choice(scene: Scene, world: World, rng: random.Random) -> Draft | None:
    """What is the robot doing? The two options have different objects, so one frame decides."""
    others = world.instructions[scene.task]
    if "object" not in scene.nouns or not others:
        return None
    listed, letter = options(rng, scene.instruction.rstrip("."), [rng.choice(others).rstrip(".")])
    text = rng.choice(
        ("What is the robot doing?", "Which task is this?", "What is the task of the robot?")
    )
    return Draft(
        f"{text} {listed}", letter, _shown(scene, rng), option_sentence(letter, "the task")
    )


GENERAL_TYPES = (
    QuestionType("presence", "general", "general", presence, 1 / 2),
    QuestionType("object_choice", "general", "general", object_choice, 1 / 3),
    QuestionType("object_name", "general", "general", object_name, 0.0),
    QuestionType("task_choice", "general", "general", task_choice, 1 / 2),
)
