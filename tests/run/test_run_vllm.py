"""`rl.vllm` in a recipe: what of it makes another run, and what a mistake in it is called."""

from pathlib import Path

import pytest
import torch.distributed as dist

from roboalign.core.distributed import Team
from roboalign.core.errors import RoboAlignError
from roboalign.run.graph import plan_stages
from roboalign.run.load import load_recipe
from roboalign.run.recipe import Recipe
from roboalign.run.scheduler import Run, by_name, stage_keys


def test_that_a_server_samples_counts_and_where_it_is_does_not() -> None:
    here = {"url": "http://a:1", "weights": "/a", "concurrency": 1}
    there = {"url": "http://b:2", "weights": "/b", "patience": 5}
    beside = {
        "serve": "/opt/vllm",
        "weights": "/a",
        "memory": 0.3,
        "sleep": False,
        "options": ["--dtype", "half"],
    }
    own, one, two, three = (
        stage_keys(by_name(plan_stages(Recipe.model_validate({"name": "x", "rl": {"vllm": vllm}}))))
        for vllm in (None, here, there, beside)
    )
    assert one == two == three
    changed = {name for name in own if own[name] != one[name]}
    assert "seed-0/rl" in changed and not changed & {
        "collect",
        "mix",
        "base",
        "seed-0/sft",
        "seed-0/head/sft",
    }


def test_a_wrong_key_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nrl: {vllm: {url: 'http://a:1', weights: /a, pateince: 5}}\n")
    with pytest.raises(
        RoboAlignError, match=r"unknown key `rl.vllm.pateince`.*did you mean `patience`\?"
    ):
        load_recipe(path)
    path.write_text("name: x\nrl: {vllm: {url: 'http://a:1', serve: vllm, weights: /a}}\n")
    with pytest.raises(
        RoboAlignError, match=r"`rl.vllm`: give either `url`, of a server that runs, or `serve`"
    ):
        load_recipe(path)
    path.write_text("name: x\nrl: {vllm: {url: 'a:1', weights: /a}}\n")
    with pytest.raises(RoboAlignError, match=r"`rl.vllm.url`: it is not an http or https URL"):
        load_recipe(path)


@pytest.mark.parametrize("where", ["rl", "distill"])
def test_waiting_for_the_server_longer_than_for_one_another_is_refused(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rl = {"vllm": {"url": "http://a:1", "weights": "/a", "patience": 100, "timeout": 50}}
    given = {"rl": rl} if where == "rl" else {"distill": {"rl": {**rl, "reward": "answer"}}}
    team, formed = Team(0, 2, 2, dist.HashStore()), []
    monkeypatch.setattr(Team, "form_group", lambda *_: formed.append(True))
    monkeypatch.setattr(Team, "part", lambda _: None)
    for timeout in (151, 150):
        recipe = Recipe.model_validate({"name": "x", **given, "hardware": {"timeout": timeout}})
        if timeout > 150:
            Run(recipe, tmp_path, [], team=team).execute()
            continue
        with pytest.raises(
            RoboAlignError,
            match=r"rl\.vllm: a process may wait 150 s .*after 150 s Fix: set hardware",
        ):
            Run(recipe, tmp_path, [], team=team).execute()
    Run(recipe, tmp_path, []).execute()  # alone it waits as long as it likes
    assert formed == [True]
