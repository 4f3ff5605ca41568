"""Meta-World's adapter: the seed alone fixes an episode, and it is Meta-World's own episode."""

import multiprocessing

import numpy as np
import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import EnvironmentCrash
from roboalign.sim.metaworld.environment import MetaWorld, MetaWorldConfig, MetaWorldEnvironment
from roboalign.sim.metaworld.instructions import TASKS

BLIND = MetaWorld(MetaWorldConfig(cameras=()))
ACTIONS = np.random.default_rng(0).uniform(-1.2, 1.2, (15, 4))


def fingerprint(
    environment: MetaWorldEnvironment, seed: int, actions: np.ndarray = ACTIONS[:3]
) -> bytes:
    """The exact start of an episode and where some actions lead."""
    environment.reset(seed)
    parts = [
        environment.data.qpos.copy(),
        environment.model.body_pos.copy(),
        environment._full_observation.copy(),
    ]
    for action in actions:
        environment.step(action)
    return np.hstack(
        [np.ravel(part) for part in [*parts, environment.data.qpos, environment.privileged()]]
    ).tobytes()


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_seed_alone_fixes_the_episode(task):
    environment = BLIND.make(task)
    first = fingerprint(environment, 7)
    other = fingerprint(environment, 8)
    assert other != first
    assert fingerprint(environment, 7) == first, "an earlier episode left something behind"
    assert len(environment.privileged()) == len(environment.privileged_names)
    environment.close()


def fingerprint_in_child(task: str) -> bytes:
    environment = BLIND.make(task)
    fingerprint(environment, 123)
    return fingerprint(environment, 7)


def test_the_same_episode_in_another_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(fingerprint_in_child, ("drawer-open-v3",)) == fingerprint(
            BLIND.make("drawer-open-v3"), 7
        )


@pytest.mark.parametrize(
    "task", ["drawer-open-v3", "push-v3", "peg-insert-side-v3", "basketball-v3"]
)
def test_an_episode_equals_metaworlds_own_with_the_same_random_vector(task):
    ours = BLIND.make(task)
    ours.reset(3)
    theirs = MetaWorldEnvironment.new_simulation(task)
    theirs._last_rand_vec = ours.simulation._last_rand_vec.copy()
    theirs._freeze_rand_vec = True
    theirs.reset()
    np.testing.assert_array_equal(theirs.data.qpos, ours.data.qpos)
    for action in np.clip(ACTIONS, -1, 1):
        ours.step(action)
        theirs.step(action)
    np.testing.assert_array_equal(theirs.data.qpos, ours.data.qpos)
    np.testing.assert_array_equal(theirs._target_pos, ours.simulation._target_pos)


def test_actions_beyond_the_limits_are_clipped():
    environment = BLIND.make("reach-v3")
    clipped = np.clip(3 * ACTIONS, -1, 1)
    assert fingerprint(environment, 1, 3 * ACTIONS) == fingerprint(environment, 1, clipped)


def test_state_and_privileged_points():
    environment = BLIND.make("hammer-v3")
    environment.reset(0)
    named = dict(zip(environment.privileged_names, environment.privileged(), strict=True))
    assert environment.privileged_names[:5] == (
        "gripper.x",
        "gripper.y",
        "gripper.z",
        "gripper.opening",
        "object.x",
    )
    simulation = environment.simulation
    np.testing.assert_allclose(
        [named[f"goal.{a}"] for a in "xyz"], simulation._target_pos, rtol=1e-6
    )
    np.testing.assert_allclose(
        [named[f"object2.{a}"] for a in "xyz"], simulation.data.body("nail_link").xpos, rtol=1e-6
    )
    fingers = (
        simulation.data.site("leftEndEffector").xpos + simulation.data.site("rightEndEffector").xpos
    ) / 2
    np.testing.assert_allclose([named[f"gripper.{a}"] for a in "xyz"], fingers, rtol=1e-6)
    np.testing.assert_allclose(
        environment.state()[:3], simulation.data.body("hand").xpos, rtol=1e-6
    )
    assert environment.state()[3] == named["gripper.opening"] > 0.9
    for _ in range(20):
        environment.step(np.array([0.0, 0.0, 0.0, 1.0]))
    assert environment.state()[3] < 0.6, "effort +1 closes"


def test_only_tasks_with_a_second_object_have_the_noun():
    counts = {}
    for task in ("hammer-v3", "stick-pull-v3", "reach-v3", "door-open-v3"):
        environment = BLIND.make(task)
        environment.reset(0)
        counts[task] = len(environment.simulation._get_pos_objects()) // 3
    assert counts == {task: 2 if "object2" in TASKS[task].nouns else 1 for task in counts}


def test_step_never_renders(monkeypatch):
    environment = MetaWorld().make("reach-v3")
    environment.reset(0)
    monkeypatch.setattr(
        "roboalign.sim.metaworld.environment._renderer", lambda *_: pytest.fail("rendered")
    )
    environment.step(np.zeros(4))


@pytest.mark.parametrize(
    "action", [np.array([0, np.nan, 0, 0]), np.zeros(3), np.array([np.inf, 0, 0, 0])]
)
def test_an_impossible_action_is_a_crash(action):
    environment = BLIND.make("reach-v3")
    environment.reset(0)
    with pytest.raises(EnvironmentCrash, match="4 finite numbers"):
        environment.step(action)


@pytest.mark.parametrize("broken", ["qpos", "qvel"])
def test_a_diverged_simulation_is_a_crash_and_the_next_episode_is_sound(broken):
    environment = BLIND.make("push-v3")
    before = fingerprint(environment, 5)
    environment.reset(5)
    getattr(environment.data, broken)[3] = np.nan
    with pytest.raises(EnvironmentCrash, match="diverged"):
        environment.step(np.zeros(4))
    assert fingerprint(environment, 5) == before


def test_an_unknown_task_is_named():
    with pytest.raises(RoboAlignError, match=r"fly-v3.*reach-v3"):
        BLIND.make("fly-v3")


def test_observe_has_every_camera_of_the_configuration():
    environment = MetaWorld(MetaWorldConfig(cameras=("workspace", "corner2"), image_size=48)).make(
        "reach-v3"
    )
    environment.reset(0)
    observation = environment.observe()
    assert {
        name: (image.shape, image.dtype.name) for name, image in observation.images.items()
    } == {"workspace": ((48, 48, 3), "uint8"), "corner2": ((48, 48, 3), "uint8")}
    assert observation.instruction == TASKS["reach-v3"].instruction
    assert observation.state.dtype == np.float32 and observation.state.shape == (4,)
