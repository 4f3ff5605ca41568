"""Actions relative to the chunk's start, against poses that scipy computes."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from roboalign.actions.relative import STATE_FORMS, Relative, resolve_relative
from roboalign.actions.spaces import ActionSpace, convert
from roboalign.core.errors import RoboAlignError

NAMES = {
    "euler_xyz": ["r", "p", "w"],
    "axis_angle": ["ax", "ay", "az"],
    "quaternion_xyzw": ["qx", "qy", "qz", "qw"],
    "quaternion_wxyz": ["qw", "qx", "qy", "qz"],
    "rot6d": ["a", "b", "c", "d", "e", "f"],
}
"""Names of a state's orientation; the state is these, then x, y, z, then a gripper."""


def numbers(rotation: Rotation, form: str, unit: float = 1.0) -> np.ndarray:
    """[..., n]: rotations as numbers, by scipy alone."""
    if form == "euler_xyz":
        return rotation.as_euler("xyz") / unit
    if form == "axis_angle":
        return rotation.as_rotvec() / unit
    if form == "rot6d":
        matrix = rotation.as_matrix()
        return np.concatenate([matrix[..., 0], matrix[..., 1]], axis=-1)
    return rotation.as_quat(scalar_first=form == "quaternion_wxyz")


def rotations(values: np.ndarray, form: str, unit: float = 1.0) -> Rotation:
    if form == "euler_xyz":
        return Rotation.from_euler("xyz", values * unit)
    if form == "axis_angle":
        return Rotation.from_rotvec(values * unit)
    if form == "rot6d":
        first, second = values[..., :3], values[..., 3:]
        return Rotation.from_matrix(np.stack([first, second, np.cross(first, second)], axis=-1))
    return Rotation.from_quat(values, scalar_first=form == "quaternion_wxyz")


def end_effector(form: str, unit: float = 1.0) -> ActionSpace:
    return ActionSpace(
        control="end-effector",
        mode="absolute",
        rotation=form,
        gripper="open_one",
        rotation_scale=unit,
    )


def meant(space: ActionSpace, form: str) -> Relative:
    chosen = {"x": "x", "y": "y", "z": "z", form: tuple(NAMES[form])}
    names = [*NAMES[form], "x", "y", "z", "grip"]
    return resolve_relative(chosen, space, space.names, names, len(names), "demos.relative")


@given(
    form=st.sampled_from(STATE_FORMS),
    of_state=st.sampled_from(STATE_FORMS),
    unit=st.sampled_from([1.0, np.pi / 180]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=80, deadline=None)
def test_poses_are_composed_and_come_back(form: str, of_state: str, unit: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = ("euler_xyz", "axis_angle")
    scale = unit if form in angles else 1.0
    state_unit = scale if of_state in angles else 1.0
    start, targets = Rotation.random(rng=rng), Rotation.random(6, rng=rng)
    here, there = rng.normal(size=3), rng.normal(size=(6, 3))
    grip = rng.uniform(size=6)
    chunk = np.column_stack([there, numbers(targets, form, scale), grip]).astype(np.float32)
    state = np.concatenate([numbers(start, of_state, state_unit), here, [0.5]]).astype(np.float32)
    relative = meant(end_effector(form, scale), of_state)

    learned = relative.relative(chunk, state)

    turned = targets * start.inv()
    np.testing.assert_allclose(learned[:, :3], there - here, atol=1e-5)
    difference = rotations(learned[:, 3:-1].astype(np.float64), form, scale) * turned.inv()
    assert difference.magnitude().max() < 2e-3 if form == "euler_xyz" else 2e-5
    np.testing.assert_array_equal(learned[:, -1], chunk[:, -1])  # the gripper: as recorded
    back = relative.absolute(learned, state)
    assert back.dtype == np.float32 and back.shape == chunk.shape
    np.testing.assert_allclose(back[:, :3], there, atol=1e-5)
    difference = rotations(back[:, 3:-1].astype(np.float64), form, scale) * targets.inv()
    assert difference.magnitude().max() < 2e-3
    np.testing.assert_array_equal(back[:, -1], chunk[:, -1])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_first_action_is_the_delta_of_its_step(seed: int) -> None:
    """Two roads to one number: `convert`, which knows the pose before each action."""
    rng = np.random.default_rng(seed)
    start, target = Rotation.random(2, rng=rng), Rotation.random(2, rng=rng)
    here, there = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    action = np.column_stack([there, target.as_rotvec(), [0.0, 1.0]])
    pose = np.column_stack([here, start.as_quat()])
    absolute = end_effector("axis_angle")
    delta = absolute.model_copy(update={"mode": "delta"})
    wanted = convert(action, absolute, delta, poses=pose)
    state = np.column_stack([start.as_quat(), here, [0, 0]])
    found = meant(absolute, "quaternion_xyzw").relative(action[:, None], state)
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-5)


@given(chosen=st.sets(st.integers(0, 4)), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_joints_one_by_one(chosen: set[int], seed: int) -> None:
    """Only the named joints change, by the state's number of that name; batches as single chunks."""
    space = ActionSpace(control="joint", mode="absolute", joints=5, gripper="closed_one")
    states = [f"joint_{number}" for number in (4, 2, 0, 3, 1)]
    rng = np.random.default_rng(seed)
    chunks = rng.normal(size=(3, 4, 6)).astype(np.float32)
    state = rng.normal(size=(3, 5)).astype(np.float32)
    named = {f"joint_{number}": f"joint_{number}" for number in chosen}
    relative = resolve_relative(named, space, space.names, states, 5, "demos.relative")
    wanted = chunks.astype(np.float64)
    for number in chosen:
        wanted[:, :, number] -= state[:, None, states.index(f"joint_{number}")]
    learned = relative.relative(chunks, state)
    np.testing.assert_allclose(learned, wanted, atol=1e-6)
    np.testing.assert_array_equal(learned[1], relative.relative(chunks[1], state[1]))
    np.testing.assert_allclose(relative.absolute(learned, state), chunks, atol=1e-6)


def test_angles_across_a_half_turn_are_composed() -> None:
    """From 170 to -170 degrees of yaw is +20; subtracted it would be -340."""
    degree = np.pi / 180
    relative = meant(end_effector("euler_xyz", degree), "euler_xyz")
    state = np.array([0, 0, 170, 1, 2, 3, 0.0])
    chunk = np.array([[1, 2, 3, 0, 0, -170, 1.0]])
    np.testing.assert_allclose(relative.relative(chunk, state), [[0, 0, 0, 0, 0, 20, 1]], atol=1e-4)


def test_all_joints_by_their_names() -> None:
    space = ActionSpace(control="joint", mode="absolute", joints=2, gripper="none")
    own = ("shoulder", "elbow")
    found = resolve_relative({"joints": "same"}, space, own, ("elbow", "shoulder"), 2, "r")
    assert found.pairs == ((0, 1), (1, 0))
    assert resolve_relative({"joints": ("0", "1")}, space, own, (), 2, "r").pairs == (
        (0, 0),
        (1, 1),
    )
    assert Relative.model_validate_json(found.model_dump_json()) == found


DELTA = ActionSpace(control="end-effector", mode="delta", rotation="euler_xyz", gripper="open_one")
POSE = end_effector("euler_xyz")


@pytest.mark.parametrize(
    ("chosen", "space", "message"),
    [
        ({"x": "x"}, DELTA, "subtracting the state from them would be a double delta"),
        ({"gripper": "grip"}, POSE, "a gripper stays as recorded"),
        ({"roll": "r"}, POSE, "rotations are composed, not subtracted angle by angle"),
        ({"u": "x"}, POSE, "no dimension of the action is called 'u'"),
        ({"x": "xx"}, POSE, "the state has no number 'xx'.*did you mean x"),
        ({"quaternion_xyzw": ("x", "y")}, POSE, "2 state numbers, quaternion_xyzw needs 4"),
        ({"joints": "same"}, POSE, "no dimension of the action is called 'joints'"),
        ({"euler_xyz": ("r", "p", "w"), "axis_angle": ("r", "p", "w")}, POSE, "named twice"),
    ],
)
def test_what_cannot_be_relative_is_refused(chosen: dict, space: ActionSpace, message: str) -> None:
    names = ["x", "y", "z", "r", "p", "w", "grip"]
    with pytest.raises(RoboAlignError, match=message) as caught:
        resolve_relative(chosen, space, space.names, names, 7, "demos.relative")
    assert caught.value.where.startswith("demos.relative") and caught.value.fix


def test_stats_and_chunks_of_the_head() -> None:
    """The statistics are of what is learned, over all steps of a chunk."""
    from roboalign.vla.frames import chunks_of, learned_stats

    space = ActionSpace(control="joint", mode="absolute", joints=1, gripper="closed_one")
    relative = resolve_relative({"joints": ("0",)}, space, space.names, (), 1, "r")
    actions = np.array([[11, 0], [12, 1], [13, 1]], np.float32)
    episode = SimpleNamespace(
        actions=actions,
        state=np.array([[10], [11], [12]], np.float32),
        chunks=lambda horizon: np.stack([actions[[0, 1]], actions[[1, 2]], actions[[2, 2]]]),
    )
    learned = chunks_of(episode, 2, relative)
    np.testing.assert_array_equal(learned, [[[1, 0], [2, 1]], [[1, 1], [2, 1]], [[1, 1], [1, 1]]])
    stats = learned_stats([episode], 2, relative, "min_max", True)
    assert stats.minimum.tolist() == [1, 0] and stats.maximum.tolist() == [2, 1]
    plain = learned_stats([episode], 2, None, "min_max", True)
    assert plain.minimum.tolist() == [11, 0] and plain.count == 3
