"""The stage: refused initial states, and workers on other machines, which get copies of policy and weights."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy_benchmark.spec import ToyConfig
from toy_benchmark.world import Toy
from toy_rolls import ROLLOUT, TASKS

from roboalign.core.errors import RoboAlignError
from roboalign.online.config import OnlineConfig
from roboalign.online.decisions import Trajectory
from roboalign.online.explorer import load_explorer
from roboalign.online.improve import HeadLearner
from roboalign.online.train import publish
from roboalign.run.stages import online as stage
from roboalign.sim.parallel import EpisodeKey
from roboalign.sim.ray import ClusterConfig
from roboalign.sim.rollout import EnvironmentPool, EpisodeResult, rollout_batch
from roboalign.vla.head_policy import HeadPolicy


class Numbered(Toy):
    """A benchmark that names every second seed alike."""

    def episode_id(self, task: str, seed: int) -> str:
        return f"{task}/{seed % 1000}"


def test_an_initial_state_that_measures_under_another_seed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collect = SimpleNamespace(downstream_names=lambda: TASKS)
    recipe: Any = SimpleNamespace(collect=collect, online=OnlineConfig(updates=1, groups=1))
    measured = [(TASKS[1], 1_000_001)]
    monkeypatch.setattr(stage, "evaluation_episodes", lambda recipe: measured)
    stage.refuse_measured(recipe, Toy(ToyConfig()))
    with pytest.raises(RoboAlignError, match="toy/touch-blue/1 measures policies") as caught:
        stage.refuse_measured(recipe, Numbered(ToyConfig()))
    assert caught.value.where == "online.first_seed"


def test_workers_of_a_cluster_explore_with_the_weights_of_the_update(
    make_policy: Callable[[], HeadPolicy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies are gone from the machine's disk when the episodes run."""
    start, folder = tmp_path / "head/sft/policy", tmp_path / "online"
    folder.mkdir()
    policy = make_policy()
    policy.save(start)
    policy.head.decoder[2].bias.data.add_(0.5)
    publish(HeadLearner.of(policy, OnlineConfig()), folder)

    def on_cluster(
        load: Callable[[Path], Any],
        cargo: Mapping[str, Path],
        benchmark: Any,
        episodes: Sequence[EpisodeKey],
        config: Any,
        cluster: ClusterConfig,
        *,
        on_result: Callable[[EpisodeResult], None],
    ) -> None:
        copy = tmp_path / "machine"
        for relative, path in cargo.items():
            (copy / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / relative)
        act = load(copy)
        shutil.rmtree(copy)
        for result in rollout_batch(act, EnvironmentPool(benchmark, 4), episodes, config):
            on_result(result)

    monkeypatch.setattr(stage, "evaluate_on_cluster", on_cluster)
    monkeypatch.setattr(stage, "rollout_config", lambda recipe: ROLLOUT)
    recipe = SimpleNamespace(
        online=OnlineConfig(group_size=2), hardware=SimpleNamespace(ray=ClusterConfig())
    )
    context: Any = SimpleNamespace(recipe=recipe, folder=folder, seed=0, arm="sft-online")
    results: list[EpisodeResult] = []
    with stage._rolling(context, Toy(ToyConfig()), start) as roll:
        roll([(TASKS[0], 1_200_000), (TASKS[0], 1_200_001)], results.append)
    first, second = (Trajectory.of(one).looks[0] for one in results)
    assert first["states"].equal(second["states"]), "one initial state"
    assert not first["after"].equal(second["after"])
    explorer = load_explorer(recipe.online, 0, start, tmp_path / "none", 1, "cpu")
    assert not explorer.policy.head.decoder[2].bias.equal(policy.head.decoder[2].bias)
    explorer.policy.head.load_state_dict(policy.head.state_dict())
    explorer.weights._known = (1, 1)  # as if it had read them
    benchmark = stage.repeated(Toy(ToyConfig()), 2)
    pool = EnvironmentPool(benchmark, 1)
    [again] = rollout_batch(explorer, pool, [(TASKS[0], 1_200_000)], ROLLOUT)
    same = next(one for one in results if one.seed == 1_200_000)
    assert (
        Trajectory.of(again)
        .looks[0]["after"]
        .allclose(Trajectory.of(same).looks[0]["after"], atol=1e-5)
    )
