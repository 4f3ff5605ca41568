"""Questions of hand-made episodes, each with the one answer that is right."""

import random
import re
from collections import Counter

import numpy as np
import pytest
from vqa_made import DELTA, ROS, episode, straight

from roboalign.conversations.conversation import TURN_KINDS
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.outcomes import Refused
from roboalign.episodes.episode import Camera, encode_png
from roboalign.questions.base import QuestionConfig, Work
from roboalign.questions.computed import StateQuestions, frame_order
from roboalign.questions.facts.motion import Motion
from roboalign.questions.movement import centimetres, degrees
from roboalign.questions.registry import QUESTION_TYPES, types_from

LABELLED = STYLES["labelled"]
REQUESTS = dict(zip(("direct", "think"), LABELLED.requests))

CONFIG = QuestionConfig(axes=ROS, horizon=5, questions=3, whole=True)


def drawn(name: str, motion: Motion, t: int, seed: int = 0):
    return QUESTION_TYPES[name].draft((motion, t), random.Random(seed))


@pytest.mark.parametrize(
    ("step", "answers"),
    [
        ((0, -0.01, 0), ("right", "5 cm right", "right")),
        (
            (0.004, -0.01, -0.004),
            ("right, forward, down", "5 cm right, 2 cm forward, 2 cm down", "right"),
        ),
        ((0, 0, 0), ("stay", "0 cm", None)),
    ],
)
def test_answers_of_a_straight_line(step, answers) -> None:
    motion = Motion(straight(step), CONFIG)
    for name, expected in zip(("next_movement", "displacement", "main_direction"), answers):
        draft = drawn(name, motion, 2)
        assert isinstance(draft, Refused) if expected is None else draft.answer == expected
        assert isinstance(draft, Refused) or draft.text.startswith(
            "Task: put the cup on the plate. "
        )


@pytest.mark.parametrize("seed", range(8))
def test_the_letter_of_a_choice_is_that_of_the_movement(seed: int) -> None:
    draft = drawn("next_movement_choice", Motion(straight((0, -0.01, 0)), CONFIG), 2, seed)
    options = dict(re.findall(r"([ABC]): ([a-z, ]+)\.", draft.text))
    assert options[draft.answer] == "right" and len(set(options.values())) == 3
    assert f"Option {draft.answer} is right." == draft.conclusion


@pytest.mark.parametrize(
    ("angles", "answer"),
    [
        ((0, 0, 0.1), "turn left"),
        ((0, 0, -0.1), "turn right"),
        ((0, -0.1, 0), "tilt up"),
        ((0.1, 0, 0), "roll right"),
        ((0, 0, 0.001), "stay"),
        ((0.1, 0, 0.1), None),
        ((0, 0, 0.025), None),
    ],
)
def test_rotations_are_named_by_the_right_hand_seen_from_the_robot(angles, answer) -> None:
    # x forward, y left, z up: yaw turns left; pitch about the left hand tips down; roll about forward rolls right
    actions = np.zeros((8, 7))
    actions[:, 3:6] = angles
    draft = drawn("next_rotation", Motion(episode(actions), CONFIG), 0)
    assert isinstance(draft, Refused) if answer is None else draft.answer == answer


def test_a_relative_pose_is_what_the_actions_command_in_centimetres_and_degrees() -> None:
    actions = np.zeros((8, 7))
    actions[:, :3], actions[:, 3:6] = (0.004, -0.01, 0), (0, 0, np.radians(3))
    state = np.zeros((8, 3))
    motion = Motion(
        episode(actions, state=state), CONFIG.model_copy(update={"position": 0})
    )  # it measures no movement
    draft = drawn("relative_pose", motion, 1)
    assert draft.answer == "5 cm right, 2 cm forward, turn left 15 degrees"
    assert (
        draft.conclusion
        == "The gripper should move 5 cm right and 2 cm forward, and turn left 15 degrees."
    )
    assert drawn("displacement", motion, 1).answer == "0 cm" and isinstance(
        drawn("relative_pose", motion, 4), Refused
    )
    still = drawn("relative_pose", Motion(straight((0, 0, 0)), CONFIG), 0)
    assert (
        still.answer == "0 cm, 0 degrees"
        and still.conclusion == "The gripper should move 0 cm and not rotate."
    )
    assert degrees(np.radians([-1.2, 2.6, 0.4])) == "tilt down 1 degree, roll right 3 degrees"


def test_the_gripper_the_subtasks_and_the_quarter() -> None:
    motion = Motion(straight((0, -0.01, 0)), CONFIG)
    for name, t, expected in (
        ("fingers_now", 4, "open"),
        ("fingers_now", 12, "closed"),
        ("fingers_next", 5, "close"),
        ("fingers_next", 11, "open"),
        ("subtask_now", 7, "grasp"),
        ("subtask_next", 7, "move"),
        ("quarter", 4, "first"),
        ("quarter", 5, "second"),
        ("quarter", 19, "last"),
    ):
        draft = drawn(name, motion, t)
        assert draft.answer == expected and expected in draft.conclusion, name
        assert draft.conclusion not in draft.facts
    kept = Counter(
        isinstance(drawn("fingers_next", motion, 0, seed), Refused) for seed in range(300)
    )
    assert 0.7 < kept[True] / 300 < 0.9  # a fifth of the frames without a command is asked about it


def test_a_known_camera_gives_cells_and_a_trace() -> None:
    view = Camera("front", 16, 12, np.array([[16, 0, 0, 0], [0, 12, 0, 0], [0, 0, 0, 1.0]]))
    state = np.stack([np.linspace(0.05, 0.95, 10), np.full(10, 0.6), np.zeros(10)], axis=1)
    made = straight((0, 0, 0), steps=10, state=state, cameras={"front": view})
    motion = Motion(made, QuestionConfig(grid=4, horizon=6, position=0))
    assert drawn("gripper_cell", motion, 0).answer == "0 2"
    trace = drawn("gripper_trace", motion, 0)
    assert trace.answer == "1 2, 1 2, 2 2" and "The gripper is at 0 2." in trace.facts
    assert (
        "does the gripper move"
        in drawn("displacement", Motion(made, QuestionConfig(axes=ROS, position=0)), 0).text
    )


def test_centimetres_are_rounded_and_in_order() -> None:
    assert centimetres(np.array([-0.024, 0.004, 0.026])) == "2 cm left, 3 cm up"


def test_the_earlier_of_two_frames_is_on_the_side_that_is_answered() -> None:
    made = straight((0, -0.01, 0))
    motion, sides = Motion(made, CONFIG), set()
    for seed in range(8):
        found = frame_order(motion, 3, made.frame("front", 3), random.Random(seed))
        left, right = np.split(decode(found.images[0]), 2, axis=1)
        earlier, side = (left, "left") if found.turns[0].expected == "left" else (right, "right")
        np.testing.assert_array_equal(earlier, made.frame("front", 3))
        np.testing.assert_array_equal(right if side == "left" else left, made.frame("front", 8))
        sides.add(side)
    assert sides == {"left", "right"}
    made.images["front"][8] = made.images["front"][3]
    assert isinstance(frame_order(motion, 3, made.frame("front", 3), random.Random(0)), Refused)


def decode(png: bytes) -> np.ndarray:
    from io import BytesIO

    from PIL import Image

    return np.array(Image.open(BytesIO(png)))


def all_made(config: QuestionConfig = CONFIG, **given):
    work = [Work(straight((0, -0.01, 0), number=n, **given), tuple(range(20))) for n in range(6)]
    return list(StateQuestions(config).questions(work))


def test_turns_are_in_the_form_of_the_prompts() -> None:
    conversations = [one for made in all_made() for one in made.conversations]
    assert len({one.id for one in conversations}) == len(conversations) > 100
    modes, names = Counter(), set()
    for conversation in conversations:
        assert 1 <= len(conversation.turns) <= 3
        for turn in conversation.turns:
            label = QUESTION_TYPES[turn.type].label
            modes[turn.mode] += 1
            names.add(turn.type)
            assert turn.kind in TURN_KINDS and (turn.kind == "reasoning") == (turn.mode == "think")
            assert turn.question.endswith(f'{REQUESTS[turn.mode]} "{label}".')
            thought, answered = re.fullmatch(
                r"<think>(.*)</think><answer>(.*)</answer>", turn.answer
            ).groups()
            assert LABELLED.answer_text(answered, label) == turn.expected
            assert bool(thought) == (turn.mode == "think")
    assert names == {*types_from("motion"), "frame_order"} - {"gripper_cell", "gripper_trace"}
    assert 0.4 < modes["think"] / modes.total() < 0.6


def test_a_share_of_thinking_is_kept_and_the_seed_fixes_all() -> None:
    direct = all_made(CONFIG.model_copy(update={"think_share": 0.0}))
    assert {turn.mode for made in direct for one in made.conversations for turn in one.turns} == {
        "direct"
    }
    assert all_made() == all_made() != all_made(CONFIG.model_copy(update={"seed": 1}))


def test_without_an_action_space_or_a_task_only_what_needs_none_is_asked() -> None:
    types = {
        turn.type
        for made in all_made(space=None)
        for one in made.conversations
        for turn in one.turns
    }
    assert types == {"quarter", "frame_order"}
    made = all_made(instruction=" ")
    types = {
        turn.type
        for one in made
        for conversation in one.conversations
        for turn in conversation.turns
    }
    assert types == {"fingers_now"}
    assert sum("no instruction" in refused.reason for one in made for refused in one.refused) == 120


def test_what_is_broken_is_a_fault_and_the_rest_goes_on() -> None:
    good, torn, short, still, wild, flat = (straight((0, -0.01, 0), number=n) for n in range(6))
    torn.images["front"][3] = torn.images["front"][3][:50]
    short.images["front"].pop()
    still.images.clear()
    wild.actions[4, 2] = np.nan
    flat.images["front"][:] = [encode_png(np.full((12, 16, 3), 7, np.uint8))] * 20
    frames = (2, 3, 4)
    made = list(
        StateQuestions(CONFIG).questions(
            Work(one, frames) for one in (good, torn, short, still, wild, flat)
        )
    )
    assert [len(one.conversations) for one in made] == [3, 2, 0, 0, 0, 0]
    assert [len(one.faults) for one in made] == [0, 1, 3, 1, 1, 0]
    assert [one.faults[0].problem.split(" (")[0] for one in made if one.faults] == [
        "frame 3 of camera front is not a readable image",
        "camera front has 19 frames for 20 actions",
        "it has no camera",
        "an action is not finite",
    ]
    assert [refused.reason for refused in made[5].refused] == ["the image has only one color"] * 3
    other = list(
        StateQuestions(CONFIG.model_copy(update={"camera": "wrist"})).questions(
            [Work(good, frames)]
        )
    )
    assert "no camera 'wrist'" in other[0].faults[0].problem


def test_zero_rotations_in_a_space_of_quaternions_are_a_fault() -> None:
    space = DELTA.model_copy(update={"rotation": "quaternion_xyzw"})
    made = list(
        StateQuestions(CONFIG).questions(
            [Work(episode(np.zeros((20, 8)), space), tuple(range(10)))]
        )
    )
    assert (
        len(made[0].faults) == 1
        and "no rotation" in made[0].faults[0].problem
        and not made[0].conversations
    )
