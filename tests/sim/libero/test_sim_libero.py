"""LIBERO: what an episode is, that it repeats, and that nothing is written where it should not be."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mujoco
import numpy as np
import pytest

pytest.importorskip("libero.libero", reason="LIBERO is optional: requirements-libero.lock")

from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import EnvironmentCrash
from roboalign.sim.images import resize_with_padding
from roboalign.sim.libero import environment as libero
from roboalign.sim.libero.environment import (
    FIRST_PLACEMENT,
    REST,
    Libero,
    LiberoEnvironment,
    axis_angle,
)
from roboalign.sim.libero.experts import make_expert
from roboalign.sim.libero.protocol import LiberoConfig, departures
from roboalign.sim.libero.suites import (
    find_task,
    load_library,
    stored_states,
)
from roboalign.sim.rollout import EnvironmentPool, RolloutConfig, rollout_batch

SOUP = "libero_object/pick_up_the_alphabet_soup_and_place_it_in_the_basket"
BOWL = "libero_spatial/pick_up_the_black_bowl_next_to_the_plate_and_place_it_on_the_plate"
SMALL = LiberoConfig(render="fast", render_size=64, image_size=32)
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (12, 7))


@pytest.fixture(scope="module", params=[SOUP, BOWL], ids=["object", "spatial"])
def environment(request: pytest.FixtureRequest) -> Iterator[LiberoEnvironment]:
    built = Libero(request.param.partition("/")[0], SMALL).make(request.param)
    yield built
    built.close()


def run(environment: LiberoEnvironment, seed: int, actions: np.ndarray = ACTIONS) -> np.ndarray:
    environment.reset(seed)
    for action in actions:
        environment.step(action)
    return environment.physics()


def test_an_episode_depends_on_seed_and_actions_alone(environment: LiberoEnvironment) -> None:
    first = run(environment, 3)
    run(environment, FIRST_PLACEMENT + 4, -ACTIONS[:5])
    assert np.array_equal(run(environment, 3), first)
    placed = run(environment, FIRST_PLACEMENT + 4)
    assert not np.array_equal(placed, first)
    environment.render()  # rendering touches no physics
    assert np.array_equal(run(environment, FIRST_PLACEMENT + 4), placed)
    other = Libero(environment.task.name.partition("/")[0], SMALL).make(environment.task.name)
    assert np.array_equal(run(other, FIRST_PLACEMENT + 4), placed)
    shared = other.render()["agentview"]  # with the meshes that the first one uploaded
    libero._renderers.pop((other.task.name, SMALL.render_size, SMALL.render)).close()
    assert np.array_equal(other.render()["agentview"], shared), "its own meshes are drawn the same"
    other.close()


def test_a_stored_state_is_where_its_episode_starts(environment: LiberoEnvironment) -> None:
    stored = stored_states(environment.task.name)[7]
    unsettled = LiberoEnvironment(environment.task, SMALL.model_copy(update={"settle_steps": 0}))
    unsettled.reset(7)
    assert np.array_equal(unsettled.physics(), stored[1:])
    unsettled.close()


def fixtures_of(environment: LiberoEnvironment, seed: int) -> np.ndarray:
    """Positions [F, 3] of the fixtures after the reset, metres."""
    environment.reset(seed)
    fixtures = environment.simulation.fixtures_dict.values()
    return np.array([environment.model.body(one.root_body).pos for one in fixtures])


def test_each_trial_draws_its_own_fixtures_and_a_setting_keeps_the_one_draw() -> None:
    task = find_task("libero_goal/turn_on_the_stove")
    of_trial = LiberoEnvironment(task, LiberoConfig(settle_steps=0))
    first, second = fixtures_of(of_trial, 0), fixtures_of(of_trial, 1)
    apart = np.abs(first - second).max()
    assert 1e-4 < apart < 0.05  # within LIBERO's own regions, centimetres
    assert np.array_equal(fixtures_of(of_trial, 0), first)  # whatever ran before
    of_trial.config = LiberoConfig(settle_steps=0, seed=8)
    assert not np.array_equal(fixtures_of(of_trial, 0), first)
    of_trial.config = LiberoConfig(settle_steps=0, fixtures="task")
    assert np.array_equal(fixtures_of(of_trial, 0), fixtures_of(of_trial, 1))
    assert departures(of_trial.config) == {"settle_steps": 0, "fixtures": "task"}
    of_trial.close()


def test_seeds_between_stored_and_placed_are_refused(environment: LiberoEnvironment) -> None:
    for seed in (-1, 50, FIRST_PLACEMENT - 1):
        with pytest.raises(RoboAlignError, match="no episode of seed"):
            environment.reset(seed)


def test_success_fires_on_a_state_that_satisfies_the_goal(environment: LiberoEnvironment) -> None:
    environment.reset(0)
    rest = np.array([0, 0, 0, 0, 0, 0, -1.0])
    assert not environment.step(rest)
    _, moved, target = environment.simulation.parsed_problem["goal_state"][0]
    sites = environment.simulation.object_sites_dict
    where = (
        environment.data.site(target).xpos
        if target in sites
        else environment.data.body(f"{target}_main").xpos
    )
    joint = environment.simulation.objects_dict[moved].joints[-1]
    pose = environment.data.joint(joint).qpos.copy()
    pose[:3] = where + np.array([0, 0, 0.02])
    environment.data.joint(joint).qpos[:] = pose
    environment.data.joint(joint).qvel[:] = 0
    assert any(environment.step(rest) for _ in range(20))


def test_state_and_images(environment: LiberoEnvironment) -> None:
    environment.reset(1)
    seen = environment.observe()
    assert seen.state.shape == (8,) and seen.state.dtype == np.float32
    assert set(seen.images) == {"agentview", "wrist"}
    assert all(image.shape == (32, 32, 3) and image.std() > 5 for image in seen.images.values())
    sensors = environment.simulation._observables
    position, quaternion, fingers = (
        sensors[f"robot0_{name}"]._sensor({}) for name in ("eef_pos", "eef_quat", "gripper_qpos")
    )
    from robosuite.utils.transform_utils import quat2axisangle

    expected = np.concatenate([position, quat2axisangle(np.array(quaternion)), fingers])
    np.testing.assert_allclose(seen.state, expected, atol=1e-6)


def test_the_gripper_opens_at_minus_one(environment: LiberoEnvironment) -> None:
    widths = []
    for sign in (-1.0, 1.0):
        run(environment, 0, np.tile([0, 0, 0, 0, 0, 0, sign], (10, 1)))
        widths.append(environment.state()[6] - environment.state()[7])
    assert widths[0] > 0.07 and widths[1] < 0.02


def test_a_broken_action_is_a_crash(environment: LiberoEnvironment) -> None:
    environment.reset(0)
    with pytest.raises(EnvironmentCrash, match="7 finite numbers"):
        environment.step(np.full(7, np.nan))


def test_rollouts_run_on_it() -> None:
    pool = EnvironmentPool(Libero("libero_object", SMALL), limit=2)
    results = list(
        rollout_batch(
            lambda observations, keys: np.zeros((len(observations), 4, 7), np.float32),
            pool,
            [(SOUP, 0)],
            RolloutConfig(replan_every=4, max_steps=8),
        )
    )
    pool.close()
    assert [(result.success, result.steps, result.crash) for result in results] == [
        (False, 8, None)
    ]


def test_axis_angle_by_hand() -> None:
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        axis_angle(np.array([half, half, 0, 0])), [np.pi / 2, 0, 0], atol=1e-12
    )
    np.testing.assert_allclose(
        axis_angle(np.array([-half, half, 0, 0])), [1.5 * np.pi, 0, 0], atol=1e-12
    )
    assert not axis_angle(np.array([1.0, 0, 0, 0])).any()


def test_resize_pads_what_is_not_square() -> None:
    image = np.full((10, 20, 3), 200, np.uint8)
    padded = resize_with_padding(image, 40)
    assert padded.shape == (40, 40, 3)
    assert (padded[:10] == 0).all() and (padded[30:] == 0).all() and (padded[10:30] == 200).all()
    assert np.array_equal(resize_with_padding(padded, 40), padded)


_QUIET = f"""
from roboalign.sim.libero.environment import Libero
Libero("libero_object").make({SOUP!r}).close()
"""


def test_nothing_is_asked_printed_or_written(tmp_path: Path) -> None:
    import robosuite

    installed = Path(robosuite.__file__).parent
    log = Path("/tmp/robosuite.log")

    def snapshot() -> list[tuple[str, int]]:
        files = [
            *installed.rglob("*"),
            *load_library().rglob("*.yaml"),
            *([log] if log.exists() else []),
        ]
        return sorted((str(path), path.stat().st_mtime_ns) for path in files if path.is_file())

    before = snapshot()
    variables = os.environ | {"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    variables.pop("LIBERO_CONFIG_PATH", None)
    ended = subprocess.run(
        [sys.executable, "-c", _QUIET], env=variables, stdin=subprocess.DEVNULL, capture_output=True
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert not ended.stdout.strip() and not ended.stderr.strip()
    # Matplotlib, which LIBERO imports, keeps its fonts in the home folder's cache.
    assert {path.name for path in tmp_path.iterdir()} <= {".cache", ".config"}
    assert not list(tmp_path.glob(".config/*libero*")) and not list(tmp_path.glob(".libero*"))
    assert snapshot() == before


@pytest.mark.parametrize("seed", [0, FIRST_PLACEMENT])
def test_the_arm_is_driven_as_by_robosuite(environment: LiberoEnvironment, seed: int) -> None:
    # Its own step, from the reset on: the first action to rounding, a whole grasp to a fraction of a millimetre.
    suite, config = (
        environment.task.name.partition("/")[0],
        SMALL.model_copy(update={"settle_steps": 0}),
    )
    ours, theirs = (Libero(suite, config).make(environment.task.name) for _ in range(2))
    for one in (ours, theirs):
        one.reset(seed)
    expert, differences = None, []
    for step in range(70):
        expert = make_expert(ours) if step == 10 else expert
        action = REST if expert is None else expert.action().astype(np.float64)
        solved = ours.step(action)
        theirs.simulation.step(np.clip(action, -1.0, 1.0))
        assert solved == theirs.simulation._check_success()
        differences.append(np.abs(ours.data.qpos - theirs.data.qpos).max())
    for one in (ours, theirs):
        one.close()
    assert differences[0] < 1e-6  # a stored state has no last solution to start from: 1e-15 else
    assert max(differences) < 1e-4, differences


def test_torques_are_robosuite_s_to_the_last_bit(environment: LiberoEnvironment) -> None:
    environment.reset(FIRST_PLACEMENT)
    controller, control = environment.simulation.robots[0].controller, environment._control
    for action in ACTIONS[:4]:
        mujoco.mj_forward(environment.model, environment.data)
        controller.set_goal(action[:6])
        expected = np.array(controller.run_controller())
        np.testing.assert_array_equal(control._torques_to(action[:6]), expected)
        environment.step(action)
