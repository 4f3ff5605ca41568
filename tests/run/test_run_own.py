"""A run on recorded demonstrations alone: no simulator, measured offline."""

import json
from pathlib import Path
from typing import Any

import pytest
from own_sets import own_set, write_own
from pydantic import ValidationError

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.run.graph import plan_stages
from roboalign.run.load import load_recipe
from roboalign.run.recipe import Recipe
from roboalign.run.scheduler import by_name, stage_keys
from roboalign.run.start import run_recipe
from roboalign.serve.describe import contract_of
from roboalign.vla.policy import Policy

SMALL: dict[str, Any] = {
    "name": "own",
    "measure": "offline",
    "parallel": 1,
    "arms": ["base"],
    "tokenizer": {"horizon": 4, "vocab_size": 64},
    "mix": {
        "camera": "front",
        "conversations": 40,
        "rl_share": 0.0,
        "heldout_episode_share": 0.34,
        "heldout_actions": 10,
    },
    "backbone": {"layer": 1},
    "tokens": {"max_actions": 10, "max_questions": 12, "max_new_tokens": 8},
    "head": {
        "width": 32,
        "layers": 2,
        "heads": 2,
        "hidden_width": 32,
        "vlm_inner_width": 32,
        "vlm_heads": 2,
    },
    "head_training": {"steps": 2, "batch_size": 4, "eval_every": 2, "features": {"every": 4}},
}


def recipe(*sets: dict[str, Any], **changes: Any) -> Recipe:
    return Recipe.model_validate({**SMALL, "demos": {"sets": sets}, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own(tmp_path_factory.mktemp("data") / "pick_cube")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_recipe(recipe(own_set(data)), tmp_path_factory.mktemp("run") / "own")


def test_a_run_on_own_data_ends_with_a_policy_and_a_page(run: Path) -> None:
    assert not list((run / "seed-0" / "eval").glob("rollouts"))
    found = read_json(run / "seed-0" / "eval" / "replay" / "base" / "replay.json")
    assert (found["episodes"], found["steps"], found["horizon"], found["fps"]) == (2, 40, 4, 10.0)
    assert [row["name"] for row in found["dimensions"]] == ["x", "y", "z", "gripper"]
    assert found["gripper"]["switches"] == 2 and found["held_out"] is True
    page = (run / "report" / "index.html").read_text()
    assert "Nothing was measured in closed loop" in page and "Open loop" in page
    assert "last action held" in page and "it does not predict success" in page
    summary = read_json(run / "report" / "summary.json")
    assert summary["success"] is None and set(summary["open_loop"]) == {"base"}
    assert "Nothing was measured in closed loop" in (run / "report" / "end.txt").read_text()


def test_alignment_and_head_hold_out_the_same_episodes(run: Path) -> None:
    manifest = read_json(run / "mix" / "mixture" / "manifest.json")
    align, head = (read_json(run / "collect" / f"{p}.json") for p in ("align", "downstream"))
    assert len(align["heldout"]) == 2 and align["heldout"] == head["heldout"]
    assert sorted(manifest["splits"]["heldout"]) == align["heldout"]
    assert manifest["counts"]["train"]["type"] == {"action": 40}
    assert manifest["counts"]["heldout"]["turns"] == 20  # ten actions in both modes
    replayed = read_json(run / "seed-0/eval/replay/base/replay.json")["by_episode"]
    assert sorted(row["episode"] for row in replayed) == align["heldout"]


def test_the_served_policy_says_what_it_wants(run: Path) -> None:
    folder = run / "seed-0" / "head" / "base" / "policy"
    metadata = contract_of(Policy.load(folder), folder).metadata()
    assert metadata["fps"] == 10.0 and metadata["action"]["space"]["position_scale"] == 0.05
    assert metadata["observation"]["observation/front"]["shape"] == [32, 32, 3]
    assert metadata["observation"]["observation/state"]["names"] == ["x", "y", "z", "gripper"]
    assert metadata["action"]["names"] == ["x", "y", "z", "gripper"]


def test_the_stages_do_not_change_where_the_data_lies(data: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere"
    link.symlink_to(data)
    keys = [stage_keys(by_name(plan_stages(recipe(own_set(at))))) for at in (data, link)]
    assert keys[0] == keys[1]
    assert keys[0] != stage_keys(by_name(plan_stages(recipe(own_set(data, idle=0.01)))))
    assert "seed-0/eval/replay/base" in keys[0] and "seed-0/eval/rollouts/base" not in keys[0]


def test_data_that_changed_under_a_run_are_refused(run: Path, tmp_path: Path) -> None:
    from roboalign.run.folder import read_demonstrations

    other = write_own(tmp_path / "pick_cube", scale=1.01)
    copy = tmp_path / "run"
    (copy / "collect").mkdir(parents=True)
    text = (run / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(
        text.replace(str(load_recipe(run / "recipe.yaml").demos.sets[0].robot), str(other))
    )
    (copy / "collect" / "align.json").write_text((run / "collect" / "align.json").read_text())
    with pytest.raises(RoboAlignError, match="the data set has changed since this run began"):
        read_demonstrations(copy, "align")


def test_what_a_recipe_cannot_mean_is_refused(data: Path) -> None:
    one = own_set(data)
    faults = {
        "mix.camera `workspace` is no camera of set own": {"mix": {}},
        "backbone.source `train` learns to see": {"backbone": {"source": "train"}},
        "arms \\['ecot'\\] make their data": {"arms": ["sft", "ecot"]},
        "mixture and demos.align both say what aligns": {
            "mixture": "somewhere",
            "demos": {"sets": [one], "align": ["own"]},
        },
        "measure `offline` compares with recorded": {"demos": {"sets": [one], "head": "experts"}},
        "the head's data has a camera `front`": {
            "measure": "benchmark",
            "rollout": {"replan_every": 4},
        },
    }
    for message, changes in faults.items():
        with pytest.raises(ValidationError, match=message):
            recipe(one, **changes)
    with pytest.raises(ValidationError, match="measure `offline` compares with recorded"):
        Recipe(name="none", measure="offline")


def test_one_episode_cannot_be_split(tmp_path: Path) -> None:
    lonely = write_own(tmp_path / "lonely", 1)
    with pytest.raises(RoboAlignError, match="no episode is held out"):
        run_recipe(recipe(own_set(lonely)), tmp_path / "run")


def test_a_recipe_of_experts_has_the_keys_that_it_had(data: Path) -> None:
    """Recorded demonstrations are no setting of a run without them: its stages are not done again."""
    plain = {s.name: s.settings for s in plan_stages(Recipe(name="a"))}
    assert "own" not in plain["collect"]
    assert json.dumps(plain["collect"], sort_keys=True) == json.dumps(
        Recipe(name="a").collect.model_dump(mode="json"), sort_keys=True
    )
