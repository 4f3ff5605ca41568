"""Demonstrations: clean labels, counted failures, the same data whatever the number of processes."""

import itertools

import numpy as np
import pytest

from roboalign.sim import collect as collect_module
from roboalign.sim.base import EnvironmentCrash
from roboalign.sim.collect import (
    CollectConfig,
    Collected,
    EpisodeRecord,
    Failure,
    collect,
    collect_episode,
    collected_table,
    smooth_noise,
)
from roboalign.sim.metaworld.environment import MetaWorld, MetaWorldConfig

BLIND = MetaWorld(MetaWorldConfig(cameras=()))
TASK = "reach-v3"


def clean_episode(config: CollectConfig, world: MetaWorld = BLIND, seed: int = 4) -> EpisodeRecord:
    record = collect_episode(world, world.make(TASK), seed, config)
    assert isinstance(record, EpisodeRecord)
    return record


def test_a_record_is_complete_and_aligned():
    config = CollectConfig(steps_after_success=3)
    record = clean_episode(config, MetaWorld(MetaWorldConfig(image_size=32)))
    length = len(record.actions)
    assert length == record.success_step + 1 + config.steps_after_success
    assert record.frames["workspace"].shape == (length, 32, 32, 3)
    assert record.state.shape == (length, 4) and record.privileged.shape == (length, 10)
    assert np.abs(record.actions).max() <= 1 and record.actions.dtype == np.float32
    assert record.cameras["workspace"].projection.shape == (3, 4)
    assert record.fps == 80.0 and record.instruction == "Move the gripper to the target."
    # Row t precedes action t: the first is the reset state, at which the hand has not moved.
    environment = BLIND.make(TASK)
    environment.reset(4)
    np.testing.assert_array_equal(record.state[0], environment.state())
    np.testing.assert_array_equal(record.privileged[0], environment.privileged())


def test_the_label_is_the_experts_action_and_not_the_executed_one(monkeypatch):
    environment = BLIND.make(TASK)
    executed, labels = [], []
    step, expert = environment.step, environment.expert

    def spy_step(action):
        executed.append(action)
        return step(action)

    def spy_expert():
        action = expert()
        return lambda: labels.append(action()) or labels[-1]

    monkeypatch.setattr(environment, "step", spy_step)
    monkeypatch.setattr(environment, "expert", spy_expert)
    record = collect_episode(BLIND, environment, 4, CollectConfig(noise=0.3))
    np.testing.assert_array_equal(record.actions, labels)
    # The solved episode runs once more, to be rendered.
    first, again = np.split(np.array(executed), 2)
    np.testing.assert_array_equal(first, again)
    difference = first - record.actions
    assert np.abs(difference[:, :3]).max() > 0.1
    assert np.all(difference[:, 3] == 0), "no noise on the gripper"
    assert np.abs(executed).max() <= 1


def test_without_noise_the_label_is_executed():
    record = clean_episode(CollectConfig(noise=0.0, steps_after_success=0))
    environment = BLIND.make(TASK)
    environment.reset(4)
    solved = [environment.step(action) for action in record.actions]
    assert solved.index(True) == record.success_step == len(solved) - 1


def test_noise_has_the_stated_spread_and_memory():
    config = CollectConfig(noise=0.2, noise_memory=0.8)
    values = np.array(
        list(itertools.islice(smooth_noise(np.random.default_rng(0), config, 4), 20000))
    )
    np.testing.assert_allclose(values[:, :3].std(0), 0.2, rtol=0.06)
    np.testing.assert_allclose(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1], 0.8, atol=0.02)
    assert not values[:, 3].any()


def test_an_unsolved_episode_is_a_failure_and_a_crash_is_another():
    environment = BLIND.make(TASK)
    short = CollectConfig(max_steps=5)
    assert collect_episode(BLIND, environment, 4, short) == Failure(
        TASK, 4, "not solved", crashed=False
    )

    def crash(action):
        raise EnvironmentCrash("it diverged")

    environment.step = crash
    assert collect_episode(BLIND, environment, 4, CollectConfig()) == Failure(
        TASK, 4, "it diverged", crashed=True
    )


def test_a_replay_that_goes_another_way_is_a_crash_and_not_a_wrong_image(monkeypatch):
    environment = BLIND.make(TASK)
    reset = environment.reset
    seeds = iter([4, 5])
    monkeypatch.setattr(environment, "reset", lambda seed: reset(next(seeds)))
    failure = collect_episode(BLIND, environment, 4, CollectConfig())
    assert (
        isinstance(failure, Failure)
        and failure.crashed
        and "replay of seed 4 differs" in failure.reason
    )


def test_failed_attempts_move_on_to_the_next_seeds_of_the_same_wanted_episode(monkeypatch):
    tried = []

    def attempt(benchmark, environment, seed, config):
        tried.append(seed)
        return Failure(TASK, seed, "not solved", crashed=False)

    monkeypatch.setattr(collect_module, "collect_episode", attempt)
    config = CollectConfig(episodes_per_task=10, attempts=3, first_seed=100)
    outcome = collect_module._collect_wanted(BLIND, config, TASK, collect_module._seeds(2, config))
    assert outcome.record is None and tried == [102, 112, 122] == [
        failure.seed for failure in outcome.failures
    ]


def summary(outcomes):
    return [
        (o.task, o.record.seed, o.record.actions.tobytes(), o.record.privileged.tobytes())
        for o in outcomes
    ]


def test_collection_is_the_same_with_one_and_two_processes_and_resumes():
    config = CollectConfig(episodes_per_task=2, first_seed=50)
    tasks = ["handle-press-v3", "coffee-button-v3"]
    two = list(collect(tasks, BLIND, config, workers=2))
    assert [outcome.task for outcome in two] == [tasks[0]] * 2 + [tasks[1]] * 2
    one = list(collect(tasks, BLIND, config, workers=1, existing=[]))
    assert summary(one) == summary(two)
    have = [o.record.episode_id for o in two[:3]]
    rest = list(collect(tasks, BLIND, config, workers=1, existing=have))
    assert summary(rest) == summary(two[3:])
    table = collected_table(
        [*two, Collected(tasks[0], None, (Failure(tasks[0], 9, "x", crashed=True),))]
    )
    assert (
        table[tasks[0]]["solved"] == 2
        and table[tasks[0]]["attempts"] == 3
        and table[tasks[0]]["crashed"] == 1
    )
    assert table[tasks[1]]["frames"] == sum(len(o.record.actions) for o in two[2:])


@pytest.mark.parametrize("task", ["drawer-close-v3", "window-open-v3"])
def test_experts_solve_their_tasks(task):
    environment = BLIND.make(task)
    outcomes = [
        collect_episode(BLIND, environment, seed, CollectConfig(noise=0.0)) for seed in range(3)
    ]
    assert all(isinstance(outcome, EpisodeRecord) for outcome in outcomes)
