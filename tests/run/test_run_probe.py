"""`roboalign probe` on a small random model: what it reads, what it writes, what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage_run import do, recipe

from roboalign.cli.probe import probe, probe_settings
from roboalign.cli.table import tables
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, write_json, write_text
from roboalign.evaluate.probe_features import ProbeSettings, pooled_states
from roboalign.evaluate.sweep import ReadingChoice
from roboalign.mllm.hidden import hidden_states, text_layers
from roboalign.mllm.load import load_mllm
from roboalign.run import probe_sweep
from roboalign.run.folder import read_demonstrations
from roboalign.run.graph import plan_stages
from roboalign.run.load import dump_recipe, load_recipe
from roboalign.run.probe_sweep import _current, sweep
from roboalign.run.probed import find_backbones
from roboalign.run.recipe import Recipe
from roboalign.vla.features import HeadReading, View

TASK = "puck-push"
SMALL = {"phases": 4, "every": 2, "k": 3}


@pytest.fixture(scope="module")
def probed(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with its recipe, the random arm beside base and SFT, and nothing of RL."""
    folder = tmp_path_factory.mktemp("probe") / "run"
    shutil.copytree(run_dir, folder)
    settings = recipe(mix={**recipe().mix.model_dump(), "camera": "workspace"})
    write_text(folder / "recipe.yaml", dump_recipe(settings))
    do({stage.name: stage for stage in plan_stages(settings)}, folder, "seed-0/random", settings)
    return folder


def test_the_sweep_of_a_tiny_model(probed: Path, tmp_path: Path) -> None:
    text = probe(probed, ProbeSettings(**SMALL), tmp_path / "probe.json")
    found = read_json(tmp_path / "probe.json")
    assert set(found["arms"]) == {"base", "sft", "random"}
    assert found["absent"] == ["seed-0/rl", "seed-0/extra-sft"]
    assert set(found["arms"]["sft"]) == {"1", "2"} and found["head_layer"] == 1
    assert (found["episodes"], found["frames"]) == (
        12,
        12 * 6,
    )  # 4 tasks x 3 demonstrations of 12 steps, every 2nd
    assert set(found["arms"]["sft"]["1"]["tasks"]) == set(found["tasks"])
    for task in found["tasks"].values():
        assert (
            task["reference"] in task["demonstrations"]
            and sum(task["frames_of_phase"]) == task["frames"] == 18
        )
    assert found["baselines"]["time"]["where_time_errs"]["value"] in (0.0, None)
    assert (
        found["baselines"]["state"]["accuracy"]["value"]
        > found["baselines"]["majority"]["accuracy"]["value"]
    )
    pairs = {(pair["before"], pair["after"]) for pair in found["differences"]}
    assert {("base", "sft"), ("random", "base"), ("time", "sft"), ("pixels", "base")} <= pairs
    (pair,) = [
        one for one in found["differences"] if (one["before"], one["after"]) == ("base", "sft")
    ]
    gained = [found["arms"][arm]["2"]["accuracy"]["value"] for arm in ("sft", "base")]
    assert pair["layers"]["2"]["value"] == pytest.approx(gained[0] - gained[1])
    assert "1 (head)" in text and "seed-0/rl" in text and "69.79" in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    (filled,) = json.loads(tables([tmp_path / "probe.json"], "json"))["tables"]
    rows = {(row["arm"], row["from"]): row["cells"][0] for row in filled["rows"]}
    assert rows["sft", "paper"] == {"value": 43.23}
    accuracy = found["arms"]["sft"]["1"]["accuracy"]
    assert rows["sft", found["recipe"]]["value"] == pytest.approx(100 * accuracy["value"])
    assert rows["sft", found["recipe"]]["n"] == accuracy["n"] and "k = 3" in filled["differs"][0]
    probe(probed, ProbeSettings(**SMALL), tmp_path / "again.json")
    assert read_json(tmp_path / "again.json") == found


def test_all_layers_at_once_are_the_ones_that_the_head_reads(probed: Path) -> None:
    mllm = load_mllm(probed / "seed-0" / "sft" / "model")
    episodes = read_demonstrations(probed, "downstream")
    view = View(layer=1, cameras=("workspace",))
    # tasks are called by instructions of different lengths: the shorter prompts are padded
    prompts = [
        view.prompt({"workspace": one.frame("workspace", 3)}, one.instruction) for one in episodes
    ]
    layers = list(range(1, len(text_layers(mllm)) + 1))
    for layer, mean, last in zip(
        layers,
        pooled_states(mllm, prompts, layers, "mean"),
        pooled_states(mllm, prompts, layers, "last"),
    ):
        states, mask = hidden_states(mllm, prompts, layer)
        lengths = mask.sum(dim=1)
        assert len(set(lengths.tolist())) > 1
        expected = [one[:length] for one, length in zip(states.numpy(), lengths.tolist())]
        np.testing.assert_allclose(mean, [one.mean(axis=0) for one in expected], atol=1e-5)
        np.testing.assert_allclose(last, [one[-1] for one in expected], atol=1e-5)


def test_readings_layers_and_norms_are_ranked(probed: Path, tmp_path: Path) -> None:
    settings = ProbeSettings(
        arms=("sft",), readings=("direct", "think", "reasoned"), max_reasoning_tokens=5, **SMALL
    )
    text = sweep(probed, settings, tmp_path / "sweep.json")
    found = read_json(tmp_path / "sweep.json")
    [backbone] = found["backbones"]
    rows = backbone["choices"]
    # Of two layers the upper one always has the norm.
    combinations = {(row["reading"], row["layer"], row["final_norm"]) for row in rows}
    assert combinations == {
        (reading, layer, norm)
        for reading in ("direct", "think", "reasoned")
        for layer, norm in ((1, False), (1, True), (2, True))
    }
    errors = [row["error"]["value"] for row in rows]
    assert errors == sorted(errors) and all(row["error"]["n"] == 72 for row in rows)
    [current] = [row for row in rows if row["of_recipe"]]
    assert (current["reading"], current["layer"], current["final_norm"]) == ("direct", 1, False)
    for row in rows:
        if row is not current:
            difference = row["error"]["value"] - current["error"]["value"]
            assert row["against_recipe"]["value"] == pytest.approx(difference)
    tokens = {row["reading"]: row["tokens"] for row in rows}
    assert tokens["think"] < tokens["reasoned"] <= tokens["think"] + 5 + 8  # the closing tag
    assert "direct*" in text and "seed-0/rl" not in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    plain = ProbeSettings(arms=("sft",), **SMALL)
    probe(probed, plain, tmp_path / "probe.json")
    layers = read_json(tmp_path / "probe.json")["arms"]["sft"]
    assert current["phase"] == layers["1"]["accuracy"]


def choice(reading: HeadReading, layer: int, norm: bool) -> ReadingChoice:
    return ReadingChoice(reading, layer, norm, np.ones(2), np.ones(2, bool), 1.0, 1.0)


def test_the_recipes_choice_is_found_by_its_norm_and_limit() -> None:
    """Of `--layers 1 2` on a model of three layers, layer 2 is the highest and not the topmost."""
    choices = [choice("direct", layer, norm) for layer in (1, 2) for norm in (False, True)]
    choices += [choice("reasoned", 1, False), choice("reasoned", 1, True)]

    def found(**backbone: Any) -> tuple[Any, ...] | None:
        current = _current(choices, Recipe(name="x", backbone=backbone), 128)
        return None if current is None else current.name

    assert found(layer=2, final_norm=True) == ("direct", 2, True)
    assert found(layer=2, final_norm=False) == ("direct", 2, False)
    assert found(layer=3) is None
    assert found(layer=1, reading="reasoned") == ("reasoned", 1, False)
    assert found(layer=1, reading="reasoned", max_reasoning_tokens=32) is None
    top = [choice("direct", 2, True)]  # the model's topmost layer has the norm alone
    recipe_of_top = Recipe(name="x", backbone={"layer": 2, "final_norm": False})
    assert _current(top, recipe_of_top, 128) is top[0]


def test_the_sweep_shows_the_cameras_as_the_recipe_does(
    probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    def spied(mllm: Any, frames: Any, view: View, *rest: Any) -> list[ReadingChoice]:
        shown.append((view.cameras, view.cameras_as))
        n = len(frames.owner)
        return [ReadingChoice("direct", 1, False, np.ones(n), np.ones(n, bool), 1.0, 1.0)]

    monkeypatch.setattr(probe_sweep, "sweep_backbone", spied)
    settings = load_recipe(probed / "recipe.yaml")
    backbone = settings.backbone.model_copy(update={"cameras_as": "side_by_side"})
    monkeypatch.setattr(
        probe_sweep, "load_recipe", lambda path: settings.model_copy(update={"backbone": backbone})
    )
    sweep(probed, ProbeSettings(arms=("sft",), readings=("direct",), **SMALL), tmp_path / "s.json")
    assert shown == [(("workspace",), "side_by_side")]


def test_the_norm_of_a_pooled_state_is_the_heads(probed: Path) -> None:
    mllm = load_mllm(probed / "seed-0" / "sft" / "model")
    episodes = read_demonstrations(probed, "downstream")
    view = View(layer=1, cameras=("workspace",))
    prompts = [view.prompt({"workspace": one.frame("workspace", 3)}, "go") for one in episodes[:3]]
    found = pooled_states(mllm, prompts, [1, 1, 2, 2], "mean", [False, True, False, True])
    for states, (layer, norm) in zip(found, [(1, False), (1, True), (2, False), (2, True)]):
        wanted, mask = hidden_states(mllm, prompts, layer, final_norm=norm)
        assert mask.all()
        np.testing.assert_allclose(states, wanted.mean(dim=1).numpy(), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_array_equal(found[2], found[3])


def test_layers_arms_and_demonstrations_can_be_chosen(probed: Path, tmp_path: Path) -> None:
    settings = ProbeSettings(
        task=TASK, demonstrations=2, layers=(2,), arms=("base",), pool="last", **SMALL
    )
    probe(probed, settings, tmp_path / "probe.json")
    found = read_json(tmp_path / "probe.json")
    assert list(found["arms"]) == ["base"] and list(found["arms"]["base"]) == ["2"]
    assert list(found["tasks"]) == [TASK] and len(found["tasks"][TASK]["demonstrations"]) == 2


def test_cameras_are_shown_as_the_head_sees_them(
    probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, views = tmp_path / "run", []
    shutil.copytree(probed, folder)
    settings = recipe(arms=("base",))
    backbone = settings.backbone.model_copy(update={"cameras_as": "side_by_side"})
    write_text(
        folder / "recipe.yaml", dump_recipe(settings.model_copy(update={"backbone": backbone}))
    )

    def seen(_: Any, __: Any, frames: Any, view: View, layers: Any, *___: Any) -> np.ndarray:
        views.append(view)
        return np.zeros((len(layers), len(frames.label), 2), dtype=np.float32)

    monkeypatch.setattr("roboalign.cli.probe.frame_states", seen)
    probe(folder, ProbeSettings(task=TASK, **SMALL), tmp_path / "probe.json")
    assert {view.cameras_as for view in views} == {"side_by_side"}


def test_pairs_are_of_the_training_seeds_that_both_have(probed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(probed, folder)
    settings = recipe(seeds=(0, 1), arms=("base", "sft", "random"))
    write_text(folder / "recipe.yaml", dump_recipe(settings))
    shutil.copytree(
        folder / "seed-0" / "random", folder / "seed-1" / "sft"
    )  # SFT of another seed, far from that of 0
    probe(folder, ProbeSettings(task=TASK, **SMALL), tmp_path / "probe.json")
    found = read_json(tmp_path / "probe.json")
    seeds = {(one["before"], one["after"]): one["seeds"] for one in found["differences"]}
    assert set(seeds["base", "sft"]) == {None, 0, 1} and found["absent"] == ["seed-1/random"]
    values = {
        (one["arm"], one["seed"]): one["layers"]["1"]["accuracy"]["value"]
        for one in found["backbones"]
    }
    assert set(values) == {("base", None), ("sft", 0), ("sft", 1), ("random", 0)}
    assert found["arms"]["sft"]["1"]["accuracy"]["value"] == pytest.approx(
        (values["sft", 0] + values["sft", 1]) / 2
    )
    (pair,) = [
        one for one in found["differences"] if (one["before"], one["after"]) == ("base", "sft")
    ]
    assert pair["layers"]["1"]["value"] == pytest.approx(
        (values["sft", 0] + values["sft", 1]) / 2 - values["base", None]
    )


def test_an_unfinished_backbone_is_not_read(probed: Path, tmp_path: Path) -> None:
    settings = recipe()
    run = tmp_path / "run"
    (run / "base" / "model").mkdir(parents=True)
    with pytest.raises(RoboAlignError, match="no backbone is done"):
        find_backbones(settings, run, None)
    write_json(run / "base" / "stage.json", {})
    (run / "seed-0" / "sft" / "model").mkdir(parents=True)
    found, absent = find_backbones(settings, run, None)
    assert [one.arm for one in found] == ["base"] and "seed-0/sft" in absent
    with pytest.raises(RoboAlignError, match=r"backbone of sft is not done Fix: roboalign run"):
        find_backbones(settings, run, ("base", "sft"))
    with pytest.raises(RoboAlignError, match="no arm 'ecot'"):
        find_backbones(settings, run, ("ecot",))
    with pytest.raises(RoboAlignError, match="no training seed 3"):
        find_backbones(settings, run, None, (3,))


def test_the_blind_arm_has_the_backbone_of_roboalign(tmp_path: Path) -> None:
    write_json(tmp_path / "seed-0" / "rl" / "stage.json", {})
    found, _ = find_backbones(recipe(), tmp_path, ("roboalign", "blind"))
    assert [one.arm for one in found] == ["roboalign"]


def test_settings_from_the_command_line_are_checked() -> None:
    assert probe_settings({"layers": [1, 2], "k": 7}) == ProbeSettings(layers=(1, 2), k=7)
    with pytest.raises(RoboAlignError, match=r"^--batch-size: .*greater than or equal to 1, got 0"):
        probe_settings({"batch_size": 0})
    with pytest.raises(RoboAlignError, match=r"^--pool: .*'mean' or 'last', got first"):
        probe_settings({"pool": "first"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "juggle"}, r"no downstream demonstration is of 'juggle'.*puck-push"),
        ({"demonstrations": 9}, r"has 3 demonstrations, not 9 Fix: ask for 3 or fewer"),
        ({"layers": (1, 7)}, r"--layers: layers \[1, 7\]: the model has text layers 1\.\.2"),
        ({"phases": 50}, "fewer than 50 phases"),
    ],
)
def test_what_cannot_be_probed_is_one_message(
    probed: Path, tmp_path: Path, settings: dict, message: str
) -> None:
    with pytest.raises(RoboAlignError, match=message):
        probe(probed, ProbeSettings(**{**SMALL, **settings}), tmp_path / "probe.json")
    assert not (tmp_path / "probe.json").exists()
