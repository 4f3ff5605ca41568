"""What holds a robot still, by hand for each kind of action."""

import numpy as np
import pytest

from roboalign.actions.hold import HoldRule, hold_rule
from roboalign.actions.known_spaces import known_space
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError

STATE = np.array([5.0, 6.0, 7.0, 8.0], np.float32)


@pytest.mark.parametrize(
    ("name", "last", "expected"),
    [
        # closed is 1: the fingers stay closed, and open before the first command
        ("metaworld", [0.3, -0.2, 0.1, 1.0], [0, 0, 0, 1.0]),
        ("metaworld", None, [0, 0, 0, -1.0]),
        ("bridge", [0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.0], [0, 0, 0, 0, 0, 0, 0.0]),
        ("bridge", None, [0, 0, 0, 0, 0, 0, 1.0]),
        ("calvin_relative", [1.0] * 6 + [-1.0], [0.0] * 6 + [-1.0]),
        ("droid_joint_velocity", [0.5] * 7 + [0.25], [0.0] * 7 + [0.25]),
        ("droid_joint_position", [0.5] * 7 + [0.25], [0.5] * 7 + [0.25]),
    ],
)
def test_known_spaces(name: str, last: list[float] | None, expected: list[float]) -> None:
    space = known_space(name)
    columns = tuple(range(7)) if space.mode == "absolute" else ()
    rule = HoldRule(space=space, state_columns=columns, state_dim=8 if columns else None)
    held = rule.action(None if last is None else np.array(last, np.float32), STATE)
    assert held.dtype == np.float32
    np.testing.assert_array_equal(held, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("rotation", "turned_by_nothing"),
    [
        ("quaternion_xyzw", [0, 0, 0, 1]),
        ("quaternion_wxyz", [1, 0, 0, 0]),
        ("rot6d", [1, 0, 0, 0, 1, 0]),
        ("axis_angle", [0, 0, 0]),
    ],
)
def test_a_delta_turns_by_nothing(rotation: str, turned_by_nothing: list[float]) -> None:
    space = ActionSpace(control="end-effector", mode="delta", rotation=rotation)
    held = HoldRule(space=space).action(None, STATE)
    np.testing.assert_array_equal(held, [0, 0, 0, *turned_by_nothing])


def test_before_the_first_command_an_absolute_target_is_read_from_the_state_by_name() -> None:
    space = ActionSpace(control="joint", mode="absolute", joints=3, gripper="open_one")
    rule = hold_rule(space, ("a", "b", "c", "grip"), ("grip", "c", "a", "b"), where="data")
    np.testing.assert_array_equal(rule.action(None, STATE), [7, 8, 6, 1])
    np.testing.assert_array_equal(rule.action(np.array([1, 2, 3, 0.0]), STATE), [1, 2, 3, 0])
    with pytest.raises(RoboAlignError, match=r"data: its actions are absolute .* has no b:"):
        hold_rule(space, ("a", "b", "c", "grip"), ("a", "c"), where="data")


def test_a_rule_that_contradicts_itself_is_refused() -> None:
    space = ActionSpace(control="joint", mode="absolute", joints=2)
    with pytest.raises(ValueError, match="2 numbers are needed"):
        HoldRule(space=space)
    with pytest.raises(ValueError, match="outside the state"):
        HoldRule(space=space, state_columns=(0, 2), state_dim=2)
