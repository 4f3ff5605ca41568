"""Ask questions from states and actions, with answers correct by construction.

They replace the paper's RoboAlign VQA, which a teacher model wrote; `teacher/` works that way.
No type has the name of one made from a simulator's state.
"""

import random
from functools import partial

import numpy as np

from roboalign.conversations.prompts import task_prefix
from roboalign.core.outcomes import Refused
from roboalign.questions.facts.motion import CLEAR, LEVEL, TURNED, Motion, dominant
from roboalign.questions.facts.scene import AXES, Signs
from roboalign.questions.sentences import (
    KEEP_DROPPED,
    QUARTERS,
    option_sentence,
    options,
    phrase,
    point,
    words,
)
from roboalign.questions.types import Draft, QuestionType

TURNS = (("tilt down", "tilt up"), ("roll left", "roll right"), ("turn right", "turn left"))
"""Words for the negative and positive rotation about right, forward, up (right-handed)."""
SUBTASKS = ("reach", "grasp", "move", "release", "retreat")
NO_TASK = Refused("the episode has no instruction, and what comes next depends on it")


def facts(motion: Motion, t: int) -> list[str]:
    """Return the known facts of a frame as sentences: fingers, subtask, next movement."""
    fingers, subtask = motion.fingers(t), motion.subtask(t)
    found = [] if isinstance(fingers, Refused) else [f"The gripper is {fingers}."]
    return found if isinstance(subtask, Refused) else [*found, f"The subtask is {subtask}."]


def motion_sentence(motion: Motion, signs: Signs) -> str:
    """Return `The gripper should move right and up.`"""
    parts = words(signs)
    return f"The gripper should {'move ' + phrase(parts) if parts else 'stay'}."


def asked(motion: Motion, text: str) -> str:
    instruction = motion.episode.instruction.strip()
    return f"{task_prefix(instruction)} {text}" if instruction else text


def _steps(motion: Motion) -> str:
    k = motion.config.horizon
    return f"in the next {k} steps" if k > 1 else "in the next step"


def next_movement(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """Which way should the gripper move? `right, up`, or `stay`."""
    signs = motion.movement(t)
    if isinstance(signs, Refused):
        return signs
    text = rng.choice(
        (
            "Seen from the robot, which way should the gripper move {}?",
            "Which way does the gripper go {}, seen from the robot?",
        )
    )
    answer = ", ".join(words(signs)) or "stay"
    return Draft(
        asked(motion, text.format(_steps(motion))),
        answer,
        facts(motion, t),
        motion_sentence(motion, signs),
    )


def next_movement_choice(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """Ask the same with three options."""
    signs = motion.movement(t)
    if isinstance(signs, Refused):
        return signs
    right = ", ".join(words(signs)) or "stay"
    wrong: list[str] = []
    while len(wrong) < 2:
        other: Signs = (rng.choice((-1, 0, 1)), rng.choice((-1, 0, 1)), rng.choice((-1, 0, 1)))
        label = ", ".join(words(other)) or "stay"
        if label != right and label not in wrong:
            wrong.append(label)
    listed, letter = options(rng, right, wrong)
    text = f"Seen from the robot, which way should the gripper move {_steps(motion)}? {listed}"
    known = [*facts(motion, t), motion_sentence(motion, signs)]
    return Draft(asked(motion, text), letter, known, option_sentence(letter, right))


def centimetres(moved: np.ndarray) -> str:
    """Convert [3] meters to `4 cm right, 2 cm up`.

    Whole centimeters, in the order right, forward, up; `0 cm` for none.
    """
    whole = np.rint(moved * 100).astype(int).tolist()
    return (
        ", ".join(f"{abs(cm)} cm {AXES[axis][cm > 0]}" for axis, cm in enumerate(whole) if cm)
        or "0 cm"
    )


def displacement(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """How far, in centimeters, on each axis?"""
    moved = motion.displacement(t)
    if isinstance(moved, Refused):
        return moved
    text = (
        f"How far does the gripper move {_steps(motion)}"
        if motion.measured
        else (f"How far do the actions send the gripper {_steps(motion)}")
    )
    answer = centimetres(moved)
    conclusion = f"The gripper should move {phrase(answer.split(', '))}."
    return Draft(
        asked(motion, f"{text}, in centimetres, seen from the robot?"),
        answer,
        facts(motion, t),
        conclusion,
    )


def main_direction(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """On which axis, and in which direction, is the next movement largest?"""
    moved = motion.displacement(t)
    if isinstance(moved, Refused):
        return moved
    largest = dominant(moved, CLEAR)
    if isinstance(largest, Refused):
        return largest
    answer = AXES[largest[0]][largest[1] > 0]
    text = (
        f"Seen from the robot, in which one direction does the gripper move most {_steps(motion)}?"
    )
    known = [
        *facts(motion, t),
        f"The gripper should move {phrase(centimetres(moved).split(', '))}.",
    ]
    return Draft(asked(motion, text), answer, known, f"Most of it is {answer}.")


def next_rotation(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """About which axis, and in which direction, does it turn most, if at all?"""
    turned = motion.rotation(t)
    if isinstance(turned, Refused):
        return turned
    answer = "stay"
    if np.abs(turned).max() >= LEVEL:
        largest = dominant(turned, TURNED)
        if isinstance(largest, Refused):
            return Refused("no rotation is clearly the largest")
        answer = TURNS[largest[0]][largest[1] > 0]
    text = (
        f"Seen from the robot, how should the gripper rotate most {_steps(motion)}: turn left or right, tilt up or "
        "down, roll left or right, or stay?"
    )
    return Draft(asked(motion, text), answer, facts(motion, t), f"The gripper should {answer}.")


def degrees(turned: np.ndarray) -> str:
    """Convert a rotation vector [3], in radians, to `tilt up 4 degrees, turn left 12 degrees`.

    Whole degrees; `0 degrees` for none.
    """
    whole = np.rint(np.degrees(turned)).astype(int).tolist()
    parts = [
        f"{TURNS[axis][n > 0]} {abs(n)} degree{'s'[: abs(n) - 1]}"
        for axis, n in enumerate(whole)
        if n
    ]
    return ", ".join(parts) or "0 degrees"


def relative_pose(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """To where is the gripper sent, and how is it turned, relative to its pose now?

    Both are what the actions command: a measured position with a commanded rotation would not be a
    real pose.
    """
    moved, turned = motion.translation(t), motion.rotation(t)
    if isinstance(moved, Refused):
        return moved
    if isinstance(turned, Refused):
        return turned
    text = (
        f"To which pose, relative to the gripper's pose now and seen from the robot, do the actions send it "
        f"{_steps(motion)}: how many centimetres, and how many degrees about each axis (rotation vector)?"
    )
    answer = f"{centimetres(moved)}, {degrees(turned)}"
    return Draft(
        asked(motion, text),
        answer,
        facts(motion, t),
        f"The gripper should {pose_phrase(moved, turned)}.",
    )


def pose_phrase(moved: np.ndarray, turned: np.ndarray) -> str:
    """Return `move 5 cm right and 2 cm up, and turn left 12 degrees`."""
    first = f"move {phrase(centimetres(moved).split(', '))}"
    second = degrees(turned)
    return (
        f"{first} and not rotate"
        if second == "0 degrees"
        else f"{first}, and {phrase(second.split(', '))}"
    )


def fingers_now(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """Is the gripper open or closed?"""
    state = motion.fingers(t)
    if isinstance(state, Refused):
        return state
    text = rng.choice(
        ("Is the gripper open or closed?", "What is the state of the gripper: open or closed?")
    )
    known = [fact for fact in facts(motion, t) if not fact.startswith("The gripper")]
    return Draft(text, state, known, f"The gripper is {state}.")


def fingers_next(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """Should the gripper open, close or keep as it is?

    Most frames that answer keep are skipped, or most questions would be about keeping.
    """
    command = motion.command(t)
    if isinstance(command, Refused):
        return command
    if command == "keep" and rng.random() < KEEP_DROPPED:
        return Refused("the fingers keep as they are, which is not asked of every frame")
    text = f"Should the gripper open, close or keep {_steps(motion)}?"
    conclusion = f"The gripper should {'keep as it is' if command == 'keep' else command}."
    return Draft(asked(motion, text), command, facts(motion, t), conclusion)


def quarter(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """In which quarter of the task is this frame?"""
    place = motion.quarter(t)
    if isinstance(place, Refused):
        return place
    name = QUARTERS[place]
    text = rng.choice(
        (
            "Which quarter of the task is this: first, second, third or last?",
            "How much of the task is done: is this its first, second, third or last quarter?",
        )
    )
    return Draft(asked(motion, text), name, facts(motion, t), f"This is the {name} quarter.")


def subtask_now(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """What is the robot doing now?"""
    name = motion.subtask(t)
    if isinstance(name, Refused):
        return name
    known = [fact for fact in facts(motion, t) if not fact.startswith("The subtask")]
    text = f"Which subtask is the robot at: {', '.join(SUBTASKS[:-1])} or {SUBTASKS[-1]}?"
    return Draft(asked(motion, text), name, known, f"The subtask is {name}.")


def subtask_next(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """What will the robot do next?"""
    name = motion.next_subtask(t)
    if isinstance(name, Refused):
        return name
    text = f"Which subtask comes next: {', '.join(SUBTASKS[:-1])} or {SUBTASKS[-1]}?"
    return Draft(asked(motion, text), name, facts(motion, t), f"The next subtask is {name}.")


def gripper_cell(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """Where in the image is the gripper?"""
    cell = motion.cell(t)
    if isinstance(cell, Refused):
        return cell
    text = rng.choice(("Where is the gripper?", "Point to the gripper."))
    return Draft(text, point(cell), facts(motion, t), f"The gripper is at {point(cell)}.")


def gripper_trace(motion: Motion, t: int, rng: random.Random) -> Draft | Refused:
    """Where in the image will the gripper be, as three points?"""
    trace = motion.trace(t)
    if isinstance(trace, Refused):
        return trace
    now = motion.cell(t)
    known = (
        facts(motion, t)
        if isinstance(now, Refused)
        else [*facts(motion, t), f"The gripper is at {point(now)}."]
    )
    text = f"Over which three points does the gripper move {_steps(motion)}?"
    answer = ", ".join(point(cell) for cell in trace)
    return Draft(
        asked(motion, text), answer, known, f"The gripper goes over {phrase(answer.split(', '))}."
    )


_motion = partial(QuestionType, kind="embodied", facts="motion")
_next = partial(_motion, group="planning")
MOVEMENT_TYPES = (
    _motion(
        "fingers_now",
        group="state",
        label="gripper",
        make=fingers_now,
        chance=1 / 2,
        needs_task=False,
    ),
    _motion(
        "gripper_cell",
        group="spatial",
        label="point",
        make=gripper_cell,
        chance=None,
        score="point",
        needs_task=False,
    ),
    _next("next_movement", label="movement", make=next_movement, chance=1 / 27),
    _next("next_movement_choice", label="letter", make=next_movement_choice, chance=1 / 3),
    _next("displacement", label="displacement", make=displacement, score="numbers", units=("cm",)),
    _next("main_direction", label="direction", make=main_direction, chance=1 / 6),
    _next("next_rotation", label="rotation", make=next_rotation, chance=1 / 7),
    _next(
        "relative_pose",
        label="pose",
        make=relative_pose,
        score="numbers",
        units=("cm", "degrees"),
    ),
    _next("fingers_next", label="fingers", make=fingers_next, chance=1 / 3),
    _next("quarter", label="progress", make=quarter, chance=1 / 4),
    _next("subtask_now", label="subtask", make=subtask_now, chance=1 / 5),
    _next("subtask_next", label="subtask", make=subtask_next, chance=1 / 5),
    _motion("gripper_trace", group="trace", label="trace", make=gripper_trace, score="points"),
    QuestionType("frame_order", "embodied", "order", "frames", "side", None, 1 / 2),
)
"""Types made from motion, and `frame_order`, which is asked about two frames side by side."""
