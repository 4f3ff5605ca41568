"""Stages head and eval: what is held out, what may not leak, and what a killed evaluation runs again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from data_episodes import make_episode
from stage_run import context, recipe, write_episodes

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl
from roboalign.run.benchmark import evaluation_episodes
from roboalign.run.folder import _last_of_each
from roboalign.run.recipe import HardwareConfig
from roboalign.run.stages import evaluate
from roboalign.sim.metaworld.environment import MetaWorld
from roboalign.sim.ray import ClusterConfig
from roboalign.sim.registry import FIRST_EVALUATION_SEED
from roboalign.sim.rollout import EpisodeResult
from roboalign.vla import acting

TASKS = ("door-unlock-v3", "hand-insert-v3")
RECIPE = recipe(collect={"downstream_tasks": TASKS}, rollout={"episodes": 3, "replan_every": 4})
WANTED = [(task, FIRST_EVALUATION_SEED + number) for task in TASKS for number in range(3)]


def test_evaluation_episodes_are_the_same_for_every_arm_and_seed() -> None:
    assert evaluation_episodes(RECIPE) == WANTED


def leak(folder: Path, part: str, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A run in which one demonstration of `part` has `seed`."""
    for name in ("align", "downstream"):
        write_episodes(folder / "collect" / name, range(1))
    data = {part: [make_episode(), make_episode()]}
    data[part][0].episode_id = MetaWorld().episode_id(TASKS[1], seed)
    read = evaluate.read_demonstrations
    monkeypatch.setattr(
        evaluate,
        "read_demonstrations",
        lambda run_dir, which: data.get(which) or read(run_dir, which),
    )


@pytest.mark.parametrize("part", ["align", "downstream"])
def test_a_demonstration_that_is_an_evaluation_episode_stops_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    leak(tmp_path, part, monkeypatch, FIRST_EVALUATION_SEED + 2)
    monkeypatch.setattr(
        evaluate, "evaluate_parallel", lambda *arguments, **named: pytest.fail("it was measured")
    )
    with pytest.raises(
        RoboAlignError, match="hand-insert-v3/seed-1000002 is among the demonstrations"
    ):
        evaluate.rollouts(context(tmp_path, "seed-0/eval/rollouts/sft", RECIPE))
    assert not (tmp_path / "seed-0/eval/rollouts/sft/episodes.jsonl").exists()


@pytest.mark.parametrize("seed", [0, FIRST_EVALUATION_SEED - 1, FIRST_EVALUATION_SEED + 3])
def test_other_seeds_are_no_leak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    leak(tmp_path, "align", monkeypatch, seed)
    evaluate.refuse_leaks(tmp_path, MetaWorld(), WANTED)


def test_only_the_missing_episodes_run(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []

    def measure(
        act: Any,
        benchmark: Any,
        episodes: Sequence[tuple[str, int]],
        config: Any,
        *,
        workers: int,
        on_result: Callable[[EpisodeResult], None],
    ) -> None:
        for task, seed in episodes:
            ran.append((task, seed))
            crash = "the simulation broke" if seed == FIRST_EVALUATION_SEED else None
            on_result(EpisodeResult(task, seed, seed % 2 == 1, 7, crash, 0.5))
            if len(ran) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate_parallel", measure)
    there = context(run_dir, "seed-4/eval/rollouts/sft", RECIPE)
    with pytest.raises(KeyboardInterrupt):
        evaluate.rollouts(there)
    with (there.folder / "episodes.jsonl").open("a") as file:
        file.write('{"task": "door-unlock-v3", "se')  # cut by the kill
    row = evaluate.rollouts(there)
    assert ran == WANTED
    assert row == {"episodes": 6, "successes": 2, "crashes": 2, "steps": 42}
    rows = read_jsonl(there.folder / "episodes.jsonl")
    assert [(one["task"], one["seed"]) for one in rows] == WANTED and {
        one["run_seed"] for one in rows
    } == {4}
    assert evaluate.rollouts(there) == row and ran == WANTED


def test_a_recipe_with_a_cluster_sends_the_policy_there(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(
        evaluate,
        "policy_files",
        lambda folder: ("head/policy", {"head/policy/policy.json": folder}),
    )
    monkeypatch.setattr(acting, "load_act", lambda *arguments: arguments)
    monkeypatch.setattr(
        evaluate, "evaluate_parallel", lambda *arguments, **named: pytest.fail("measured here")
    )

    def on_cluster(*arguments: Any, on_result: Callable[[EpisodeResult], None]) -> None:
        sent.append(arguments)
        for task, seed in arguments[3]:
            on_result(EpisodeResult(task, seed, True, 5, None, 0.1))

    monkeypatch.setattr(evaluate, "evaluate_on_cluster", on_cluster)
    there = RECIPE.model_copy(
        update={"hardware": HardwareConfig(ray=ClusterConfig(cpus=3, gpus=0.5))}
    )
    row = evaluate.rollouts(context(run_dir, "seed-5/eval/rollouts/sft", there))
    assert row == {"episodes": 6, "successes": 6, "crashes": 0, "steps": 30}
    [(load, files, _, episodes, _, cluster)] = sent
    assert load(Path("/copy")) == (Path("/copy/head/policy"), 3, "cuda")
    assert files == {"head/policy/policy.json": run_dir / "seed-5/head/sft/policy"}
    assert episodes == WANTED and cluster.cpus == 3


def test_films_are_of_each_task_s_first_success_and_first_failure_in_whatever_order_they_end(
    tmp_path: Path,
) -> None:
    outcomes = [
        ("door-unlock-v3", 3, True, None),
        ("libero_goal/hand", 2, True, None),
        ("door-unlock-v3", 1, False, None),
        ("door-unlock-v3", 0, True, "x"),
        ("door-unlock-v3", 2, True, None),
        ("door-unlock-v3", 9, True, None),
        ("libero_goal/hand", 0, False, None),
    ]
    for task, seed, success, crash in outcomes:
        film = [np.full((16, 16, 3), 20 * seed, np.uint8)] * 2
        evaluate._keep_film(tmp_path, EpisodeResult(task, seed, success, 5, crash, 0.1, film))
    index = read_json(tmp_path / "index.json")
    assert [(row["task"], row["outcome"], row["seed"]) for row in index] == [
        ("door-unlock-v3", "failure", 1),
        ("door-unlock-v3", "success", 2),
        ("libero_goal/hand", "failure", 0),
        ("libero_goal/hand", "success", 2),
    ]
    with av.open(str(tmp_path / index[1]["path"])) as video:
        shades = [frame.to_ndarray(format="rgb24").mean() for frame in video.decode(video=0)]
    np.testing.assert_allclose(shades, [40, 40], atol=8)  # the episode of seed 2, not of 3 or 9
    assert {path.name for path in tmp_path.iterdir()} == {
        "index.json",
        *(row["path"] for row in index),
    }


@pytest.mark.parametrize(
    ("count", "training"), [(1, 1), (2, 1), (5, 4), (14, 13), (20, 18), (40, 36)]
)
def test_the_heads_held_out_episodes(count: int, training: int) -> None:
    episodes = [
        make_episode(task, seed, steps=2)
        for seed in range(count)
        for task in ("puck-push", "drawer-open")
    ]
    train, heldout = _last_of_each(episodes)
    assert len(train) == 2 * training and len(train) + len(heldout) == 2 * count
    assert not {e.episode_id for e in train} & {e.episode_id for e in heldout}
    assert {e.task for e in train} == {"puck-push", "drawer-open"}
