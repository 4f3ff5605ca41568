"""`rl.vllm` in a recipe: what of it makes another run, and what a mistake in it is called."""

from pathlib import Path

import pytest

from roboalign.errors import RoboAlignError
from roboalign.pipeline import stage_keys, stage_table
from roboalign.recipe import Recipe, load_recipe


def test_that_a_server_samples_counts_and_where_it_is_does_not() -> None:
    here = {"url": "http://a:1", "weights": "/a", "concurrency": 1}
    there = {"url": "http://b:2", "weights": "/b", "patience": 5}
    own, one, two = (
        stage_keys(stage_table(Recipe.model_validate({"name": "x", "rl": {"vllm": vllm}})))
        for vllm in (None, here, there)
    )
    assert one == two
    changed = {name for name in own if own[name] != one[name]}
    assert "seed-0/rl" in changed and not changed & {"collect", "mix", "base", "seed-0/sft", "seed-0/head/sft"}


def test_a_wrong_key_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nrl: {vllm: {url: 'http://a:1', weights: /a, pateince: 5}}\n")
    with pytest.raises(RoboAlignError, match=r"unknown key `rl.vllm.pateince`.*did you mean `patience`\?"):
        load_recipe(path)
    path.write_text("name: x\nrl: {vllm: {url: 'a:1', weights: /a}}\n")
    with pytest.raises(RoboAlignError, match=r"`rl.vllm.url`: it is not an http or https URL"):
        load_recipe(path)
