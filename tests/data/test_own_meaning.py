"""What a data set suggests its actions mean: absolute, delta or double delta, by correlation and lag."""

from pathlib import Path

import numpy as np
import pytest

from roboalign.episodes.open import open_robot_data
from roboalign.episodes.survey.meaning import read_meaning


def motion(seed: int, steps: int = 80) -> np.ndarray:
    """float64 [T, 3]: smooth states of one episode."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(steps + 20, 3))
    smooth = np.apply_along_axis(lambda c: np.convolve(c, np.ones(9) / 9, "valid"), 0, noise)
    return (rng.normal(size=3) + np.cumsum(smooth, axis=0) * 0.05)[:steps]


STATES = [motion(seed) for seed in range(8)]


def shifted(lag: int) -> list[np.ndarray]:
    """The state `lag` steps later; the last one is repeated."""
    return [s[np.minimum(np.arange(len(s)) + lag, len(s) - 1)] for s in STATES]


def steps_of(states: list[np.ndarray]) -> list[np.ndarray]:
    return [np.diff(s, axis=0, append=s[-1:]) for s in states]


def meaning(actions: list[np.ndarray], names=("x", "y", "z"), states=STATES, **named):
    return read_meaning(actions, states, names, ("x", "y", "z"), **named)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_targets_are_seen_with_their_lag(lag: int) -> None:
    found = meaning(shifted(lag))
    assert found.kind == "target" and not found.double
    assert [one.lag for one in found.relations] == [lag] * 3
    assert f"{lag} step" in found.sentences()[0] and "absolute" in found.sentences()[0]


@pytest.mark.parametrize("lag", [0, 2])
def test_deltas_are_seen_in_any_unit_and_with_noise(lag: int) -> None:
    rng = np.random.default_rng(0)
    deltas = [s[np.minimum(np.arange(len(s)) + lag, len(s) - 1)] / 0.05 for s in steps_of(STATES)]
    noisy = [d + rng.normal(scale=0.3 * d.std(), size=d.shape) for d in deltas]
    found = meaning(noisy)
    assert found.kind == "step" and not found.double
    assert [one.lag for one in found.relations] == [lag] * 3


def test_a_state_subtracted_from_deltas_is_a_double_delta() -> None:
    deltas = steps_of(STATES)
    found = meaning([d - s for d, s in zip(deltas, STATES)])
    assert found.double and found.kind == "minus-state"
    assert "double delta" in found.sentences()[0]


def test_a_target_with_the_other_sign_is_no_double_delta() -> None:
    assert not meaning([-s for s in shifted(1)]).double


def test_differences_of_deltas_are_a_double_delta() -> None:
    twice = [np.diff(d, axis=0, prepend=d[:1]) for d in steps_of(STATES)]
    found = meaning(twice)
    assert found.double and found.kind == "second-difference"


def test_noise_is_nothing() -> None:
    rng = np.random.default_rng(0)
    found = meaning([rng.normal(size=s.shape) for s in STATES])
    assert found.kind == "none" and "in no way" in found.sentences()[0]


def test_names_and_ranges_make_the_suggestions() -> None:
    grip = [np.arange(len(s))[:, None] > 40 for s in STATES]
    actions = [np.column_stack([s, g]) for s, g in zip(shifted(1), grip)]
    found = meaning(actions, ("x", "y", "z", "gripper"))
    assert found.gripper == (3,) and found.gripper_range == (0.0, 1.0)
    assert [text for text, _ in found.suggestions] == [
        "control=end-effector,mode=absolute,rotation=none,gripper=closed_one",
        "control=end-effector,mode=absolute,rotation=none,gripper=open_one",
    ]
    signed = [np.column_stack([s, 2.0 * g - 1]) for s, g in zip(shifted(1), grip)]
    assert "gripper=closed_positive" in meaning(signed, ("x", "y", "z", "grip")).suggestions[0][0]
    joints = meaning(actions, ("joint_0", "joint_1", "joint_2", "gripper"))
    assert joints.suggestions[0][0] == "control=joint,mode=absolute,joints=3,gripper=closed_one"
    unnamed = meaning(actions, ())
    assert unnamed.gripper == (3,)  # few values, the last dimension
    assert {text.split(",")[0] for text, _ in unnamed.suggestions} == {
        "control=joint",
        "control=end-effector",
    }


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real sets are not here")
def test_the_real_sets() -> None:
    """GR1's actions are joint targets; BridgeV2's are deltas with a gripper that is 1 or 0."""
    gr1 = open_robot_data(SHARED / "lerobot_v2_picknplace")
    episodes = list(gr1)
    found = read_meaning(
        [e.actions for e in episodes],
        [e.state for e in episodes],
        gr1.action_names,
        gr1.state_names,
    )
    assert found.kind == "target" and not found.double
    assert found.suggestions[0][0] == "control=joint,mode=absolute,joints=44,gripper=none"
    bridge = open_robot_data(SHARED / "bridge_sample")
    episodes = list(bridge)
    found = read_meaning(
        [e.actions for e in episodes],
        [e.state for e in episodes],
        bridge.action_names,
        bridge.state_names,
        data_set="bridge_dataset",
    )
    assert found.kind == "step" and found.gripper == (6,) and found.suggestions[0][0] == "bridge"
