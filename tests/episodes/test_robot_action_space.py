"""Conversions against numbers worked out by hand and against an integration that shares no code with the library."""

import numpy as np
import pytest
from action_spaces import IDENTITY, space
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from roboalign.actions.spaces import (
    GRIPPER_VALUES,
    ROTATION_NAMES,
    SCALABLE,
    ActionSpace,
    convert,
)
from roboalign.core.errors import RoboAlignError

CODES = sorted(GRIPPER_VALUES)
FORMS = [form for form in ROTATION_NAMES if form not in ("none", "euler_xyz_difference")]
QUARTER = np.pi / 2
HALF_ROOT = np.sqrt(0.5)


def about(axis: str, angle: float) -> np.ndarray:
    """The rotation matrix about one axis, written out."""
    c, s = np.cos(angle), np.sin(angle)
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def quaternion_matrix(x: float, y: float, z: float, w: float) -> np.ndarray:
    n = np.sqrt(x * x + y * y + z * z + w * w)
    x, y, z, w = x / n, y / n, z / n, w / n
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def matrix_of(values: np.ndarray, form: str) -> np.ndarray:
    """One rotation's matrix, from the definition of each form."""
    if form == "euler_xyz":
        return about("z", values[2]) @ about("y", values[1]) @ about("x", values[0])
    if form == "axis_angle":
        x, y, z = values
        return expm(np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
    if form == "rot6d":
        return np.column_stack([values[:3], values[3:], np.cross(values[:3], values[3:])])
    return quaternion_matrix(*(values if form == "quaternion_xyzw" else values[[1, 2, 3, 0]]))


def integrate(action: np.ndarray, meaning: ActionSpace, pose: np.ndarray) -> np.ndarray:
    """The 4x4 pose that one action leads to, from the definitions in the module's docstring."""
    start = np.eye(4)
    start[:3, :3], start[:3, 3] = quaternion_matrix(*pose[3:]), pose[:3]
    values = action.astype(np.float64)
    step = values[:3] * meaning.position_scale
    angles = values[meaning.rotation_part] * meaning.rotation_scale
    turn = matrix_of(angles, meaning.rotation)
    end = np.eye(4)
    if meaning.mode == "absolute":
        end[:3, :3], end[:3, 3] = turn, step
    elif meaning.frame == "base":
        end[:3, :3], end[:3, 3] = turn @ start[:3, :3], start[:3, 3] + step
    else:
        relative = np.eye(4)
        relative[:3, :3], relative[:3, 3] = turn, step
        end = start @ relative  # a step in the tool's frame is the product of two poses
    return end


@st.composite
def spaces(draw, forms=tuple(FORMS)) -> ActionSpace:
    mode, form = draw(st.sampled_from(["absolute", "delta"])), draw(st.sampled_from(forms))
    return space(
        mode,
        form,
        gripper=draw(st.sampled_from(CODES)),
        frame=draw(st.sampled_from(["base", "tool"])) if mode == "delta" else "base",
        position_scale=draw(st.sampled_from([1.0, 0.02, 0.05])),
        rotation_scale=draw(st.sampled_from([1.0, 0.05, 0.5])) if form in SCALABLE else 1.0,
    )


def random_poses(seed: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    quaternions = rng.normal(size=(length, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    return np.concatenate([rng.uniform(-1, 1, (length, 3)), quaternions], axis=1)


def random_actions(seed: int, length: int, meaning: ActionSpace) -> np.ndarray:
    """Actions that hold rotations, whatever the form: by way of quaternions, which hand-made cases check."""
    rng = np.random.default_rng(seed + 1)
    plain = space(meaning.mode, "quaternion_xyzw", frame=meaning.frame, gripper="open_one")
    values = np.concatenate(
        [random_poses(seed + 2, length), rng.uniform(0, 1, (length, 1))], axis=1
    )
    return convert(values, plain, meaning)


seeds = st.integers(0, 10_000)


@given(source=spaces(), target=spaces(), seed=seeds)
@settings(max_examples=150, deadline=None)
def test_there_and_back_is_the_identity(
    source: ActionSpace, target: ActionSpace, seed: int
) -> None:
    poses, actions = random_poses(seed, 5), random_actions(seed, 5, source)
    there = convert(actions, source, target, poses=poses)
    back = convert(there, target, source, poses=poses)
    assert back.dtype == np.float32 and back.shape == actions.shape
    for t in range(
        5
    ):  # as rotations: two sets of Euler angles, or +q and -q, can name the same one
        before, after = (
            integrate(actions[t], source, poses[t]),
            integrate(back[t], source, poses[t]),
        )
        np.testing.assert_allclose(after, before, atol=2e-5)
    np.testing.assert_allclose(back[:, -1], actions[:, -1], atol=1e-6)


@given(source=spaces(), target=spaces(), seed=seeds)
@settings(max_examples=150, deadline=None)
def test_converted_actions_lead_to_the_same_poses(
    source: ActionSpace, target: ActionSpace, seed: int
) -> None:
    poses, actions = random_poses(seed, 4), random_actions(seed, 4, source)
    converted = convert(actions, source, target, poses=poses)
    for t in range(4):
        np.testing.assert_allclose(
            integrate(converted[t], target, poses[t]),
            integrate(actions[t], source, poses[t]),
            atol=1e-5,
        )


@given(form=st.sampled_from(FORMS), frame=st.sampled_from(["base", "tool"]), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_deltas_integrate_to_the_recorded_trajectory(form: str, frame: str, seed: int) -> None:
    """Targets are the next poses; their deltas, integrated from the first pose on, must pass through every one."""
    poses = random_poses(seed, 6)
    recorded_as = space("absolute", "quaternion_xyzw")
    deltas = convert(poses[1:], recorded_as, space("delta", form, frame=frame), poses=poses[:-1])
    at = integrate(poses[0], recorded_as, poses[0])
    for delta, recorded in zip(deltas, poses[1:]):
        step, turn = delta[:3].astype(float), matrix_of(delta[3:].astype(float), form)
        if frame == "base":
            at[:3, 3], at[:3, :3] = at[:3, 3] + step, turn @ at[:3, :3]
        else:
            at[:3, 3], at[:3, :3] = at[:3, 3] + at[:3, :3] @ step, at[:3, :3] @ turn
        np.testing.assert_allclose(at[:3, 3], recorded[:3], atol=1e-5)
        np.testing.assert_allclose(at[:3, :3], quaternion_matrix(*recorded[3:]), atol=1e-5)


def test_frames_by_hand() -> None:
    """Turned a quarter about z, the tool's x is the base's y, and the base's x is the tool's -y."""
    poses = np.array([[1.0, 2, 3, 0, 0, HALF_ROOT, HALF_ROOT]])
    action = np.array([[1, 0, 0, QUARTER, 0, 0]])
    as_base = convert(action, space(), space("absolute", "rot6d"), poses=poses)
    # dR R = Rx(90) Rz(90): x -> z, y -> -x
    np.testing.assert_allclose(as_base, [[2, 2, 3, 0, 0, 1, -1, 0, 0]], atol=1e-6)
    as_tool = convert(action, space(frame="tool"), space("absolute", "rot6d"), poses=poses)
    # R dR = Rz(90) Rx(90): x -> y, y -> z
    np.testing.assert_allclose(as_tool, [[1, 3, 3, 0, 1, 0, 0, 0, 1]], atol=1e-6)
    in_tool = convert(action, space(), space(frame="tool"), poses=poses)
    np.testing.assert_allclose(in_tool, [[0, -1, 0, 0, -QUARTER, 0]], atol=1e-6)


def test_forms_by_hand() -> None:
    """Roll a quarter, then yaw a quarter about the fixed z: x -> y, y -> z, which turns 120 degrees about (1, 1, 1)."""
    action = np.array([[0, 0, 0, QUARTER, 0, QUARTER]])
    third = 2 * np.pi / 3 / np.sqrt(3)
    expected = {
        "axis_angle": [third, third, third],
        "quaternion_xyzw": [0.5, 0.5, 0.5, 0.5],
        "quaternion_wxyz": [0.5, 0.5, 0.5, 0.5],
        "rot6d": [0, 1, 0, 0, 0, 1],
    }
    for form, numbers in expected.items():
        converted = convert(action, space(rotation="euler_xyz"), space(rotation=form))
        np.testing.assert_allclose(converted, [[0, 0, 0, *numbers]], atol=1e-6)
    about_x = convert(
        np.array([[0, 0, 0, QUARTER, 0, 0]]), space(), space(rotation="quaternion_wxyz")
    )
    np.testing.assert_allclose(about_x, [[0, 0, 0, HALF_ROOT, HALF_ROOT, 0, 0]], atol=1e-6)


def test_quaternions_come_out_with_positive_w() -> None:
    flipped = np.array([[0, 0, 0, -HALF_ROOT, 0, 0, -HALF_ROOT]])
    out = convert(flipped, space(rotation="quaternion_xyzw"), space(rotation="quaternion_wxyz"))
    np.testing.assert_allclose(out, [[0, 0, 0, HALF_ROOT, HALF_ROOT, 0, 0]], atol=1e-6)


def test_units_by_hand() -> None:
    coarse = space(position_scale=0.05, rotation_scale=0.5)
    np.testing.assert_allclose(
        convert(np.array([[1, -1, 0.5, 1, 0, -0.2]]), coarse, space()),
        [[0.05, -0.05, 0.025, 0.5, 0, -0.1]],
        atol=1e-7,
    )
    fine = space(position_scale=0.02, rotation_scale=0.05)
    np.testing.assert_allclose(
        convert(np.array([[1, 0, 0, 0.1, 0, 0]]), coarse, fine), [[2.5, 0, 0, 1, 0, 0]], atol=1e-6
    )


def test_euler_differences_are_added_not_composed() -> None:
    """The goal's angles are the pose's plus the action's; to turn by the action leads elsewhere."""
    rng = np.random.default_rng(0)
    before, change = rng.uniform(-1, 1, (20, 3)), rng.uniform(-0.3, 0.3, (20, 3))
    poses = np.zeros((20, 7))
    goals = []
    for t in range(20):
        poses[t, 3:] = quaternion_from_euler(before[t])
        goals.append(matrix_of(before[t] + change[t], "euler_xyz"))
    actions = np.concatenate([np.zeros((20, 3)), change], axis=1)
    added = space(rotation="euler_xyz_difference")
    rot6d = convert(actions, added, space("absolute", "rot6d"), poses=poses)
    np.testing.assert_allclose(
        [matrix_of(row[3:].astype(float), "rot6d") for row in rot6d], goals, atol=1e-6
    )
    np.testing.assert_allclose(
        convert(rot6d, space("absolute", "rot6d"), added, poses=poses), actions, atol=1e-6
    )
    composed = convert(
        actions, space(rotation="euler_xyz"), space("absolute", "rot6d"), poses=poses
    )
    assert np.abs(composed - rot6d).max() > 0.05


def quaternion_from_euler(angles: np.ndarray) -> np.ndarray:
    """x, y, z, w by the half angle formula."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(angles / 2), np.sin(angles / 2)
    return np.array(
        [
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
            cr * cp * cy + sr * sp * sy,
        ]
    )


def test_euler_differences_wrap_and_refuse_a_right_angle() -> None:
    """From yaw 3.1 to -3.1 is 0.083 onwards, not 6.2 back."""
    poses = np.zeros((1, 7))
    poses[0, 3:] = quaternion_from_euler(np.array([0, 0, 3.1]))
    target = np.array([[0, 0, 0, 0, 0, -3.1]])
    added = space(rotation="euler_xyz_difference")
    out = convert(target, space("absolute", "euler_xyz"), added, poses=poses)
    np.testing.assert_allclose(out[0, 3:], [0, 0, 2 * np.pi - 6.2], atol=1e-6)
    poses[0, 3:] = [0, HALF_ROOT, 0, HALF_ROOT]
    with pytest.raises(RoboAlignError, match="step 0 the pitch is a right angle"):
        convert(target, space("absolute", "euler_xyz"), added, poses=poses)


def test_at_a_right_angle_of_pitch_the_rotation_is_still_right(recwarn) -> None:
    turned = np.array([[0, 0, 0, 0, HALF_ROOT, 0, HALF_ROOT]])
    out = convert(turned, space(rotation="quaternion_xyzw"), space(rotation="euler_xyz"))
    np.testing.assert_allclose(
        matrix_of(out[0, 3:].astype(float), "euler_xyz"), about("y", QUARTER), atol=1e-6
    )
    assert not recwarn.list


def test_rot6d_that_is_not_orthogonal_is_made_so() -> None:
    out = convert(np.array([[0, 0, 0, 2.0, 0, 0, 1.0, 3.0, 0]]), space(rotation="rot6d"), space())
    np.testing.assert_allclose(out, np.zeros((1, 6)), atol=1e-7)


GRIPPER = {
    "open_positive": (1, -1, 0),
    "closed_positive": (-1, 1, 0),
    "open_one": (1, 0, 0.5),
    "closed_one": (0, 1, 0.5),
}


@pytest.mark.parametrize("source", CODES)
@pytest.mark.parametrize("target", CODES)
def test_gripper_codes_open_closed_half(source: str, target: str) -> None:
    column = np.array(GRIPPER[source], dtype=np.float32)[:, None]
    actions = np.concatenate([np.zeros((3, 6), dtype=np.float32), column], axis=1)
    out = convert(actions, space(gripper=source), space(gripper=target))
    assert out[:, -1].tolist() == list(GRIPPER[target])


@given(
    value=st.floats(-2, 2, width=32), source=st.sampled_from(CODES), target=st.sampled_from(CODES)
)
def test_gripper_codes_are_inverse(value: float, source: str, target: str) -> None:
    joint = {"control": "joint", "mode": "absolute", "joints": 1}
    a, b = ActionSpace(**joint, gripper=source), ActionSpace(**joint, gripper=target)
    back = convert(convert(np.array([[0.3, value]]), a, b), b, a)
    np.testing.assert_allclose(back, [[0.3, value]], atol=1e-6)


@given(meaning=spaces(forms=tuple(f for f in ROTATION_NAMES if f != "euler_xyz_difference")))
def test_dims_and_names_agree(meaning: ActionSpace) -> None:
    columns = list(range(meaning.dim))
    parts = [meaning.position, meaning.rotation_part, meaning.gripper_part]
    assert [column for part in parts for column in columns[part]] == columns
    assert len(meaning.names) == meaning.dim == len(set(meaning.names))
    assert meaning.names[meaning.position] == ("x", "y", "z")
    assert meaning.names[meaning.rotation_part] == ROTATION_NAMES[meaning.rotation]
    assert meaning.names[meaning.gripper_part] == ("gripper",)


def test_dims_and_names_of_joints() -> None:
    meaning = ActionSpace(control="joint", mode="absolute", joints=2, gripper="open_one")
    assert meaning.names == ("joint_0", "joint_1", "gripper") and meaning.dim == 3
    assert meaning.names[meaning.position] == () and meaning.names[meaning.rotation_part] == (
        "joint_0",
        "joint_1",
    )
    bare = space("absolute", "none")
    assert (
        bare.names == ("x", "y", "z")
        and bare.names[bare.gripper_part] == bare.names[bare.rotation_part] == ()
    )


def test_a_velocity_may_change_units_and_gripper_code() -> None:
    source = space("velocity", gripper="open_one", position_scale=0.5)
    out = convert(
        np.array([[1, 0, 0, 0, 0, 2, 0]]), source, space("velocity", gripper="closed_one")
    )
    assert out.tolist() == [[0.5, 0, 0, 0, 0, 2, 1]]


def test_input_is_left_alone_and_no_steps_are_no_steps() -> None:
    actions = np.full((3, 7), 0.25, dtype=np.float32)
    source = space(gripper="open_one")
    out = convert(actions, source, source)
    assert out is not actions and out.dtype == np.float32 and (out == actions).all()
    convert(
        actions,
        source,
        space("absolute", "rot6d", gripper="closed_one"),
        poses=np.repeat(IDENTITY, 3, axis=0),
    )
    assert (actions == 0.25).all()
    assert convert(np.zeros((0, 7)), source, space(rotation="rot6d", gripper="open_one")).shape == (
        0,
        10,
    )


def test_a_space_survives_json() -> None:
    meaning = space(gripper="closed_positive", position_scale=0.05, rotation_scale=0.5)
    assert ActionSpace.model_validate_json(meaning.model_dump_json()) == meaning
