"""Ask planning questions: what the robot should do next.

They begin with the task, like the action question. All questions about the next movement share one
text and one reasoning: the situation, then the movement. Only the label that the question names
says whether words, a letter or a point follow. If the wording or the end of the reasoning said so,
a small model would rely on that and never answer with actions after reasoning.
"""

import random
from functools import partial

from roboalign.conversations.prompts import NEXT_STEP, next_step, task_prefix
from roboalign.core.outcomes import Refused
from roboalign.questions.facts.scene import AXES, Scene
from roboalign.questions.sentences import (
    KEEP_DROPPED,
    QUARTERS,
    distance_sentence,
    gripper_sentence,
    movement_label,
    movement_sentence,
    option_sentence,
    options,
    point,
    situation,
    words,
)
from roboalign.questions.types import Draft, QuestionType, World

APART = 3  # minimum steps between two events for their order to be asked


def _ask(scene: Scene, rng: random.Random, *wordings: str) -> str:
    return f"{task_prefix(scene.instruction)} {rng.choice(wordings)}"


def _facts(scene: Scene, rng: random.Random) -> list[str]:
    """Return the gripper's situation and its target, and sometimes the fingers."""
    facts = situation(scene, rng, scene.target)
    return [*facts, gripper_sentence(scene)] if rng.random() < 0.4 else facts


def _next_step(scene: Scene, rng: random.Random) -> str:
    return next_step(scene.instruction, rng.randrange(len(NEXT_STEP)))


def movement(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Which way should the gripper move, and should it open or close?"""
    return Draft(
        _next_step(scene, rng), movement_label(scene), _facts(scene, rng), movement_sentence(scene)
    )


def movement_choice(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """The same with three options."""
    right = ", ".join(words(scene.move)) or "stay"
    wrong: list[str] = []
    while len(wrong) < 2:
        signs = (rng.choice((-1, 0, 1)), rng.choice((-1, 0, 1)), rng.choice((-1, 0, 1)))
        label = ", ".join(words(signs)) or "stay"
        if label != right and label not in wrong:
            wrong.append(label)
    listed, letter = options(rng, right, wrong)
    text = f"{_next_step(scene, rng)} {listed}"
    return Draft(text, letter, _facts(scene, rng), movement_sentence(scene))


def movement_axis(axis: int, scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Should the gripper move left or right (back or forward, down or up), or stay on this axis?"""
    sign = scene.move[axis]
    answer = AXES[axis][sign > 0] if sign else "stay"
    return Draft(_next_step(scene, rng), answer, _facts(scene, rng), movement_sentence(scene))


def command(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Should the gripper open, close or keep as it is?

    Most frames that answer keep are skipped, or most questions would be about keeping.
    """
    if scene.command == "keep" and rng.random() < KEEP_DROPPED:
        return Refused("the fingers keep as they are, which is not asked of every frame")
    return Draft(
        _next_step(scene, rng), scene.command, _facts(scene, rng), movement_sentence(scene)
    )


def waypoint(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Where in the image will the gripper be in WAYPOINT steps?"""
    if scene.waypoint is None:
        return Refused("the waypoint is outside the image or the episode")
    return Draft(
        _next_step(scene, rng), point(scene.waypoint), _facts(scene, rng), movement_sentence(scene)
    )


def trace(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Along which image points will the gripper move (the paper's 2D visual trajectory)?"""
    if scene.trace is None:
        return Refused("the gripper leaves the image")
    answer = ", ".join(point(cell) for cell in scene.trace)
    return Draft(_next_step(scene, rng), answer, _facts(scene, rng), movement_sentence(scene))


def phase(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Which phase is the robot in: reach, grasp, move or done?"""
    if scene.target not in scene.distances:
        return Refused("the episode has no body to reach")
    text = _ask(
        scene,
        rng,
        "Is the phase reach, grasp, move or done?",
        "In which phase is the robot?",
        "Which phase of the task is this?",
    )
    facts = [distance_sentence(scene, scene.target), gripper_sentence(scene)]
    return Draft(text, scene.phase, facts, f"The phase is {scene.phase}.")


def progress(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """In which quarter of the demonstration is this frame?"""
    text = _ask(
        scene,
        rng,
        "Which quarter of the task is this?",
        "How much of the task is done?",
        "Is this the first, second, third or last quarter?",
    )
    facts = [distance_sentence(scene, scene.target)] if scene.target in scene.distances else []
    quarter = QUARTERS[scene.quarter]
    return Draft(
        text, quarter, [*facts, gripper_sentence(scene)], f"This is the {quarter} quarter."
    )


def order(scene: Scene, world: World, rng: random.Random) -> Draft | Refused:
    """Which of two upcoming events does the robot do first?"""
    pairs = [
        (a, b)
        for a in scene.events
        for b in scene.events
        if scene.events[a] + APART <= scene.events[b]
    ]
    if not pairs:
        return Refused("no two coming events are clearly apart")
    first, second = rng.choice(pairs)
    listed, letter = options(rng, first, [second])
    text = _ask(
        scene, rng, "What happens first?", "What should the robot do first?", "Which comes first?"
    )
    facts = [gripper_sentence(scene)]
    if scene.target in scene.distances:
        facts.append(distance_sentence(scene, scene.target))
    conclusion = f"The robot should {first} and then {second}. {option_sentence(letter, 'first')}"
    return Draft(f"{text} {listed}", letter, facts, conclusion)


_planning = partial(QuestionType, kind="embodied", group="planning", facts="scene")
PLANNING_TYPES = (
    _planning("movement", label="movement", make=movement, chance=1 / 81),
    _planning("movement_choice", label="letter", make=movement_choice, chance=1 / 3),
    _planning("move_left_right", label="sideways", make=partial(movement_axis, 0), chance=1 / 3),
    _planning("move_back_forward", label="depth", make=partial(movement_axis, 1), chance=1 / 3),
    _planning("move_down_up", label="vertical", make=partial(movement_axis, 2), chance=1 / 3),
    _planning("gripper_command", label="fingers", make=command, chance=1 / 3),
    _planning("waypoint", label="point", make=waypoint, chance=None, score="point"),
    _planning("phase", label="phase", make=phase, chance=1 / 4),
    _planning("progress", label="progress", make=progress, chance=1 / 4),
    _planning("order", label="letter", make=order, chance=1 / 2),
    QuestionType("trace", "embodied", "trace", "scene", label="trace", make=trace, score="points"),
)
