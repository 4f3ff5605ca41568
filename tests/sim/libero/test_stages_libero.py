"""A recipe on LIBERO from demonstrations to measured episodes, two tasks, everything as small as it goes."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libero.libero", reason="LIBERO is optional: requirements-libero.lock")

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl
from roboalign.episodes.formats.lerobot import read_lerobot
from roboalign.run.benchmark import evaluation_episodes, protocol_line, rollout_config
from roboalign.run.graph import plan_stages
from roboalign.run.observer import PlainLines
from roboalign.run.recipe import Recipe
from roboalign.run.scheduler import Run
from roboalign.run.stages.evaluate import refuse_leaks
from roboalign.sim.libero.environment import Libero
from roboalign.vla.policy import Policy

TASKS = ("libero_goal/turn_on_the_stove", "libero_goal/put_the_bowl_on_the_plate")  # short ones
RECIPE = Recipe.model_validate(
    {
        "name": "libero-test",
        "parallel": 1,
        "arms": ["base"],
        "collect": {
            "benchmark": "libero_goal",
            "align_tasks": ["reach-v3"],
            "downstream_tasks": TASKS,
            "align": {"episodes_per_task": 4},
            "downstream": {"episodes_per_task": 2, "first_seed": 1000, "max_steps": 300},
            "libero": {
                "render": "fast",
                "render_size": 64,
                "image_size": 32,
                "max_steps": {"libero_goal": 12},
                "cameras": ["agentview"],
            },
        },
        "mix": {
            "conversations": 200,
            "heldout_episode_share": 0.25,
            "heldout_questions": 1,
            "heldout_actions": 4,
        },
        "tokens": {"max_questions": 10, "max_actions": 10},
        "head": {"proprioception": True},
        "head_training": {
            "steps": 2,
            "batch_size": 2,
            "draws": 1,
            "eval_every": 2,
            "features": {"every": 40},
        },
        "rollout": {"episodes": 1},
    }
)


def run(folder: Path) -> list[str]:
    said: list[str] = []
    run = Run(RECIPE, folder, plan_stages(RECIPE), PlainLines(said.append))
    run.execute(run.select("eval"))
    return said


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(folder)
    return folder


def test_demonstrations_are_placements_in_libero_s_own_action_space(run_dir: Path) -> None:
    episodes = read_lerobot(run_dir / "collect" / "downstream")
    assert [episode.episode_id for episode in episodes] == [
        f"{task}/seed-{seed}" for task in TASKS for seed in (1000, 1001)
    ]
    for episode in episodes:
        assert (
            episode.actions.shape[1:] == (7,)
            and episode.state.shape[1:] == (8,)
            and episode.fps == 20
        )
        assert set(episode.images) == {"agentview"} and episode.frame("agentview", 0).shape == (
            32,
            32,
            3,
        )
        assert episode.success_step is not None and episode.action_space is not None
    assert read_json(run_dir / "collect" / "experts.json")[TASKS[0]]["solved"] == 2


def test_stored_states_are_measured_and_the_protocol_stands_beside_them(run_dir: Path) -> None:
    folder = run_dir / "seed-0" / "eval" / "rollouts" / "base"
    rows = read_jsonl(folder / "episodes.jsonl")
    assert sorted((row["task"], row["seed"]) for row in rows) == sorted((task, 0) for task in TASKS)
    assert all(row["crash"] is None and row["steps"] <= 12 for row in rows)
    record: dict[str, Any] = read_json(folder / "protocol.json")
    assert (
        record["max_steps"] == 12
        and record["replan_every"] == 5
        and record["cameras"] == ["agentview"]
    )
    assert set(record["departs_from_preset_in"]) == {
        "render",
        "render_size",
        "image_size",
        "max_steps",
        "cameras",
    }
    assert "openpi" in protocol_line(RECIPE) and rollout_config(RECIPE).max_steps == 12


def test_nothing_is_done_twice(run_dir: Path) -> None:
    assert all("done before" in line for line in run(run_dir)[:-1])


def test_a_policy_of_seven_actions_comes_back_from_its_folder(run_dir: Path) -> None:
    policy = Policy.load(run_dir / "seed-0" / "head" / "base" / "policy")
    environment = Libero("libero_goal", RECIPE.collect.libero).make(TASKS[0])
    environment.reset(0)
    assert policy.act(environment.observe()).shape == (RECIPE.tokenizer.horizon, 7)
    environment.close()


def test_a_stored_state_among_the_demonstrations_is_refused(run_dir: Path) -> None:
    benchmark = Libero("libero_goal", RECIPE.collect.libero)
    refuse_leaks(run_dir, benchmark, evaluation_episodes(RECIPE))
    with pytest.raises(RoboAlignError, match="seed-1000 is among the demonstrations"):
        refuse_leaks(run_dir, benchmark, [(TASKS[0], 1000)])
