"""Collecting: a killed stage goes on without an episode twice, and its table counts every wanted episode once."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage_run import context

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.episodes.formats.lerobot import read_lerobot
from roboalign.run.recipe import Recipe
from roboalign.run.stages import collect as stage
from roboalign.sim.cameras import CameraGeometry
from roboalign.sim.collect import CollectConfig, Collected, EpisodeRecord, Failure, _seeds
from roboalign.sim.metaworld.environment import MetaWorld

ALIGN, DOWNSTREAM = ("reach-v3", "button-press-v3"), ("door-unlock-v3",)
NAMES = ("gripper.x", "gripper.y", "gripper.z", "goal.x", "goal.y", "goal.z")
RECIPE = Recipe.model_validate(
    {
        "name": "x",
        "backbone": {"source": "train"},
        "collect": {
            "align_tasks": ALIGN,
            "downstream_tasks": DOWNSTREAM,
            "world": {"image_size": 16},
            "align": {"episodes_per_task": 8, "attempts": 2},
            "downstream": {"episodes_per_task": 2},
        },
    }
)


class World(MetaWorld):
    fps = 10.0
    image_size = 16

    def privileged_names(self, tasks: Any) -> tuple[str, ...]:
        return NAMES


def episode_id(task: str, seed: int) -> str:
    return World().episode_id(task, seed)


class Experts:
    """Stands in for the simulator: seeds 1 and 9 of reach fail always (wanted episode 1 is lost), 2 fails once."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.tried = stop_after, list[str]()
        self.counted = list[tuple[int, int]]()

    def outcome(self, task: str, seeds: list[int]) -> Collected:
        failures = []
        for seed in seeds:
            self.tried.append(episode_id(task, seed))
            if task == "reach-v3" and seed in (1, 2, 9):
                failures.append(Failure(task, seed, "not solved", crashed=seed == 9))
            else:
                return Collected(task, self.record(task, seed), tuple(failures))
        return Collected(task, None, tuple(failures))

    def record(self, task: str, seed: int) -> EpisodeRecord:
        rng = np.random.default_rng(seed)
        steps = 2 + seed % 3
        return EpisodeRecord(
            task=task,
            seed=seed,
            episode_id=episode_id(task, seed),
            instruction="go",
            nouns={},
            fps=10.0,
            success_step=steps - 1,
            frames={"workspace": rng.integers(0, 255, (steps, 16, 16, 3), np.uint8)},
            actions=rng.normal(size=(steps, 4)).astype(np.float32),
            privileged_names=NAMES,
            state=rng.normal(size=(steps, 4)).astype(np.float32),
            privileged=rng.normal(size=(steps, 6)).astype(np.float32),
            cameras={"workspace": CameraGeometry(16, 16, np.eye(3, 4))},
        )

    def collect(
        self,
        tasks: Collection[str],
        world: Any,
        config: CollectConfig,
        *,
        workers: int,
        existing: Collection[str],
        counted_before: int,
        counted_after: int,
    ) -> Iterator[Collected]:
        self.counted.append((counted_before, counted_after))
        for task in tasks:
            for index in range(config.episodes_per_task):
                seeds = _seeds(index, config)
                if {episode_id(task, seed) for seed in seeds} & set(existing):
                    continue
                if self.stop_after is not None and len(self.tried) >= self.stop_after:
                    raise KeyboardInterrupt
                yield self.outcome(task, seeds)


def collect(folder: Path, experts: Experts, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(stage, "alignment_benchmark", lambda recipe: World())
    monkeypatch.setattr(stage, "demonstrated_benchmark", lambda recipe: World())
    monkeypatch.setattr(stage, "collect_episodes", experts.collect)
    return stage.collect_stage(context(folder, "collect", RECIPE))


EXPECTED = {
    # solved: seeds 0, 3 to 7 and 10 (the second try of wanted episode 2); frames 2 + seed % 3
    "reach-v3": {
        "attempts": 10,
        "solved": 7,
        "unsolved": 2,
        "crashed": 1,
        "frames": 2 + (2 + 3 + 4 + 2 + 3) + 3,
    },
    "button-press-v3": {
        "attempts": 8,
        "solved": 8,
        "unsolved": 0,
        "crashed": 0,
        "frames": 8 * 2 + 1 + 2 + 1 + 2 + 1,
    },
    "door-unlock-v3": {"attempts": 2, "solved": 2, "unsolved": 0, "crashed": 0, "frames": 5},
}


def test_the_table_and_the_ledger_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = Experts()
    ledger = collect(tmp_path, experts, monkeypatch)
    assert experts.counted == [(0, 2), (16, 0)]  # one bar counts the 16 and the 2 wanted episodes
    assert read_json(tmp_path / "collect" / "experts.json") == EXPECTED
    assert ledger == {"tasks": 3, "attempts": 20, "solved": 17, "crashed": 1, "frames": 19 + 23 + 5}
    episodes = read_lerobot(tmp_path / "collect" / "align")
    assert len(episodes) == 15 and {episode.task for episode in episodes} == set(ALIGN)
    assert len(read_lerobot(tmp_path / "collect" / "downstream")) == 2


@pytest.mark.parametrize("stops", [(2,), (5,), (13,), (4, 4, 16), (18,)])
def test_a_stopped_collection_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    """Ten episodes are a file: after a stop those of a whole file are kept, the others are collected again."""
    kept = set[str]()
    for stop in stops:
        experts = Experts(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path, experts, monkeypatch)
        assert not kept & set(experts.tried)
        if stop >= 13:
            kept = {f"metaworld/reach-v3/seed-{seed}" for seed in (0, 3, 4, 5, 6, 7, 10)}
    experts = Experts()
    collect(tmp_path, experts, monkeypatch)
    assert not kept & set(experts.tried)
    assert bool(kept) == (max(stops) >= 13)
    assert read_json(tmp_path / "collect" / "experts.json") == EXPECTED
    ids = [episode.episode_id for episode in read_lerobot(tmp_path / "collect" / "align")]
    assert len(ids) == len(set(ids)) == 15


def test_the_same_data_whether_stopped_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(tmp_path / "whole", Experts(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "stopped", Experts(stop_after=13), monkeypatch)
    collect(tmp_path / "stopped", Experts(), monkeypatch)
    whole, stopped = (
        {e.episode_id: e for e in read_lerobot(tmp_path / name / "collect" / "align")}
        for name in ("whole", "stopped")
    )
    assert whole.keys() == stopped.keys()
    for part in ("align", "downstream"):  # an episode that was collected again has one row
        logs = [
            tmp_path / name / "collect" / part / "attempts.jsonl" for name in ("whole", "stopped")
        ]
        assert logs[0].read_bytes() == logs[1].read_bytes()
    for name, one in whole.items():
        np.testing.assert_array_equal(one.actions, stopped[name].actions)
        np.testing.assert_array_equal(
            one.frame("workspace", 1), stopped[name].frame("workspace", 1)
        )


def test_a_task_that_nobody_solves_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unlucky(Experts):
        def outcome(self, task: str, seeds: list[int]) -> Collected:
            if task != "button-press-v3":
                return super().outcome(task, seeds)
            return Collected(
                task,
                None,
                tuple(Failure(task, seed, "not solved", crashed=False) for seed in seeds),
            )

    with pytest.raises(RoboAlignError, match="no demonstration succeeded for button-press-v3"):
        collect(tmp_path, Unlucky(), monkeypatch)
