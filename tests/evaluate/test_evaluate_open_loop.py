"""Open loop: errors, baselines, the gripper's switches, by values computed by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.actions.known_spaces import known_space
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.evaluate.open_loop import (
    METHODS,
    choose_held_out,
    match_switches,
    measure_open_loop,
    replay_episodes,
    signed_difference,
    spread_of,
    unit_of,
)
from roboalign.report.open_loop import verdict_of

SPACE = ActionSpace(control="end-effector", mode="delta", gripper="closed_one", position_scale=0.05)


class Recorded:
    """An episode with what `replay_episodes` reads."""

    def __init__(self, actions: np.ndarray, name: str = "a") -> None:
        self.actions = np.asarray(actions, np.float32)
        self.state = np.zeros((len(actions), 2), np.float32)
        self.episode_id, self.instruction, self.fps = name, "do it", 10.0

    def __len__(self) -> int:
        return len(self.actions)

    def frame(self, camera: str, t: int) -> np.ndarray:
        return np.full((4, 4, 3), t, np.uint8)


def chunks_of(episode: Recorded, offset: float = 0.0, horizon: int = 4):
    """A policy that answers the recorded chunk plus `offset`, found by the frame that it is shown."""

    def act(observations, keys) -> np.ndarray:
        (seen,), (key,) = observations, keys
        t = int(seen.images["front"][0, 0, 0])
        assert key == (episode.episode_id, t) and seen.instruction == "do it"
        rows = np.minimum(np.arange(t, t + horizon), len(episode) - 1)
        return episode.actions[rows][None] + np.float32(offset)

    return act


def ramp(steps: int = 10) -> Recorded:
    """x rises by 1 a step, y is constant, z alternates between -1 and 1; the gripper closes at step 5."""
    t = np.arange(steps)
    z = np.where(t % 2, 1.0, -1.0)
    return Recorded(np.column_stack([t, np.full(steps, 7.0), z, t >= 5]))


def measured(episode: Recorded, act, **named):
    mean, spread = spread_of([episode])
    replayed = replay_episodes(act, 4, [episode], ("front",), mean)
    return measure_open_loop(replayed, spread, SPACE, **named)


def test_the_errors_of_policy_and_baselines() -> None:
    episode = ramp()
    found = measured(episode, chunks_of(episode, offset=0.5))
    assert (found["steps"], found["chunks"], found["episodes"]) == (10, 3, 1)
    x, y, z, gripper = found["dimensions"]
    assert [row["name"] for row in found["dimensions"]] == ["x", "y", "z", "gripper"]
    assert [row["unit"] for row in found["dimensions"]] == ["0.05 m"] * 3 + [""]
    assert x["error"]["policy"] == pytest.approx(0.5)
    assert x["spread"] == pytest.approx(np.std(np.arange(10)))
    # The mean of 0..9 is 4.5, and the mean distance from it 2.5.
    assert x["error"]["mean"] == pytest.approx(2.5)
    # Held: at the start the mean (errors 4.5, 3.5, 2.5, 1.5), then the action before each chunk:
    # 3 held over 4..7 (1, 2, 3, 4), 7 held over 8, 9 (1, 2).
    assert x["error"]["hold"] == pytest.approx((4.5 + 3.5 + 2.5 + 1.5 + 10 + 3) / 10)
    assert not y["moves"] and z["moves"] and gripper["moves"]
    shares = [0.5 / row["spread"] for row in (x, z, gripper)]
    assert found["overall"]["policy"]["value"] == pytest.approx(np.mean(shares))
    assert found["by_step"]["policy"] == pytest.approx([np.mean(shares)] * 4)


def test_a_perfect_policy_has_no_error_and_its_trace_is_the_recording() -> None:
    episode = ramp(11)
    found = measured(episode, chunks_of(episode))
    assert found["overall"]["policy"]["value"] == 0
    assert found["traces"][0]["predicted"] == found["traces"][0]["recorded"]
    assert len(found["traces"][0]["recorded"]) == 11
    assert found["gripper"]["agreement"] == 1.0 and found["gripper"]["lag_steps"] == 0


def test_the_grippers_side_and_the_time_of_its_switch() -> None:
    """The policy closes two steps late: steps 5 and 6 of 10 are on the wrong side."""
    episode = ramp()
    late = Recorded(np.column_stack([episode.actions[:, :3], np.arange(10) >= 7]))
    gripper = measured(episode, chunks_of(late))["gripper"]
    assert gripper["agreement"] == pytest.approx(0.8) and gripper["constant"] == 0.5
    assert (gripper["switches"], gripper["missed"], gripper["extra"]) == (1, 0, 0)
    assert gripper["lag_steps"] == 2 and gripper["lag_seconds"] == pytest.approx(0.2)
    swapped = Recorded(np.column_stack([episode.actions[:, :3], np.arange(10) < 5]))
    wrong = measured(episode, chunks_of(swapped))["gripper"]
    assert wrong["agreement"] == 0 and (wrong["missed"], wrong["extra"]) == (1, 1)


def test_switches_are_paired_with_the_nearest_of_their_direction() -> None:
    def closed(*spans: tuple[int, int]) -> np.ndarray:
        return np.array([any(a <= t < b for a, b in spans) for t in range(30)])

    assert match_switches(closed((5, 10)), closed((6, 8)), 4) == ([1, -2], 0, 0)
    assert match_switches(closed((5, 10)), closed(), 4) == ([], 2, 0)
    assert match_switches(closed(), closed((5, 10)), 4) == ([], 0, 2)
    assert match_switches(closed((5, 10)), closed((12, 14)), 4) == ([4], 1, 1)


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(1, 10))
def test_every_switch_is_counted_once(sides: list[bool], reach: int) -> None:
    recorded = np.array(sides)
    said = np.roll(recorded, 1)
    lags, missed, extra = match_switches(recorded, said, reach)
    assert len(lags) + missed == (recorded[1:] != recorded[:-1]).sum()
    assert len(lags) + extra == (said[1:] != said[:-1]).sum()
    assert all(abs(lag) <= reach for lag in lags)


def test_angles_of_an_absolute_pose_are_compared_the_shorter_way_around() -> None:
    space = known_space("droid_cartesian_position")
    said, recorded = np.zeros((1, 7)), np.zeros((1, 7))
    said[0, 3], recorded[0, 3] = 3.1, -3.1
    said[0, 0], recorded[0, 0] = 3.1, -3.1  # a position, which has no way around
    difference = signed_difference(said, recorded, space)
    assert difference[0, 3] == pytest.approx(6.2 - 2 * np.pi) and difference[0, 0] == 6.2


def test_units_come_from_the_space() -> None:
    joints = ActionSpace(control="joint", mode="velocity", joints=2, gripper="open_one")
    assert [unit_of(joints, d) for d in range(3)] == ["rad/s", "rad/s", ""]
    assert [unit_of(known_space("libero"), d) for d in (0, 3, 6)] == ["0.05 m", "0.5 rad", ""]
    assert unit_of(None, 0) == ""


def test_a_chunk_of_another_robot_is_refused() -> None:
    episode = ramp()
    with pytest.raises(RoboAlignError, match=r"answers \[4, 3\], recorded are \[4, 4\]"):
        measured(episode, lambda seen, keys: np.zeros((1, 4, 3), np.float32))


def test_episodes_are_spaced_evenly() -> None:
    episodes = [SimpleNamespace(n=n) for n in range(9)]
    assert [e.n for e in choose_held_out(episodes, 3)] == [0, 4, 8]
    assert choose_held_out(episodes[:2], 3) == episodes[:2]


def test_the_verdict_needs_a_whole_interval() -> None:
    """Three episodes of which one is worse show nothing; eight that all are better do."""

    def verdict(gaps: list[float]) -> str:
        rows = [
            {"policy": 1.0 + gap, "mean": 1.0, "hold": 1.0 + gap + 0.1 * n}
            for n, gap in enumerate(gaps)
        ]
        one = {"value": 1.0, "low": 0.9, "high": 1.1}
        return verdict_of({"overall": dict.fromkeys(METHODS, one), "by_episode": rows})

    unclear = "the policy is not distinguishable from the mean action"
    assert unclear in verdict([-0.3, 0.4, -0.2]) and "single" not in verdict([-0.3, 0.4, -0.2])
    alone = verdict([-0.3])
    assert "closer than the mean action" in alone and "In a single episode, chance" in alone
    assert "the policy is closer than the mean action" in verdict([-0.3, -0.2] * 4)
    assert "farther than the mean action and closer than the last action held" in verdict(
        [0.3, 0.2] * 4
    )
