"""The known spaces against hand-worked numbers, the installed simulator and real BridgeV2 trajectories."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from roboalign.actions.known_spaces import KNOWN, known_space
from roboalign.actions.spaces import ActionSpace, convert
from roboalign.core.errors import RoboAlignError

BRIDGE = (
    Path(__file__).parents[2].parent
    / "shared/data/bridge_sample/bridge_dataset-train.tfrecord-00000-of-00001"
)
POSE = ActionSpace(
    control="end-effector", mode="absolute", rotation="quaternion_xyzw", gripper="open_one"
)
METRES = ActionSpace(
    control="end-effector", mode="delta", rotation="axis_angle", gripper="open_one"
)


@pytest.mark.parametrize(
    "name, dim",
    [
        ("bridge", 7),
        ("bridge_relabelled", 7),
        ("droid_cartesian_position", 7),
        ("droid_cartesian_velocity", 7),
        ("droid_oxe", 7),
        ("droid_joint_position", 8),
        ("droid_joint_velocity", 8),
        ("libero", 7),
        ("robomimic_osc_pose", 7),
        ("calvin_relative", 7),
        ("calvin_absolute", 7),
        ("metaworld", 4),
    ],
)
def test_widths(name: str, dim: int) -> None:
    assert known_space(name).dim == dim and known_space(name).names[-1] == "gripper"


def test_every_known_space_is_tested() -> None:
    widths = test_widths.pytestmark[0].args[1]
    assert {name for name, _ in widths} == set(KNOWN)


def test_an_unknown_name_is_one_message() -> None:
    with pytest.raises(RoboAlignError, match=r"'calvin_relativ'.*did you mean calvin_relative\?"):
        known_space("calvin_relativ")
    with pytest.raises(RoboAlignError, match="known: bridge, "):
        known_space("q")


def test_libero_units_and_gripper() -> None:
    action = np.array([[1, -1, 0, 0, 0, 1, -1], [0, 0, 0.5, 0, 0, 0, 1]])
    expected = [[0.05, -0.05, 0, 0, 0, 0.5, 1], [0, 0, 0.025, 0, 0, 0, 0]]
    np.testing.assert_allclose(convert(action, known_space("libero"), METRES), expected, atol=1e-7)


def test_calvin_relative_is_what_calvin_computes() -> None:
    """(target - measured) / 0.02 m; wrapped Euler differences / 0.05 rad; a hand that points down, so roll near pi."""
    measured, target = (
        np.array([0.1, -0.2, 0.5, 3.13, 0.02, 1.5]),
        np.array([0.11, -0.21, 0.5, -3.14, 0.01, 1.52]),
    )
    pose = np.concatenate([measured[:3], Rotation.from_euler("xyz", measured[3:]).as_quat()])[None]
    difference = target - measured
    difference[3] += 2 * np.pi
    expected = np.concatenate([difference[:3] / 0.02, difference[3:] / 0.05, [-1]])
    absolute = np.append(target, -1)[None]
    relative = convert(absolute, KNOWN["calvin_absolute"], KNOWN["calvin_relative"], poses=pose)
    np.testing.assert_allclose(relative[0], expected, atol=1e-4)
    back = convert(relative, KNOWN["calvin_relative"], KNOWN["calvin_absolute"], poses=pose)
    np.testing.assert_allclose(back, absolute, atol=1e-5)


def test_droid_velocity_and_position_agree() -> None:
    """DROID's own addition of poses: position added, rotation composed on the left, both in units of one step."""
    rng = np.random.default_rng(3)
    velocity, pose = rng.uniform(-0.5, 0.5, 6), rng.uniform(-1, 1, 6)
    turned = Rotation.from_euler("xyz", velocity[3:] * 0.15) * Rotation.from_euler("xyz", pose[3:])
    expected = np.concatenate([pose[:3] + velocity[:3] * 0.075, turned.as_euler("xyz"), [0.25]])
    poses = np.concatenate([pose[:3], Rotation.from_euler("xyz", pose[3:]).as_quat()])[None]
    action = np.append(velocity, 0.25)[None]
    out = convert(
        action, KNOWN["droid_cartesian_velocity"], KNOWN["droid_cartesian_position"], poses=poses
    )
    np.testing.assert_allclose(out[0], expected, atol=1e-6)
    oxe = convert(action, KNOWN["droid_cartesian_velocity"], KNOWN["droid_oxe"])
    np.testing.assert_allclose(oxe[0], [*velocity, 0.75], atol=1e-6)


def test_metaworld_moves_and_grips_as_the_space_says() -> None:
    metaworld = pytest.importorskip("metaworld")
    benchmark = metaworld.MT1("reach-v3", seed=0)
    environment = benchmark.train_classes["reach-v3"]()
    environment.set_task(benchmark.train_tasks[0])
    opening = {}
    for word, code in (("open", 1.0), ("closed", 0.0)):
        environment.reset()
        space = KNOWN["metaworld"]
        metres = space.model_copy(update={"position_scale": 1.0, "gripper": "open_one"})
        step = np.array([[0.005, -0.002, 0.001, code]], dtype=np.float32)
        before = environment.data.mocap_pos[0].copy()
        environment.step(convert(step, metres, space)[0])
        np.testing.assert_allclose(environment.data.mocap_pos[0] - before, step[0, :3], atol=1e-7)
        for _ in range(20):
            observation = environment.step(convert(np.array([[0, 0, 0, code]]), metres, space)[0])[
                0
            ]
        opening[word] = observation[3]
    environment.close()
    assert opening["open"] > 0.9 and opening["closed"] < 0.5


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def floats(example: bytes, key: str) -> np.ndarray:
    """One packed float list of a tf.train.Example: the key, then three nested lengths, then the numbers."""
    at = example.index(b"\x0a" + bytes([len(key)]) + key.encode()) + 2 + len(key)
    for _ in range(3):
        length, at = varint(example, at + 1)
    return np.frombuffer(example[at : at + length], "<f4").reshape(-1, 7)


def bridge_episodes() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    data, at = BRIDGE.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        example = data[at + 12 : at + 12 + length]
        at += length + 16
        yield floats(example, "steps/action"), floats(example, "steps/observation/state")


# The state's Euler angles count from the hand that points straight ahead; this is that hand in the base frame.
WIDOWX_DEFAULT = Rotation.from_matrix([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
needs_bridge = pytest.mark.skipif(not BRIDGE.exists(), reason="the BridgeV2 sample is not here")


@needs_bridge
def test_bridge_commands_predict_where_the_arm_goes_next() -> None:
    """Commands lead the arm, so the match is loose: but it must halve the error of "nothing moves", in metres, radians
    and the base frame; read in the tool frame it is worse than nothing."""
    errors: dict[str, list[np.ndarray]] = {"base": [], "tool": [], "still": []}
    for actions, state in bridge_episodes():
        rotation = Rotation.from_euler("xyz", state[:, 3:6]) * WIDOWX_DEFAULT
        poses = np.concatenate([state[:, :3], rotation.as_quat()], axis=1)
        for frame in ("base", "tool"):
            goal = convert(
                actions, KNOWN["bridge"].model_copy(update={"frame": frame}), POSE, poses=poses
            )
            turn = (Rotation.from_quat(goal[1:-1, 3:7]) * rotation[2:].inv()).magnitude()
            errors[frame].append(
                np.column_stack([np.linalg.norm(goal[1:-1, :3] - state[2:, :3], axis=1), turn])
            )
        turn = (rotation[1:-1] * rotation[2:].inv()).magnitude()
        errors["still"].append(
            np.column_stack([np.linalg.norm(state[1:-1, :3] - state[2:, :3], axis=1), turn])
        )
    base, tool, still = (
        np.concatenate(errors[key]).mean(axis=0) for key in ("base", "tool", "still")
    )
    assert len(errors["base"]) == 25
    assert (base < 0.5 * still).all(), (base, still)
    assert (tool > still).all(), (tool, still)


@needs_bridge
def test_bridge_relabelled_is_the_difference_of_following_states() -> None:
    worst = 0.0
    for actions, state in bridge_episodes():
        poses = np.concatenate(
            [state[:, :3], Rotation.from_euler("xyz", state[:, 3:6]).as_quat()], axis=1
        )
        reached = np.concatenate([poses[1:], actions[:-1, 6:]], axis=1)
        out = convert(reached, POSE, KNOWN["bridge_relabelled"], poses=poses[:-1])
        worst = max(worst, float(np.abs(out[:, :6] - (state[1:, :6] - state[:-1, :6])).max()))
        assert (out[:, 6] == actions[:-1, 6]).all()
    assert worst < 1e-6


@needs_bridge
def test_bridge_gripper_is_open_at_one() -> None:
    """The state's last number is the measured opening: it follows the command with the same sign."""
    episodes = list(bridge_episodes())
    commands = np.concatenate([actions[:-1, 6] for actions, _ in episodes])
    measured = np.concatenate([state[1:, 6] for _, state in episodes])
    assert np.corrcoef(commands, measured)[0, 1] > 0.7
