"""Recipes as files: broken, huge and hostile ones, and overrides."""

from pathlib import Path

import pytest
from recipe_faults import fault

from roboalign.core.errors import RoboAlignError
from roboalign.run.load import load_recipe


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("name: x")
    with pytest.raises(RoboAlignError, match="no such recipe") as missing:
        load_recipe(tmp_path / "otter.yaml")
    assert "other.yaml" in missing.value.fix
    assert "not valid YAML" in str(fault(tmp_path, "name: [x\nsft: }"))
    assert "special characters are not allowed" in str(fault(tmp_path, "name: a\x07b"))
    assert "mapping" in str(fault(tmp_path, "- a\n- b"))
    assert "mapping" in str(fault(tmp_path, ""))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(RoboAlignError, match="not valid YAML"):
        load_recipe(tmp_path / "binary.yaml")


def test_overrides_are_yaml_values_and_the_last_wins(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\nsft: {max_steps: 3, batch_size: 8}")
    recipe = load_recipe(
        path,
        (
            "sft.max_steps=7",
            "arms=[sft, blind]",
            "rl.learning_rate=1e-4",
            "sft.max_steps=9",
            "tokenizer.path=null",
            "collect.world.image_size=32",
        ),
    )
    assert (
        recipe.sft.max_steps == 9 and recipe.sft.batch_size == 8 and recipe.arms == ("sft", "blind")
    )
    assert recipe.rl.learning_rate == 1e-4 and recipe.collect.world.image_size == 32


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("sft.max_step=3", "did you mean `max_steps`"),
        ("sft.max_steps", "dotted.key=value"),
        ("=3", "dotted.key=value"),
        ("name.first=3", "`name` is a value, not a group of settings"),
        ("arms=[sft", "not valid YAML"),
        ("sft=3", "`sft`"),
    ],
)
def test_broken_overrides(tmp_path: Path, override: str, part: str) -> None:
    assert part in str(fault(tmp_path, "name: x", override))


def test_a_key_given_twice_names_both_lines(tmp_path: Path) -> None:
    text = "name: x\nsft: {max_steps: 200}\narms: [base, sft]\nsft: {learning_rate: 1.0e-3}\n"
    assert fault(tmp_path, text).problem == "duplicate key `sft` at line 4; first at line 2"
    inside = fault(tmp_path, "name: x\nsft:\n  max_steps: 1\n  max_steps: 2\n")
    assert inside.problem == "duplicate key `max_steps` at line 4; first at line 3"


BOMB = ", ".join(f"&a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("sft: {max_steps: " + "9" * 5000 + "}", "not valid YAML: Exceeds the limit"),
        (f"arms: [&a0 [x,x,x,x,x,x,x,x,x,x], {BOMB}]", "aliases make more than 100,000 values"),
        ("arms: &a [*a]", "the alias at line 2 holds itself"),
    ],
)
def test_yaml_bombs_are_one_short_message(tmp_path: Path, text: str, problem: str) -> None:
    message = str(fault(tmp_path, f"name: x\n{text}\n"))
    assert problem in message and len(message) < 600


def test_a_file_too_large_or_with_a_name_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text("name: x\n" + "#" * 10_000_000)
    with pytest.raises(RoboAlignError, match="settings have 10,000,000 at most"):
        load_recipe(tmp_path / "large.yaml")
    with pytest.raises(RoboAlignError, match="no such recipe"):
        load_recipe(tmp_path / ("n" * 300 + ".yaml"))


def test_aliases_that_are_few_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\nsft: &shared {max_steps: 3}\nbackbone: {pretrain: *shared}\n")
    assert load_recipe(path).backbone.pretrain.max_steps == 3
