"""The LIBERO experts: grasps found from geometry, episodes solved and replayed, measurements that go on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_json
from roboalign.sim.base import EnvironmentCrash
from roboalign.sim.libero.experts import measure as measuring
from roboalign.sim.libero.experts.doors import inwards_through
from roboalign.sim.libero.experts.grasps import (
    FINGER_INNER,
    closing_axis,
    in_hand_frame,
    lowest_hand,
    plan_grasps,
)
from roboalign.sim.libero.experts.motion import DOWN, pointing_down, yaw_of
from roboalign.sim.libero.experts.scene import Joint

BASE = np.array([-0.6, 0.0, 0.0])


def block(low: tuple[float, float, float], high: tuple[float, float, float]) -> np.ndarray:
    """Points [N, 3] that fill an upright box, 4 mm apart."""
    axes = [np.arange(a, b + 1e-9, 0.004) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


NOTHING = np.zeros((0, 3))


def test_a_block_too_long_one_way_is_grasped_across_the_other() -> None:
    along_x = plan_grasps(block((-0.05, -0.01, 0.0), (0.05, 0.01, 0.04)), NOTHING, 0.0, BASE)[0]
    assert abs(along_x.yaw) < np.deg2rad(20)  # the fingers close along y, the thin side
    along_y = plan_grasps(block((-0.01, -0.05, 0.0), (0.01, 0.05, 0.04)), NOTHING, 0.0, BASE)[0]
    assert abs(along_y.yaw) > np.deg2rad(70)


def test_an_obstacle_beside_the_object_turns_the_hand() -> None:
    cube = block((-0.01, -0.01, 0.0), (0.01, 0.01, 0.04))
    wall = block((-0.2, 0.03, 0.0), (0.2, 0.05, 0.045))
    free, walled = plan_grasps(cube, NOTHING, 0.0, BASE)[0], plan_grasps(cube, wall, 0.0, BASE)
    assert free.yaw == 0.0
    assert walled and all(abs(grasp.yaw) > np.deg2rad(40) for grasp in walled)
    assert not plan_grasps(
        cube, np.concatenate([np.add(cube, (0, 0, 0.06)), wall]), 0.0, BASE
    )  # covered from above


def test_the_fingers_stay_above_the_ground() -> None:
    grasps = plan_grasps(block((-0.02, -0.02, 0.0), (0.02, 0.02, 0.016)), NOTHING, 0.0, BASE)
    assert grasps and min(grasp.point[2] for grasp in grasps) >= 0.01


@settings(max_examples=30, deadline=None)
@given(st.floats(-1.5, 1.5))
def test_yaw_and_frames_agree(yaw: float) -> None:
    orientation = pointing_down(yaw)
    assert yaw_of(orientation) == pytest.approx(yaw, abs=1e-9)
    np.testing.assert_allclose(orientation[:2, 0], closing_axis(yaw), atol=1e-12)
    np.testing.assert_allclose(orientation[:, 2], [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(
        in_hand_frame(orientation[:, 0][None], yaw)[0], [1, 0, 0], atol=1e-12
    )


def test_at_rest_the_fingers_close_along_world_y() -> None:
    np.testing.assert_array_equal(pointing_down(0.0), DOWN)
    np.testing.assert_array_equal(closing_axis(0.0), [0, 1])


def test_the_hand_stays_above_what_is_under_it() -> None:
    beside = np.array([[0.0, FINGER_INNER + 0.04, 0.3]])  # under the palm, beside the fingers
    assert lowest_hand(beside, np.zeros(2), 0.0) == pytest.approx(0.282)
    assert lowest_hand(beside, np.zeros(2), np.pi / 2) == -np.inf


class DoorAjar:
    """A fixture turned by `facing`, its door of 0.26 m opened by `value`: what the skills ask of a scene."""

    def __init__(self, value: float, facing: float) -> None:
        self.value, self.heading = value, facing + value

    def joint(self, name: str) -> Joint:
        return Joint(True, self.value, np.array([0.0, 0.0, 1.0]), np.array([-0.16, 0.25, 1.0]))

    def moved_by(self, name: str) -> list[int]:
        return [0]

    def points(self, geoms: list[int]) -> np.ndarray:
        along = np.array([np.cos(self.heading), np.sin(self.heading), 0.0])
        return (
            self.joint("door").anchor
            + np.linspace(0.0, 0.26, 5)[:, None] * along
            + [0.0, 0.0, 0.02]
        )


@settings(max_examples=30, deadline=None)
@given(st.floats(-2.0, 0.0), st.floats(-3.0, 3.0))
def test_the_way_through_a_door_does_not_depend_on_how_far_it_is_open(
    value: float, facing: float
) -> None:
    inwards = inwards_through(DoorAjar(value, facing), "door")  # type: ignore[arg-type]
    np.testing.assert_allclose(inwards, [-np.sin(facing), np.cos(facing), 0.0], atol=1e-9)


SETTINGS = measuring.Settings(episodes=2, noise=0.1, first_seed=2000, code="0")


def test_a_killed_measurement_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("libero")
    ran: list[tuple[str, int]] = []

    class Environment:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None: ...

    def attempt(
        environment: Environment, seed: int, max_steps: int, noise: float
    ) -> tuple[bool, np.ndarray]:
        ran.append((environment.name, seed))
        if len(ran) == 2:
            raise EnvironmentCrash("diverged")
        if len(ran) == 8:
            raise KeyboardInterrupt  # killed in the fourth task
        return True, np.zeros((3, 7), np.float32)

    monkeypatch.setattr(measuring.Libero, "make", lambda self, name: Environment(name))
    monkeypatch.setattr(measuring, "run_expert", attempt)
    path = tmp_path / "attempts.json"
    with pytest.raises(KeyboardInterrupt):
        list(measuring.measure("libero_goal", SETTINGS, path))
    kept = measuring.read_attempts(path, SETTINGS)
    assert [(a.success, a.crashed) for a in kept] == [(True, False), (False, True)] + [
        (True, False)
    ] * 4
    again = list(measuring.measure("libero_goal", SETTINGS, path))
    assert (
        len(ran) == 8 + 7 * 2
    )  # the three finished tasks are not run again, the fourth is, from its start
    assert [a for task in again[:3] for a in task] == kept
    assert [a for task in again for a in task] == measuring.read_attempts(path, SETTINGS)
    assert len({(a.task, a.seed) for task in again for a in task}) == 20
    list(measuring.measure("libero_object", SETTINGS, path))  # another suite joins the file
    assert len(measuring.read_attempts(path, SETTINGS)) == 40


def test_measurements_of_different_settings_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "attempts.json"
    write_json(path, {"episodes": 2, "noise": 0.1, "first_seed": 2000, "code": "0", "attempts": []})
    assert measuring.read_attempts(path, SETTINGS) == []
    for other in (replace(SETTINGS, noise=0.2), replace(SETTINGS, code="1")):
        with pytest.raises(RoboAlignError, match="measured with"):
            measuring.read_attempts(path, other)
    for broken in ([], {"attempts": [{"task": 1}]}, {"attempts": []}):
        write_json(path, broken)
        with pytest.raises(RoboAlignError, match="not the attempts"):
            measuring.read_attempts(path, SETTINGS)


TASKS = [
    "libero_object/pick_up_the_butter_and_place_it_in_the_basket",
    "libero_goal/open_the_middle_drawer_of_the_cabinet",
]


@pytest.mark.parametrize("name", TASKS)
def test_an_expert_solves_its_task_and_the_actions_replay(name: str) -> None:
    pytest.importorskip("libero")
    from roboalign.sim.libero.environment import Libero
    from roboalign.sim.libero.experts import make_expert
    from roboalign.sim.libero.experts.measure import run_expert

    environment = Libero(name.partition("/")[0]).make(name)
    solved, executed = run_expert(environment, 1003, 300, noise=0.1)
    assert solved
    assert (
        executed.dtype == np.float32 and executed.shape[1:] == (7,) and np.abs(executed).max() <= 1
    )
    environment.reset(1003)
    assert [environment.step(action) for action in executed] == [False] * (len(executed) - 1) + [
        True
    ]
    expert = make_expert(environment)  # nothing left to do: it rests
    before = environment.state()[:3]
    for _ in range(10):
        environment.step(expert.action())
    np.testing.assert_allclose(environment.state()[:3], before, atol=0.02)
    environment.close()
