"""A whole run on the fake checkout, by the command line; then what reads it where no checkout is."""

import json
import shutil
from pathlib import Path

import pytest
from fake_checkout import EXPERT_TASKS, write_checkout

from roboalign.cli.main import main
from roboalign.core.files import read_json, read_jsonl, write_json
from roboalign.sim.calvin.environment import CHAINS

RECIPE = Path(__file__).parents[3] / "recipes" / "smoke.yaml"
TASKS = ("calvin/turn_on_led", "calvin/open_drawer")
SMALL = (
    "name=chains",
    "parallel=1",
    "arms=[sft,roboalign]",
    "collect.benchmark=calvin",
    "collect.align_tasks=[reach-v3]",
    f"collect.downstream_tasks=[{','.join(TASKS)}]",
    "collect.downstream={episodes_per_task: 2, noise: 0.05, first_seed: 1000}",
    "mix.conversations=40",
    "backbone.vision.updates=1",
    "backbone.pretrain.max_steps=1",
    "sft.max_steps=1",
    "rl.updates=1",
    "rollout={episodes: 2, replan_every: 8}",
)


def command(*words: object) -> int:
    return main([str(word) for word in words])


def run(out: Path, checkout: Path) -> int:
    here = f"{{checkout: {checkout}, render: tiny, image_size: 32, cameras: [static], subtask_steps: 16}}"
    settings = (*SMALL, f"collect.calvin={here}")
    return command("run", RECIPE, "--out", out, *(w for one in settings for w in ("--set", one)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose checkout is gone."""
    folder = tmp_path_factory.mktemp("calvin-run")
    checkout = write_checkout(folder / "calvin", EXPERT_TASKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.sched_getaffinity", lambda _: {0})  # one worker: each imports torch
        assert run(folder / "run", checkout) == 0
    shutil.rmtree(checkout)
    return folder


def test_a_run_collects_trains_and_measures_chains(finished: Path) -> None:
    out = finished / "run"
    experts = read_json(out / "collect" / "experts.json")
    assert {task: experts[task]["solved"] for task in TASKS} == dict.fromkeys(TASKS, 2)
    names = read_json(out / "collect/downstream/names.json")
    assert {task: sum(names[task]["named"].values()) for task in TASKS} == dict.fromkeys(TASKS, 2)
    for arm in ("sft", "roboalign"):
        folder = out / "seed-0/eval/rollouts" / arm
        rows = sorted(read_jsonl(folder / "episodes.jsonl"), key=lambda row: row["seed"])
        assert [(row["task"], row["seed"], row["crash"]) for row in rows] == [
            (CHAINS, 0, None),
            (CHAINS, 1, None),
        ]
        for row in rows:
            # A chain ends at its first subtask that is not solved within 16 steps.
            assert len(row["details"]["subtask_steps"]) == min(row["progress"] + 1, 5)
            assert set(row["details"]["tasks"]) <= set(EXPERT_TASKS)
        protocol = read_json(folder / "protocol.json")
        assert set(protocol["commits"]) == {"calvin", "calvin_env"}
        assert not protocol["chains"]["published"], "the fake's tasks give other chains"


def test_the_records_are_read_without_the_checkout(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished / "run"
    assert command("compare", out, "--arm", "sft", "--arm", "roboalign", "--json") == 0
    pair = json.loads(capsys.readouterr().out)["pair"]
    lengths = {
        arm: [r["progress"] for r in read_jsonl(out / f"seed-0/eval/rollouts/{arm}/episodes.jsonl")]
        for arm in ("sft", "roboalign")
    }
    expected = (sum(lengths["roboalign"]) - sum(lengths["sft"])) / 2
    assert pair["n"] == 2 and pair["progress"]["mean"]["value"] == expected
    assert command("table", out, "--json") == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    cells = {row["arm"]: row["cells"] for row in table["rows"] if row["from"] == "chains"}
    assert [cells[arm][-1]["value"] for arm in lengths] == [
        sum(counts) / 2 for counts in lengths.values()
    ]
    before = read_json(out / "report/summary.json")["success"]
    shutil.rmtree(out / "report")
    assert run(out, finished / "calvin") == 0, "the report alone is made again"
    assert read_json(out / "report/summary.json")["success"] == before
    assert "in a row" in (out / "report/index.html").read_text()


def test_runs_of_two_checkouts_are_compared_by_what_was_in_them(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another folder with the same commits is no difference; another commit is, and is named."""
    other = tmp_path / "run"
    shutil.copytree(finished / "run", other)
    recipe = other / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(finished / "calvin"), "elsewhere"))
    assert command("compare", finished / "run", other) == 0
    capsys.readouterr()
    path = other / "seed-0/eval/rollouts/roboalign/protocol.json"
    protocol = read_json(path)
    protocol["commits"]["calvin_env"] = "0" * 40
    write_json(path, protocol)
    assert command("compare", finished / "run", other) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "not measured alike: `commits.calvin_env` was" in said
    path.unlink()
    assert command("compare", finished / "run", other) == 2
    assert "`collect.calvin.checkout` is" in " ".join(capsys.readouterr().err.split())
