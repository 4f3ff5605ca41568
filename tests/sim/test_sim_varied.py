"""Variants of a policy in one queue of episodes: names, environments and who is asked what."""

from typing import Any

import numpy as np
import pytest
from toy_on_path import PACKAGE

from roboalign.sim.base import Observation
from roboalign.sim.rollout import EnvironmentPool, Planned, RolloutConfig, rollout_batch
from roboalign.sim.varied import Varied, act_by_variant, split_variant, varied_episodes

CONFIG = RolloutConfig(replan_every=2, max_steps=6, batch_size=4)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    from toy_benchmark.spec import ToyConfig
    from toy_benchmark.world import Toy

    return Toy(ToyConfig())


def still(count: int) -> np.ndarray:
    return np.zeros((count, 2, 4), np.float32)


def test_each_variant_is_asked_for_its_own_episodes_under_plain_keys(toy: Any) -> None:
    asked: dict[str, list[Any]] = {}

    def variant_act(name: str) -> Any:
        def act(observations: list[Observation], keys: list[Any]) -> Planned:
            asked.setdefault(name, []).extend(keys)
            counts = [{"decisions": 1, name: 1} for _ in keys]
            return Planned(still(len(keys)), counts)

        return act

    episodes = varied_episodes(["a", "b"], [("toy/touch-red", 1), ("toy/touch-blue", 2)])
    assert [split_variant(task) for task, _ in episodes][:2] == [
        ("a", "toy/touch-red"),
        ("a", "toy/touch-blue"),
    ]
    pool = EnvironmentPool(Varied(toy), 4)
    results = list(rollout_batch(act_by_variant(variant_act), pool, episodes, CONFIG))
    assert {(r.task, r.seed) for r in results} == set(episodes)
    for result in results:
        assert result.counts == {"decisions": 3, split_variant(result.task)[0]: 3}
    plain = {("toy/touch-red", 1, step) for step in (0, 2, 4)}
    plain |= {("toy/touch-blue", 2, step) for step in (0, 2, 4)}
    assert set(asked["a"]) == set(asked["b"]) == plain


def test_a_variant_starts_from_the_plain_initial_state(toy: Any) -> None:
    varied = Varied(toy)
    assert varied.episode_id("a::toy/touch-red", 3) == toy.episode_id("toy/touch-red", 3)
    one, other = varied.make("a::toy/touch-red"), toy.make("toy/touch-red")
    for environment in (one, other):
        environment.reset(3)
    np.testing.assert_array_equal(one.observe().images["top"], other.observe().images["top"])
    names = ("action_dim", "state_dim", "cameras", "fps")
    assert all(getattr(varied, name) == getattr(toy, name) for name in names)
    assert varied.tasks() == toy.tasks()
