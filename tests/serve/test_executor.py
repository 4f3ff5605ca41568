"""The control loop in simulated time: cadence, stitching, limits, holding; and once in real time."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from serving import CONTRACT, Echo, expected, seen, served

from benchmarks.simulated_robot import (
    HORIZON,
    METADATA,
    SPACE,
    SimulatedClock,
    SimulatedInference,
    SimulatedRobot,
    TwoWays,
    path,
    run,
)
from roboalign.core.errors import RoboAlignError
from roboalign.serve.client import RemotePolicy
from roboalign.serve.executor import Executor, Limits, hold_action
from roboalign.serve.stitching import Stitcher, TimedChunk, check_stitch


class Counting:
    """Chunks of 4 actions [step, 10 * requests]; `fail` names requests that raise."""

    metadata = METADATA

    def __init__(self, horizon: int = 4, fail: tuple[int, ...] = ()) -> None:
        self.horizon, self.fail, self.requests, self.keys = horizon, fail, 0, []

    def act(self, one, noise_key=None, **guide) -> np.ndarray:
        self.requests += 1
        self.keys.append(noise_key)
        if self.requests in self.fail:
            raise RoboAlignError("the camera is dark", where="observation")
        steps = one.state[0] + np.arange(self.horizon)
        return np.stack([steps, np.full(self.horizon, 10 * self.requests)], 1).astype(np.float32)


def executor(policy, seconds=0.0, **named):
    clock = SimulatedClock()
    robot = SimulatedRobot(clock)
    inference = SimulatedInference(clock, seconds)
    return Executor(policy, robot, clock=clock, inference=inference, **named), robot


def test_each_step_gets_its_own_action_of_the_newest_chunk():
    """20 steps a second, 100 ms of inference: an answer is used two steps after its observation."""
    loop, robot = executor(Counting(), seconds=0.1, every=2)
    cadence = loop.run(9, noise_key=("trial", 3))
    sent = np.array(robot.sent)
    np.testing.assert_array_equal(sent[:, 0], np.arange(9))
    # Requests are made at steps 0, 2, 4, 6, 8; that of step 2 is used from step 4 on.
    np.testing.assert_array_equal(sent[:, 1], [10, 10, 10, 10, 20, 20, 30, 30, 40])
    assert loop.policy.keys == [("trial", 3, step) for step in (0, 2, 4, 6, 8)]
    assert (cadence.late, cadence.missed, cadence.errors) == (0, 0, 0)
    np.testing.assert_allclose(cadence.latencies, 0.1)
    assert "9 control steps, 20.0 a second of 20" in cadence.text()
    assert "request: p50 100.0 ms" in cadence.text()


def test_where_the_chunk_is_late_the_robot_is_held():
    """4 actions last 200 ms; the answer takes 300 ms: two of six steps have none."""
    loop, robot = executor(Counting(), seconds=0.3, every=1)
    cadence = loop.run(12)
    # Asked at step 1, there at step 7: it reaches steps 1 to 4 only, and is used for none.
    np.testing.assert_array_equal(np.array(robot.sent)[:, 0], [0, 1, 2, 3] + [3] * 8)
    assert cadence.late == 8
    with pytest.raises(RoboAlignError, match=r"no action for \d"):
        executor(Counting(), seconds=0.3, limits=Limits(give_up=1.0))[0].run(100)


def test_a_failed_request_is_asked_again_and_the_first_is_raised():
    loop, robot = executor(Counting(horizon=8, fail=(2, 3)))
    cadence = loop.run(6)
    assert cadence.errors == 2 and cadence.late == 0
    np.testing.assert_array_equal(np.array(robot.sent)[:, 0], np.arange(6))
    with pytest.raises(RoboAlignError, match="the camera is dark"):
        executor(Counting(fail=(1,)))[0].run(6)
    with pytest.raises(RoboAlignError, match="was held: observation: the camera is dark"):
        executor(Counting(fail=tuple(range(2, 999))), limits=Limits(give_up=0.5))[0].run(99)


def test_range_step_and_stale_observations_are_limited():
    limits = Limits(low=np.array([2.0, 0.0]), high=np.array([9.0, 25.0]), stale=0.1)
    loop, robot = executor(Counting(horizon=6), every=5, limits=limits)
    cadence = loop.run(6)
    # A chunk is used until two steps after its observation; that of step 5 is there at step 6.
    np.testing.assert_array_equal(np.array(robot.sent)[:, 0], [2, 2, 2, 2, 2, 2])
    assert (cadence.stale, cadence.clipped) == (3, 2)
    # The answer of step 1 is used from step 2 on.
    slow, robot = executor(Counting(), limits=Limits(max_step=np.array([0.5, 4.0])), every=1)
    assert slow.run(4).slowed == 3
    np.testing.assert_allclose(np.array(robot.sent), [[0, 10], [0.5, 10], [1, 14], [1.5, 18]])


def test_holding_still_depends_on_what_actions_mean():
    last = np.array([0.2, -0.1, 1.0], np.float32)
    absolute = {"mode": "absolute", "gripper": "open_one"}
    np.testing.assert_array_equal(hold_action(absolute, last), last)
    for mode in ("delta", "velocity"):
        np.testing.assert_array_equal(
            hold_action({"mode": mode, "gripper": "open_one"}, last), np.float32([0, 0, 1])
        )
        np.testing.assert_array_equal(
            hold_action({"mode": mode, "gripper": "none"}, last), np.zeros(3)
        )
    unknown = SimpleNamespace(metadata={"fps": 20.0, "action": {"space": None}})
    with pytest.raises(RoboAlignError, match="pass hold="):
        Executor(unknown, None)
    with pytest.raises(RoboAlignError, match="pass fps="):
        Executor(SimpleNamespace(metadata={"action": {"space": SPACE}}), None)


def test_stitching():
    old, new = (TimedChunk(start, np.full((4, 1), value)) for start, value in ((0, 1.0), (2, 3.0)))
    for stitch, wanted in (("latest", 3.0), ("rtc", 3.0)):
        stitcher = Stitcher(stitch)
        stitcher.add(old), stitcher.add(new)
        assert stitcher.action(3) == wanted and stitcher.action(6) is None
        assert len(stitcher.rest(4)) == 2 and stitcher.rest(6) is None
    ensemble = Stitcher("ensemble", decay=0.5)
    ensemble.add(old), ensemble.add(new)
    weight = np.exp(-0.5)
    np.testing.assert_allclose(ensemble.action(3), (1 + 3 * weight) / (1 + weight), rtol=1e-6)
    assert ensemble.action(5) == 3.0 and ensemble.action(3, oldest=1) == 3.0


def test_what_cannot_be_stitched_is_refused():
    def metadata(**space):
        return {"real_time_chunking": True, "action": {"space": space}}

    for rotation, mode in (("quaternion_xyzw", "delta"), ("euler_xyz", "absolute")):
        with pytest.raises(RoboAlignError, match="no rotation"):
            check_stitch("ensemble", metadata(control="end-effector", mode=mode, rotation=rotation))
    check_stitch("ensemble", metadata(control="end-effector", mode="delta", rotation="axis_angle"))
    with pytest.raises(RoboAlignError, match="cannot continue a chunk"):
        check_stitch("rtc", {"real_time_chunking": False})


def test_a_chunk_agrees_with_the_actions_that_are_executed_meanwhile():
    policy, plain_switches = TwoWays(), 0
    for seed in range(20):
        policy.generator.manual_seed(seed)
        side = -1 if seed % 2 else 1
        rest = path(3, HORIZON - 3) * [side, 1]
        one = SimpleNamespace(state=[3])
        chunk = policy.act(one, previous=rest, delay=6)
        assert np.abs(chunk[:6] - rest[:6]).max() < 0.05  # SPREAD, the policy's own
        assert (np.sign(chunk[:, 0]) == side).all()
        plain_switches += np.sign(policy.act(one)[0, 0]) != side
    assert 3 < plain_switches < 17


@pytest.mark.parametrize("milliseconds", [0, 100, 200, 300])
def test_seams_jump_with_latest_and_not_with_real_time_chunking(milliseconds):
    jumps = {
        stitch: run(stitch, milliseconds / 1000, steps=240).seam_jumps()
        for stitch in ("latest", "ensemble", "rtc")
    }
    assert all(len(one) > 15 for one in jumps.values())
    assert jumps["rtc"].max() < 0.25 < 0.8 < jumps["latest"].max()
    assert jumps["ensemble"].mean() < jumps["latest"].mean()


def test_over_the_wire_in_real_time():
    class Watched:
        def __init__(self):
            self.sent = []

        def observe(self):
            return seen(3)

        def send(self, action):
            self.sent.append(action)

    robot = Watched()
    with served(Echo(seconds=0.01), CONTRACT) as server, RemotePolicy(port=server.port) as remote:
        loop = Executor(remote, robot, fps=20, hold=lambda last: last)
        cadence = loop.run(10)
    assert cadence.steps + cadence.missed >= 10 and cadence.seconds >= 0.45
    chunk = expected(seen(3))
    assert all(any(np.array_equal(action, one) for one in chunk) for action in robot.sent)
