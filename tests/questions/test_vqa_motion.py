"""Facts of episodes whose movement is known by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from vqa_made import DELTA, ROS, episode, straight

from roboalign.actions.axes import KNOWN_AXES, SEEN_DIRECTIONS, matrix_of, parse_axes
from roboalign.actions.known_spaces import KNOWN
from roboalign.actions.spaces import ActionSpace, convert
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Refused
from roboalign.episodes.episode import Camera
from roboalign.questions.base import QuestionConfig
from roboalign.questions.facts.motion import (
    FEW_LEFT,
    FIRST,
    NO_AXES,
    NO_SPACE,
    Motion,
    dominant,
    hysteresis,
    subtasks_of,
)
from roboalign.questions.facts.scene import AXES

CONFIG = QuestionConfig(axes=ROS, horizon=5)


@pytest.mark.parametrize(
    ("step", "signs"),
    [
        ((0, -0.01, 0), (1, 0, 0)),
        ((0, 0.01, 0), (-1, 0, 0)),
        ((0.01, 0, 0), (0, 1, 0)),
        ((-0.01, 0, 0), (0, -1, 0)),
        ((0, 0, 0.01), (0, 0, 1)),
        ((0.01, -0.01, -0.01), (1, 1, -1)),
        ((0, 0, 0), (0, 0, 0)),
    ],
)
def test_the_words_of_a_straight_line(step, signs) -> None:
    assert Motion(straight(step), CONFIG).movement(0) == signs


def test_displacement_is_the_sum_of_the_actions_ahead_in_metres() -> None:
    actions = np.zeros((6, 7))
    actions[:, 1] = [1, 2, 4, 8, 16, 32]  # y, which is left
    space = DELTA.model_copy(update={"position_scale": 0.01})
    motion = Motion(episode(actions, space), QuestionConfig(axes=ROS, horizon=2))
    for t, expected in ((0, 3), (1, 6), (4, 48)):
        np.testing.assert_allclose(motion.displacement(t), [-expected / 100, 0, 0], atol=1e-6)
    assert motion.displacement(5) == FEW_LEFT


def test_targets_give_what_lies_between_the_one_before_and_the_last_ahead() -> None:
    space = ActionSpace(control="end-effector", mode="absolute", rotation="euler_xyz")
    actions = np.zeros((5, 6))
    actions[:, 0] = [0.1, 0.2, 0.4, 0.8, 1.6]
    actions[:, 5] = [0.0, 0.1, 0.3, 0.6, 1.0]  # yaw
    motion = Motion(episode(actions, space), QuestionConfig(axes=ROS, horizon=2))
    assert motion.displacement(0) == FIRST and motion.rotation(0) == FIRST
    np.testing.assert_allclose(motion.displacement(1), [0, 0.3, 0], atol=1e-6)
    np.testing.assert_allclose(motion.rotation(3), [0, 0, 0.7], atol=1e-6)


def test_rates_are_multiplied_by_the_length_of_a_step() -> None:
    space = ActionSpace(control="end-effector", mode="velocity", rotation="axis_angle")
    actions = np.tile([0, 0, 0.5, 0, 0, 1.0], (6, 1))
    motion = Motion(episode(actions, space, fps=10.0), QuestionConfig(axes=ROS, horizon=4))
    np.testing.assert_allclose(motion.displacement(0), [0, 0, 0.2], atol=1e-6)
    np.testing.assert_allclose(motion.rotation(0), [0, 0, 0.4], atol=1e-6)


@given(st.lists(st.tuples(*[st.floats(-0.3, 0.3)] * 3), min_size=3, max_size=6))
def test_the_turn_is_the_same_in_every_form_and_that_of_the_poses(angles) -> None:
    actions = np.zeros((len(angles), 7))
    actions[:, 3:6] = angles
    motion = Motion(episode(actions), QuestionConfig(axes=ROS, horizon=len(angles)))
    pose = Rotation.from_euler("xyz", [0.3, -0.2, 0.9])
    after = pose
    for turn in angles:
        after = Rotation.from_euler("xyz", turn) * after
    expected = matrix_of(ROS) @ (after * pose.inv()).as_rotvec()
    np.testing.assert_allclose(motion.rotation(0), expected, atol=1e-5)
    for form in ("axis_angle", "quaternion_xyzw", "rot6d"):
        other = DELTA.model_copy(update={"rotation": form})
        same = Motion(
            episode(convert(actions.astype(np.float32), DELTA, other), other), motion.config
        )
        np.testing.assert_allclose(same.rotation(0), expected, atol=1e-5)


def test_a_position_in_the_state_is_what_is_measured() -> None:
    state = np.zeros((8, 5))
    state[:, 1:4] = np.arange(8)[:, None] * [0.0, 0.02, 0.0]
    made = straight((0.01, 0, 0), steps=8, state=state)
    motion = Motion(made, QuestionConfig(axes=ROS, horizon=5, position=1))
    np.testing.assert_allclose(motion.displacement(2), [-0.1, 0, 0], atol=1e-6)
    assert (
        motion.displacement(3) == FEW_LEFT
    )  # the position after the last action is not in the episode
    with pytest.raises(RoboAlignError, match="no three columns from 3 on"):
        Motion(made, QuestionConfig(axes=ROS, position=3))
    made.state[4, 1] = np.nan
    with pytest.raises(RoboAlignError, match="not finite"):
        Motion(made, QuestionConfig(axes=ROS, position=1))
    made.actions[0, 0] = np.inf
    with pytest.raises(RoboAlignError, match="action is not finite"):
        Motion(made, QuestionConfig(axes=ROS))


def test_the_trace_is_where_the_camera_shows_the_positions() -> None:
    # u = 16 x, v = 12 y at depth 1: a grid of 4 has cells a quarter of the image wide.
    view = Camera("front", 16, 12, np.array([[16, 0, 0, 0], [0, 12, 0, 0], [0, 0, 0, 1.0]]))
    state = np.stack([np.linspace(0.05, 0.95, 10), np.full(10, 0.6), np.zeros(10)], axis=1)
    made = straight((0, 0, 0), steps=10, state=state, cameras={"front": view})
    motion = Motion(made, QuestionConfig(grid=4, horizon=6, position=0))
    assert motion.cell(0) == (0, 2)  # 0.05 * 4, 0.6 * 4
    assert motion.trace(0) == ((1, 2), (1, 2), (2, 2))  # x at steps 2, 4, 6: 0.25, 0.45, 0.65
    assert motion.trace(4) == FEW_LEFT
    made.state[3, 0] = 1.2
    gone = Motion(made, QuestionConfig(grid=4, horizon=3, position=0))
    assert gone.trace(0) == Refused("the gripper leaves the image") and isinstance(
        gone.cell(3), Refused
    )
    blind = Motion(straight((0, 0, 0)), CONFIG)
    assert blind.trace(0) == Refused("the camera is not calibrated")


def test_no_convention_is_guessed() -> None:
    unknown = Motion(straight((0.01, 0, 0), space=None), CONFIG)
    assert (
        unknown.movement(0)
        == unknown.fingers(5)
        == unknown.command(0)
        == unknown.subtask(0)
        == NO_SPACE
    )
    no_axes = Motion(straight((0.01, 0, 0)), QuestionConfig())
    assert no_axes.movement(0) == no_axes.rotation(0) == NO_AXES and no_axes.fingers(5) == "open"
    tool = Motion(straight((0.01, 0, 0), space=DELTA.model_copy(update={"frame": "tool"})), CONFIG)
    joints = ActionSpace(control="joint", mode="absolute", joints=6, gripper="open_one")
    arm = Motion(straight((0.01, 0, 0), space=joints), CONFIG)
    difference = Motion(straight((0.01, 0, 0), space=KNOWN["bridge_relabelled"]), CONFIG)
    for refused, word in (
        (tool.movement(0), "tool"),
        (tool.rotation(0), "tool"),
        (arm.movement(0), "kinematics"),
        (arm.rotation(0), "do not turn"),
        (difference.rotation(0), "Euler"),
    ):
        assert isinstance(refused, Refused) and word in refused.reason
    assert arm.subtask(0) == "reach" and difference.movement(0) == (0, 1, 0)


def test_fingers_and_commands_of_a_grasp() -> None:
    motion = Motion(
        straight((0, 0, 0)), CONFIG
    )  # closes at 8, opens at 14; 5 fps: three steps to settle
    assert motion.fingers(0) == FIRST
    assert [motion.fingers(t) for t in (2, 8, 11, 14, 17)] == [
        "open",
        "open",
        "closed",
        "closed",
        "open",
    ]
    assert all(isinstance(motion.fingers(t), Refused) for t in (9, 10, 15, 16))
    assert [motion.command(t) for t in (0, 3, 4, 8, 9, 10, 15)] == [
        "keep",
        "keep",
        "close",
        "close",
        "keep",
        "open",
        "keep",
    ]
    assert motion.command(16) == FEW_LEFT


def test_subtasks_of_a_grasp_and_a_release() -> None:
    motion = Motion(straight((0, 0, 0)), CONFIG)  # 0.4 s at 5 fps: two steps around each event
    expected = ["reach"] * 6 + ["grasp"] * 4 + ["move"] * 2 + ["release"] * 4 + ["retreat"] * 4
    moving = {10, 16}  # the fingers have half a second to settle, three steps
    assert all(motion.subtask(t) == expected[t] for t in range(20) if t not in moving)
    assert all(isinstance(motion.subtask(t), Refused) for t in moving)
    assert isinstance(motion.next_subtask(10), Refused)
    assert [motion.next_subtask(t) for t in (0, 6, 11, 12)] == [
        "grasp",
        "move",
        "release",
        "retreat",
    ]
    assert motion.next_subtask(17) == Refused("no other subtask follows")


def test_subtasks_of_a_failed_grasp_and_of_two_objects() -> None:
    flags = "oooo" + "c" + "oooo" + "cccccc" + "oooo" + "cccc"
    names = subtasks_of(np.array([flag == "o" for flag in flags]), 2)
    assert names == (
        ["reach"] * 7
        + ["grasp"] * 4
        + ["move"] * 2
        + ["release"] * 4
        + ["grasp"] * 4
        + ["move"] * 2
    )
    for is_open, word in (
        ([True] * 9, "never closes"),
        ([False] * 4 + [True] * 5, "begins closed"),
    ):
        refused = subtasks_of(np.array(is_open), 2)
        assert isinstance(refused, Refused) and word in refused.reason


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 5))
def test_subtasks_follow_from_the_fingers(is_open, around) -> None:
    names = subtasks_of(np.array(is_open), around)
    if isinstance(names, Refused):
        return
    assert len(names) == len(is_open) and "grasp" in names
    for name, before in (("move", "grasp"), ("retreat", "release")):
        if name in names:
            assert before in names[: names.index(name)]
    if "retreat" in names:
        assert names[-1] == "retreat" and "move" not in names[names.index("retreat") :]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_half_open_gripper_stays_what_it_was(opening) -> None:
    states = hysteresis(np.array(opening))
    assert states[0] == (opening[0] >= 0.5) or opening[0] == 0.5
    for before, now, value in zip(states, states[1:], opening[1:]):
        assert now == (before if 0.4 <= value <= 0.6 else value > 0.5)


def test_movements_near_the_threshold_and_without_a_main_direction_are_refused() -> None:
    assert isinstance(Motion(straight((0.0014, 0, 0)), CONFIG).movement(0), Refused)  # 7 mm
    assert Motion(straight((0.0008, 0, 0)), CONFIG).movement(0) == (0, 0, 0)  # 4 mm
    assert dominant(np.array([0.02, -0.05, 0.0]), 0.01) == (1, -1)
    assert isinstance(dominant(np.array([0.04, -0.05, 0.0]), 0.01), Refused)
    assert isinstance(dominant(np.array([0.0, 0.009, 0.0]), 0.01), Refused)


def test_axes_are_checked_and_known_ones_are_of_known_spaces() -> None:
    assert parse_axes("right, forward,up") == ("right", "forward", "up") and set(KNOWN_AXES) < set(
        KNOWN
    )
    for axes in KNOWN_AXES.values():
        assert parse_axes(",".join(axes)) == axes
    for wrong in ("forward,left", "forward,left,north", "forward,back,up", "right,forward,down"):
        with pytest.raises(RoboAlignError, match="axes"):
            parse_axes(wrong)
    with pytest.raises(RoboAlignError, match="left-handed"):
        QuestionConfig(axes=("right", "forward", "down"))
    for word, (axis, sign) in SEEN_DIRECTIONS.items():  # the words are those of the sentences
        assert AXES[axis][sign > 0] == word
