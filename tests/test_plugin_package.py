"""A package from outside, `tests/toy_package`: its benchmark and reward in a whole run, its source in a mixture."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_on_path import PACKAGE, write_metadata

from roboalign.actions.spaces import ActionSpace
from roboalign.align.export.verl import require_exportable
from roboalign.align.rewards.registry import check_reward_name, reward_names
from roboalign.cli.data_mix import mix_data
from roboalign.cli.doctor import doctor
from roboalign.conversations.conversation import read_conversations
from roboalign.conversations.qa import presets
from roboalign.conversations.qa.presets import QaPreset, find_preset, preset_names
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl
from roboalign.core.plugins import find_plugin
from roboalign.run.benchmark import alignment_benchmark
from roboalign.run.load import load_recipe
from roboalign.sim.collect import CollectConfig, EpisodeRecord, collect_episode
from roboalign.sim.registry import make_benchmark

ROOT = Path(__file__).parents[1]
OVERRIDES = (
    "name=toy",
    "collect.benchmark=toy",
    "collect.align_benchmark=toy",
    "collect.align_tasks=train",
    "collect.downstream_tasks=test",
    "collect.toy.radius=0.04",
    "mix.camera=top",
    "rl.reward=toy_closeness",
    "arms=[sft,roboalign,roboalign-visited,sft-visited-tokens-think,roboalign-online,"
    "sft-tokens-direct,sft-tokens-direct-online]",
    "online={updates: 1, groups: 1, group_size: 2}",
    "visited={episodes_per_task: 2, heldout_per_task: 1, labels_per_episode: 3, max_steps: 24}",
    "tokens.max_questions=10",
    "tokens.max_actions=10",
    # Models that learned nothing never end an answer by themselves.
    "token_policy={max_reasoning_tokens: 8, max_block_tokens: 12}",
    "rollout.episodes=1",  # one worker an arm: each imports torch
    "parallel=1",
)
NOTE = "The toy benchmark has no physics"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package in this process."""
    for entry in write_metadata(tmp_path / "site"):
        monkeypatch.syspath_prepend(entry)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run by the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("toy")
    path = [str(ROOT / "src"), *write_metadata(folder / "site")]
    out = folder / "run"
    command = [sys.executable, "-m", "roboalign", "run", str(ROOT / "recipes/smoke.yaml")]
    command += ["--out", str(out)]
    for override in OVERRIDES:
        command += ["--set", override]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out, done.stdout + done.stderr


def test_states_that_the_policy_visits_are_labelled_and_learned_from(run: tuple[Path, str]) -> None:
    seed = run[0] / "seed-0"
    episodes = read_jsonl(seed / "visited" / "episodes.jsonl")
    tasks = {row["task"] for row in episodes}
    assert {(row["task"], row["seed"]) for row in episodes} == {
        (task, number) for task in tasks for number in (500_000, 500_001, 500_002)
    }
    asked = read_conversations(seed / "visited", "rl")
    assert 0 < len(asked) <= 6 * len(tasks)
    assert {one.turns[0].mode for one in asked} == {"think"}
    assert not {one.episode_id for one in asked} & {
        one.episode_id for one in read_conversations(seed / "visited", "heldout")
    }
    for one in asked:
        assert one.target is not None and one.direct_question is not None
        # The toy's expert opens the gripper at every step: the lowest value of that dimension.
        assert np.ptp(np.array(one.chunk)[:, 3]) == 0
    updates = {
        read_json(seed / name / "ledger.json")["updates"]
        for name in ("rl", "rl-visited", "sft-visited")
    }
    assert len(updates) == 1
    asked = {"sft", "roboalign", "roboalign-visited", "sft-visited-tokens-think"}
    asked |= {"sft-tokens-direct-online"}  # online RL makes another MLLM
    for arm in asked:
        metrics = read_json(seed / "eval" / "visited" / arm / "metrics.json")
        assert {"direct", "think"} <= metrics["actions"].keys()
    assert not (seed / "eval" / "visited" / "sft-tokens-direct").exists()
    page = (run[0] / "report" / "index.html").read_text()
    assert "Do the actions hold where the policy goes?" in page
    summary = read_json(run[0] / "report" / "summary.json")
    assert asked == set(summary["visited"])
    assert ("sft", "roboalign-visited") in {
        (pair["before"], pair["after"]) for pair in summary["visited_pairs"]
    }
    assert "The same visited states, after minus before" in page


def test_the_head_learns_from_rollouts_in_processes(run: tuple[Path, str]) -> None:
    """Nobody solves it in 16 steps, so all four groups that an update may draw are drawn."""
    folder = run[0] / "seed-0/online/roboalign-online"
    [row] = read_jsonl(folder / "metrics.jsonl")
    assert (row["drawn_groups"], row["rollouts"], row["crashes"]) == (4, 8, 0)
    assert row["groups"] == 0 or row["ratio_off"] >= 0
    before = read_json(run[0] / "seed-0/head/roboalign/policy/policy.json")
    after = read_json(folder / "policy/policy.json")
    assert before["backbone"] == after["backbone"]
    assert (before["head_sha256"] == after["head_sha256"]) == (row["groups"] == 0)
    rolled = read_jsonl(run[0] / "seed-0/eval/rollouts/roboalign-online/episodes.jsonl")
    assert {row["seed"] for row in rolled} == {1_000_000}
    page = (run[0] / "report" / "index.html").read_text()
    assert "Online RL</" in page


def test_an_mllm_whose_tokens_act_learns_from_rollouts(run: tuple[Path, str]) -> None:
    folder = run[0] / "seed-0/online/sft-tokens-direct-online"
    [row] = read_jsonl(folder / "metrics.jsonl")
    assert (row["drawn_groups"], row["rollouts"], row["crashes"]) == (4, 8, 0)
    after = read_json(folder / "policy/policy.json")
    assert after["backbone"]["path"] == "../model" and after["view"]["mode"] == "direct"
    same = (folder / "model/model.safetensors").read_bytes() == (
        run[0] / "seed-0/sft/model/model.safetensors"
    ).read_bytes()
    assert same == (row["groups"] == 0)
    rolled = read_jsonl(run[0] / "seed-0/eval/rollouts/sft-tokens-direct-online/episodes.jsonl")
    assert {row["seed"] for row in rolled} == {1_000_000}


def test_the_demonstrations_are_the_toy_s(run: tuple[Path, str]) -> None:
    out, said = run
    assert "Traceback" not in said and "report:" in said
    experts = read_json(out / "collect/experts.json")
    assert {task: row["solved"] for task, row in experts.items()} == {
        "toy/touch-red": 3,
        "toy/touch-blue": 3,
        "toy/touch-green": 2,
    }
    about = read_json(out / "collect/align/meta/roboalign.json")
    assert about["axes"] == "right,forward,up"
    assert about["action_space"]["position_scale"] == 0.03


def test_each_arm_is_measured_on_the_episodes_asked_for(run: tuple[Path, str]) -> None:
    out, _ = run
    summary = read_json(out / "report/summary.json")
    for arm in ("sft", "roboalign"):
        folder = out / f"seed-0/eval/rollouts/{arm}"
        assert read_json(folder / "protocol.json") == {
            "benchmark": "toy",
            "episodes_per_task": 1,
            "max_steps": 16,
            "replan_every": 8,
            "cameras": ["top"],
            "first_seed": 1_000_000,
            "image_size": 64,
            "radius": 0.04,
        }
        rows = list(read_jsonl(folder / "episodes.jsonl"))
        assert sorted((row["task"], row["seed"]) for row in rows) == [
            ("toy/touch-green", 1_000_000),
        ]
        assert all(row["crash"] is None and 1 <= row["steps"] <= 16 for row in rows)
        overall = summary["success"]["arms"][arm]["overall"]
        assert overall["n"] == 1 and type(overall["successes"]) is int
        assert overall["successes"] == sum(row["success"] for row in rows)


def test_the_report_says_what_the_benchmark_says_of_itself(run: tuple[Path, str]) -> None:
    out, _ = run
    page = (out / "report/index.html").read_text()
    environment = read_json(out / "report/summary.json")["environment"]
    assert NOTE in page and "MuJoCo" not in page and "Meta-World" not in page
    assert "toy-benchmark 0.1.0" in environment["versions"]
    assert environment["rendering"] == "64 px, camera top"


def test_rl_is_paid_by_the_package_s_reward(run: tuple[Path, str]) -> None:
    out, _ = run
    rows = list(read_jsonl(out / "seed-0/rl/metrics.jsonl"))
    samples = list(read_jsonl(out / "seed-0/rl/samples.jsonl"))
    assert len(rows) == 2 and samples
    for row in samples:
        assert not row["decoded"], "a model of two updates that writes actions: choose others"
        assert row["total"] == row["action"]
        # A cent a character, which no reward of RoboAlign's own takes. An end token is no character of the answer.
        assert -1.0 - 0.01 * len(row["answer"]) - 1e-9 <= row["total"] < -1.0
    assert all(row["reward"] < -1.0 and row["format"] == 0.0 for row in rows)


def test_its_camera_shows_where_the_privileged_points_are(installed: None) -> None:
    """The projection against the pixels: what the questions about image points rest on."""
    from toy_benchmark.spec import COLORS

    benchmark = make_benchmark("toy")
    for task in benchmark.tasks():
        record = collect_episode(benchmark, benchmark.make(task.name), 7, CollectConfig())
        assert isinstance(record, EpisodeRecord)
        assert record.actions.shape == (len(record.state), 4)
        assert record.frames["top"].shape == (len(record.state), 64, 64, 3)
        point = record.privileged[
            0, [*map(record.privileged_names.index, ("object.x", "object.y", "object.z"))]
        ]
        projected = record.cameras["top"].projection @ np.append(point, 1.0)
        column, row = projected[:2] / projected[2]
        colored = (record.frames["top"][0] == COLORS[task.name.removeprefix("toy/touch-")]).all(-1)
        rows, columns = np.nonzero(colored)
        assert abs(columns.mean() + 0.5 - column) < 1 and abs(rows.mean() + 0.5 - row) < 1


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"gripper": "open_positive"}, "gripper open_positive"),
        ({"gripper": "none"}, "gripper none"),
        ({"mode": "velocity"}, "mode velocity"),
        ({"frame": "tool", "mode": "delta"}, "frame tool"),
    ],
)
def test_actions_that_questions_would_misread_are_refused_before_collecting(
    installed: None, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], found: str
) -> None:
    from toy_benchmark import world

    recipe = load_recipe(ROOT / "recipes/smoke.yaml", OVERRIDES)
    assert alignment_benchmark(recipe).robot_type == "toy"
    space = ActionSpace.model_validate(world.SPACE.model_dump() | change)
    monkeypatch.setattr(world.Toy, "__init__", lambda self, config: None)
    monkeypatch.setattr(world.Toy, "action_space", space)
    with pytest.raises(RoboAlignError) as error:
        alignment_benchmark(recipe)
    assert error.value.problem == f"no questions can be made of actions with {found}"
    assert error.value.where == "benchmark toy"


def test_doctor_checks_each_benchmark_s_packages(
    installed: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from toy_benchmark.spec import ToySpec

    monkeypatch.setattr("roboalign.cli.doctor.CHECKS", {})
    assert doctor() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ok   benchmark Toy squares: toy-benchmark 0.1.0" in lines
    assert any(line.startswith("ok   benchmark Meta-World: metaworld 3.1.1") for line in lines)
    monkeypatch.setattr(ToySpec, "packages", ("toy-benchmark", "toy-engine"))
    assert doctor() == 0  # not asked for
    said = capsys.readouterr().out
    assert "ok   benchmark Toy squares: not installed (optional: pip install toy-engine)" in said
    assert doctor(quiet=True, benchmarks=["toy", "tay"]) == 2
    asked, unknown = capsys.readouterr().out.split("FAIL ")[1:]
    assert asked == "benchmark Toy squares: missing: toy-engine.\n  fix: pip install toy-engine\n"
    assert "benchmark `tay` not found. Available: metaworld" in unknown


def test_a_reward_from_outside_is_not_exported(installed: None, tmp_path: Path) -> None:
    assert check_reward_name("toy_closeness") == "toy_closeness"
    require_exportable("paper")
    for name in ("toy_closeness", f"{tmp_path}/mine.py:reward"):
        with pytest.raises(RoboAlignError) as error:
            require_exportable(name)
        assert error.value.where == "rl.reward" and f"the reward `{name}`" in error.value.problem
        assert "needs RoboAlign" in error.value.problem
        assert (
            error.value.fix
            == "export a run whose rl.reward is paper or decoded, or train with roboalign"
        )


def write_colors(folder: Path) -> None:
    records = []
    for number, (color, rgb) in enumerate({"red": (200, 0, 0), "blue": (0, 0, 200)}.items()):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (32, 32), (240, 240, 240))
        picture.paste(rgb, (4 + 12 * number, 4, 16 + 12 * number, 16))
        picture.save(folder / f"images/{color}.png")
        question = {"from": "human", "value": "<image>\nWhich color is the square?"}
        answer = {"from": "gpt", "value": color}
        records.append({"id": color, "image": f"{color}.png", "conversations": [question, answer]})
    (folder / "colors.json").write_text(json.dumps(records))


def test_its_source_is_drawn_into_a_mixture(installed: None, tmp_path: Path) -> None:
    assert (
        "toy-colors" in preset_names()
        and find_preset("robopoint") is presets.QA_PRESETS["robopoint"]
    )
    write_colors(tmp_path / "colors")
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(
        f"name: toy\nsources:\n  - {{name: c, preset: toy-colors, path: {tmp_path}/colors, count: 2}}\n"
    )
    mix_data(str(mixture), str(tmp_path / "out"), workers=1)
    drawn = read_conversations(tmp_path / "out", "train")
    assert sorted(c.turns[0].expected for c in drawn) == ["blue", "red"]
    assert {c.turns[0].kind for c in drawn} == {"general"}
    with pytest.raises(RoboAlignError, match=r"copy colors\.json and images/ into"):
        presets.read_preset("toy-colors", tmp_path / "absent")
    with pytest.raises(RoboAlignError, match=r"use one of llava-onevision.*toy-colors"):
        find_preset("toy-colours")


COLORS: Any = {
    "name": "toy-colors",
    "hub": None,
    "licence": None,
    "count": 1,
    "kind": "general",
    "layout": "llava",
    "notes": "",
    "parts": (("a.json", "."),),
}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (COLORS, "is no roboalign.conversations.qa.presets.QaPreset"),
        (QaPreset(**COLORS | {"name": "colors"}), "called `colors`, its entry point `toy-colors`"),
        (QaPreset(**COLORS | {"layout": "jpeg"}), "layout 'jpeg' is none of messages, llava"),
        (QaPreset(**COLORS | {"kind": "red"}), "kind 'red' is none of general, embodied"),
        (QaPreset(**COLORS | {"parts": ()}), "no file would be read"),
    ],
)
def test_a_source_that_contradicts_itself_names_its_package(
    installed: None, monkeypatch: pytest.MonkeyPatch, value: object, problem: str
) -> None:
    monkeypatch.setattr(presets, "load_plugin", lambda point: value)
    with pytest.raises(RoboAlignError) as error:
        find_preset("toy-colors")
    assert problem in error.value.problem
    assert error.value.where == "package toy-benchmark (entry point roboalign.sources: toy-colors)"


def test_two_packages_with_one_name_are_refused(
    installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "other/rival-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[roboalign.rewards]\ntoy_closeness = os.path:join\n")
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    with pytest.raises(RoboAlignError, match="packages rival and toy-benchmark both have a"):
        find_plugin("roboalign.rewards", "toy_closeness")
    # It says nothing where another is asked for.
    assert find_plugin("roboalign.benchmarks", "toy") is not None
    assert "toy_closeness" in reward_names() and find_plugin("roboalign.rewards", "no") is None


def unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def test_the_page_shows_the_package_as_it_is() -> None:
    """Each block of the page is a part of one of the package's files."""
    page = (ROOT / "docs/how-to/add-a-benchmark-or-reward.md").read_text()
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".toml")]
    texts = [unindented(path.read_text()) for path in files]
    blocks = [block.split("\n", 1)[1] for block in page.split("```")[1::2]]
    assert len(blocks) >= 6
    for block in blocks:
        assert any(unindented(block) in text for text in texts), block
