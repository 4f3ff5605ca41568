"""What a data set suggests its actions mean: absolute, delta or double delta, by correlation and lag."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from roboalign.episodes.open import open_robot_data
from roboalign.episodes.survey.meaning import Samples, read_meaning


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

    assert "correlation" not in found.sentences()[0]
    modes = {text.split(",")[1] for text, _ in found.suggestions}
    assert modes == {"mode=absolute", "mode=delta"}  # nothing tells which


def test_a_state_in_another_order_is_found() -> None:
    """As many numbers as the action, other names, the gripper first: place tells nothing."""
    rng = np.random.default_rng(0)
    grip = [(np.arange(len(s))[:, None] > 40).astype(float) for s in STATES]
    states = [np.column_stack([g, s]) for s, g in zip(STATES, grip)]
    names, state_names = ("dx", "dy", "dz", "jaw"), ("jaw_opening", "px", "py", "pz")
    deltas = [np.column_stack([d / 0.05, g]) for d, g in zip(steps_of(STATES), grip)]
    found = read_meaning(deltas, states, names, state_names)
    assert [one and one.kind for one in found.relations] == ["step", "step", "step", None]
    assert {text.split(",")[1] for text, _ in found.suggestions} == {"mode=delta"}
    twice = [np.column_stack([d - s, g]) for d, s, g in zip(steps_of(STATES), STATES, grip)]
    assert read_meaning(twice, states, names, state_names).double
    noise = [np.column_stack([rng.normal(size=s.shape), g]) for s, g in zip(STATES, grip)]
    assert read_meaning(noise, states, names, state_names).kind == "none"


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


def episode(actions: np.ndarray, state: np.ndarray, mode: str | None) -> Any:
    """What `Samples` reads of an episode."""
    space = mode and SimpleNamespace(mode=mode)
    return SimpleNamespace(actions=actions, state=state, action_space=space)


def fault_of(actions: list[np.ndarray], mode: str | None) -> str:
    samples = Samples()
    for one, state in zip(actions, STATES):
        samples.add(episode(one, state, mode))
    return samples.fault(("x", "y", "z"), ("x", "y", "z"))


def test_what_is_stated_and_what_is_seen() -> None:
    """Deltas called absolute would be made deltas again, and targets called deltas added twice."""
    targets, deltas = shifted(1), steps_of(STATES)
    assert fault_of(targets, "absolute") == fault_of(deltas, "delta") == ""
    assert fault_of(targets, None) == fault_of(deltas, None) == fault_of(deltas, "velocity") == ""
    assert "stated as absolute, and look like deltas. 3 of 3" in fault_of(deltas, "absolute")
    assert "state the space with mode=delta" in fault_of(deltas, "absolute")
    assert "stated as delta, and look absolute. 3 of 3" in fault_of(targets, "delta")
    assert "1 step later" in fault_of(targets, "delta")
    twice = [d - s for d, s in zip(deltas, STATES)]
    for mode in ("absolute", "delta", None):
        assert "look like a double delta" in fault_of(twice, mode)


def test_episodes_shorter_than_the_longest_lag_are_compared_too() -> None:
    short = [state[:length] for state in STATES for length in (1, 2, 3, 5)]
    found = read_meaning(short, short, ("x", "y", "z"), ("x", "y", "z"))
    assert found.kind == "target" and [one.lag for one in found.relations] == [0] * 3


def test_only_the_first_episodes_and_not_all_pairs_are_compared() -> None:
    samples = Samples(most=2)
    for state in STATES:
        samples.add(episode(state, state, None))
    assert len(samples.actions) == len(samples.states) == 2
    wide = Samples()
    wide.add(episode(np.zeros((9, 30)), np.ones((9, 31)), "absolute"))
    assert wide.fault((), ()) == ""


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


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real sets are not here")
def test_a_double_delta_of_the_real_sets_is_named() -> None:
    """Each delta made once is one; made twice it is named. GR1's targets lead the state by 4 steps."""
    for name, mode, other in (
        ("lerobot_v2_picknplace", "absolute", "delta"),
        ("bridge_sample", "delta", "absolute"),
    ):
        data = open_robot_data(SHARED / name)
        episodes = list(data)

        def fault(actions: list[np.ndarray], mode: str, data=data, episodes=episodes) -> str:
            samples = Samples()
            for one, recorded in zip(actions, episodes):
                samples.add(episode(one, recorded.state, mode))
            return samples.fault(data.action_names, data.state_names)

        recorded = [e.actions for e in episodes]
        assert fault(recorded, mode) == ""
        assert f"stated as {other}" in fault(recorded, other)
        deltas = recorded
        if mode == "absolute":
            deltas = [e.actions - e.state for e in episodes]
            assert fault(deltas, "delta") == ""
            assert "stated as absolute, and look like deltas" in fault(deltas, "absolute")
        twice = [one - e.state for one, e in zip(deltas, episodes)]
        differences = [np.diff(one, axis=0, prepend=one[:1]) for one in deltas]
        assert "look like a double delta" in fault(twice, mode)
        assert "look like a double delta" in fault(twice, other)
        if mode == "delta":
            assert "the difference of two deltas" in fault(differences, mode)
