"""`roboalign compare` with a server's scores: pairs by hand, and what is refused."""

import json
from pathlib import Path

import pytest
from scipy.stats import binomtest

from roboalign.cli.main import main
from roboalign.core.files import write_json, write_text
from roboalign.harness.score import Measurement
from roboalign.harness.settings import ClientConfig
from roboalign.run.load import dump_recipe
from roboalign.run.recipe import Recipe
from roboalign.sim.registry import FIRST_EVALUATION_SEED, find_benchmark
from roboalign.sim.rollout import RolloutConfig

TASKS = ("door-lock-v3", "door-unlock-v3")
RUN_SOLVED, SERVER_SOLVED = {0, 1, 2, 3, 4, 5}, {4, 5, 6, 7, 8, 9, 10, 11, 12, 13}


def rows(solved: set[int], episodes: int, crashed: set[int] = frozenset()) -> str:
    """10 episodes a task, those numbered in `solved` solved."""
    written = [
        {
            "task": task,
            "seed": FIRST_EVALUATION_SEED + i,
            "success": i + 10 * t in solved,
            "steps": 9,
            "crash": "the server: an error" if i + 10 * t in crashed else None,
        }
        for t, task in enumerate(TASKS)
        for i in range(episodes)
    ]
    return "".join(json.dumps(row) + "\n" for row in written)


def write_run(folder: Path, seeds: tuple[int, ...] = (3,), **settings) -> str:
    values = {
        "name": "mine",
        "arms": ("sft", "roboalign"),
        "seeds": seeds,
        "rollout": {"episodes": 10},
        "collect": {"downstream_tasks": TASKS},
        **settings,
    }
    write_text(folder / "recipe.yaml", dump_recipe(Recipe.model_validate(values)))
    for seed in seeds:
        path = folder / f"seed-{seed}/eval/rollouts/roboalign/episodes.jsonl"
        write_text(path, rows(RUN_SOLVED, 10))
    return str(folder)


def write_scores(
    folder: Path, *, episodes: int = 10, model: str = "a", written=None, **rollout
) -> str:
    spec = find_benchmark("metaworld")
    config = RolloutConfig(batch_size=1, **rollout)
    measured = Measurement(spec, spec.config(), config, TASKS, episodes)
    write_json(folder / "protocol.json", measured.protocol())
    record = {
        "address": "ws://h:1",
        "server": {"model": model},
        "settings": ClientConfig().model_dump(mode="json"),
        "tasks": list(TASKS),
        "versions": {"roboalign": "0.1.0", "mujoco": "3.3.0"},
    }
    write_json(folder / "client.json", record)
    write_text(folder / "episodes.jsonl", written or rows(SERVER_SOLVED, episodes, {19}))
    return str(folder)


def test_a_run_and_a_server_are_paired(tmp_path, capsys):
    run, scores = write_run(tmp_path / "run"), write_scores(tmp_path / "scores")
    assert main(["compare", run, scores, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    pair = result["pair"]
    assert (pair["n"], pair["crashes_left_out"]) == (19, 1)
    assert (pair["only_before"], pair["only_after"]) == (4, 8)
    assert pair["p"] == pytest.approx(binomtest(4, 12).pvalue)
    assert pair["difference"]["value"] == pytest.approx(4 / 19)
    assert main(["compare", scores, run]) == 0
    said = capsys.readouterr().out
    assert "10/19 = 52.6%" in said and "6/20 = 30.0%" in said
    assert "after minus before: -4 of 19" in said


def test_two_servers_are_paired_and_told_apart(tmp_path, capsys):
    first = write_scores(tmp_path / "a")
    second = write_scores(tmp_path / "b", model="b", written=rows(RUN_SOLVED, 10))
    assert main(["compare", first, second]) == 0
    said = capsys.readouterr().out
    assert "the servers differ in:\n  server.model: a before, b after" in said
    assert "after minus before: -4 of 19" in said


@pytest.mark.parametrize(
    ("words", "problem", "fix"),
    [
        ("run longer", "not measured alike: `max_steps` is 250 and 500", "--max-steps"),
        ("run fewer", "10 episodes are in this one only", "the same episodes"),
        ("run cut", "1 of 20 episodes are missing", "it continues"),
        ("seeds scores", "the run has 2 training seeds", "choose one of 0, 1 with --seed"),
        ("small scores", "`image_size` is 32 and 64", "--set"),
        ("scores", "compared with those of another folder", "give two folders"),
        ("scores scores", "compared with those of another folder", "give two folders"),
        ("run scores --arm sft --arm roboalign", "a server has no arms", "give one"),
        ("scores longer --seed 1", "a server has no training seeds", "leave it out"),
        ("nothing scores", "no run here", "give a run's folder"),
    ],
)
def test_what_cannot_be_paired_is_refused(words, problem, fix, tmp_path, capsys):
    write_run(tmp_path / "run")
    write_run(tmp_path / "seeds", (0, 1))
    write_run(tmp_path / "small", collect={"downstream_tasks": TASKS, "world": {"image_size": 32}})
    write_scores(tmp_path / "scores")
    write_scores(tmp_path / "longer", max_steps=500)
    write_scores(tmp_path / "fewer", episodes=5)
    write_scores(tmp_path / "cut", written="".join(rows(set(), 10).splitlines(True)[:-1]))
    names = {"run", "seeds", "small", "scores", "longer", "fewer", "cut", "nothing"}
    given = [str(tmp_path / word) if word in names else word for word in words.split()]
    assert main(["compare", *given]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert problem in first and fix in second


def test_a_run_of_several_seeds_takes_part_with_one(tmp_path, capsys):
    run, scores = write_run(tmp_path / "seeds", (0, 1)), write_scores(tmp_path / "scores")
    assert main(["compare", run, scores, "--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pair"]["by_training_seed"] == {
        "1": {"n": 19, "gained": 4}
    }
