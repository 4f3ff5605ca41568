"""What an action space or a conversion refuses: contradictions, missing kinematics, broken numbers."""

import numpy as np
import pytest
from action_spaces import IDENTITY, space
from pydantic import ValidationError

from roboalign.actions.spaces import (
    ActionSpace,
    convert,
)
from roboalign.core.errors import RoboAlignError


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"control": "joint", "mode": "delta"}, "needs `joints`"),
        (
            {"control": "joint", "mode": "delta", "joints": 7, "rotation": "rot6d"},
            "belong to end-effector control",
        ),
        (
            {"control": "joint", "mode": "delta", "joints": 7, "frame": "tool"},
            "belong to end-effector control",
        ),
        (
            {"control": "joint", "mode": "delta", "joints": 7, "position_scale": 0.05},
            "belong to end-effector control",
        ),
        ({"control": "end-effector", "mode": "delta", "joints": 7}, "belongs to joint control"),
        (
            {"control": "end-effector", "mode": "absolute", "frame": "tool"},
            "an absolute pose is in the base frame",
        ),
        (
            {"control": "end-effector", "mode": "absolute", "rotation": "euler_xyz_difference"},
            "mode delta in the base",
        ),
        (
            {
                "control": "end-effector",
                "mode": "delta",
                "rotation": "rot6d",
                "rotation_scale": 0.5,
            },
            "no unit to scale",
        ),
        ({"control": "end-effector", "mode": "delta", "position_scale": 0.0}, "position_scale"),
        (
            {"control": "end-effector", "mode": "delta", "position_scale": float("inf")},
            "position_scale",
        ),
        ({"control": "end-effector", "mode": "relative"}, "mode"),
        ({"control": "end-effector", "mode": "delta", "grip": "open_one"}, "grip"),
    ],
)
def test_contradictions_are_one_message(fields: dict, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ActionSpace(**fields)
    assert caught.value.error_count() == 1 and message in str(caught.value)


@pytest.mark.parametrize(
    "source, target, message",
    [
        (space(), ActionSpace(control="joint", mode="delta", joints=6), "kinematics"),
        (ActionSpace(control="joint", mode="delta", joints=6), space(), "kinematics"),
        (
            ActionSpace(control="joint", mode="delta", joints=6),
            ActionSpace(control="joint", mode="delta", joints=7),
            "kinematics",
        ),
        (
            ActionSpace(control="joint", mode="delta", joints=6),
            ActionSpace(control="joint", mode="absolute", joints=6),
            "joint angles before each action",
        ),
        (space("velocity"), space(), "velocities are not converted"),
        (space("absolute"), space("velocity"), "velocities are not converted"),
        (space("velocity"), space("velocity", frame="tool"), "velocities are not converted"),
        (space("velocity"), space("velocity", "euler_xyz"), "velocities are not converted"),
        (space(), space(rotation="none"), "only one of the two has a rotation"),
        (space(), space(gripper="open_one"), "only one of the two has a gripper"),
        (space(), space("absolute"), "poses before the actions are missing"),
        (space("absolute"), space(frame="tool"), "poses before the actions are missing"),
        (space(), space(frame="tool"), "poses before the actions are missing"),
        (space(), space(rotation="euler_xyz_difference"), "poses before the actions are missing"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    source: ActionSpace, target: ActionSpace, message: str
) -> None:
    with pytest.raises(RoboAlignError, match=message) as caught:
        convert(np.zeros((2, 6)), source, target)
    assert caught.value.fix and str(source) in caught.value.where


def poses_with(column: int, value: float) -> np.ndarray:
    poses = np.repeat(IDENTITY, 2, axis=0)
    poses[1, column] = value
    return poses


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    "actions, poses, message",
    [
        (np.zeros((2, 7)), poses_with(0, 0), r"shape \[2, 7\], expected numbers \[T, 6\]"),
        (np.zeros(6), poses_with(0, 0), r"expected numbers \[T, 6\]"),
        (np.zeros((2, 6), dtype=object), poses_with(0, 0), "object"),
        (np.zeros((2, 6), dtype=complex), poses_with(0, 0), "complex"),
        (
            np.array([[0.0] * 6, [0, 0, np.nan, 0, 0, 0]]),
            poses_with(0, 0),
            "not finite at step 1, column 2",
        ),
        (
            np.array([[0.0] * 6, [0, np.inf, 0, 0, 0, 0]]),
            poses_with(0, 0),
            "not finite at step 1, column 1",
        ),
        (np.zeros((2, 6)), np.repeat(IDENTITY, 3, axis=0), "3 poses for 2 actions"),
        (np.zeros((2, 6)), np.zeros((2, 6)), r"poses: .*expected numbers \[T, 7\]"),
        (np.zeros((2, 6)), poses_with(4, np.nan), "poses: not finite at step 1"),
        (np.zeros((2, 6)), poses_with(6, 0.0), "quaternion of step 1 has length 0, not 1"),
        (np.zeros((2, 6)), poses_with(6, 1.05), "quaternion of step 1 has length 1.05"),
    ],
)
def test_broken_input_is_one_message(actions: np.ndarray, poses: np.ndarray, message: str) -> None:
    with pytest.raises(RoboAlignError, match=message):
        convert(actions, space(), space("absolute"), poses=poses)


@pytest.mark.parametrize(
    "form, numbers",
    [
        ("quaternion_xyzw", [0, 0, 0, 0]),
        ("quaternion_wxyz", [0, 0, 0, 0]),
        ("rot6d", [0, 0, 0, 0, 1, 0]),
        ("rot6d", [1, 0, 0, 2, 0, 0]),
    ],
)
def test_numbers_that_are_no_rotation_are_named(form: str, numbers: list[float]) -> None:
    with pytest.raises(RoboAlignError, match=f"the {form} of step 0 is no rotation"):
        convert(np.array([[0, 0, 0, *numbers]], dtype=np.float32), space(rotation=form), space())
