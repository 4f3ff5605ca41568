"""A mixture file: how samples are shared out, and messages that name the key."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mixing_sources import settings
from pydantic import ValidationError

from roboalign.conversations.qa.presets import QA_PRESETS
from roboalign.core.errors import RoboAlignError
from roboalign.mixture.config import MixtureConfig, load_mixture
from roboalign.mixture.packed import MixConfig
from roboalign.mixture.packing import draw_types
from roboalign.questions.registry import QUESTION_TYPES

RECIPES = Path(__file__).parents[2] / "recipes" / "mixtures"
QA = {"name": "a", "qa": "a.json", "count": 3}


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(1, 5000), st.integers(0, 50)
)
def test_weights_are_honoured_within_rounding_and_add_up(
    weights: list[float], left: int, counted: int
):
    sources = [
        {"name": f"w{n}", "qa": "x.json", "weight": weight} for n, weight in enumerate(weights)
    ]
    if counted:
        sources.append({"name": "c", "qa": "x.json", "count": counted})
    asked = settings(*sources, total=left + counted).asked()
    assert sum(asked) == left + counted and asked[len(weights) :] == [counted] * bool(counted)
    for weight, number in zip(weights, asked):
        assert abs(number - left * weight / sum(weights)) < 1 + 1e-6


def test_a_golden_share():
    sources = [{"name": n, "qa": "x", "weight": w} for n, w in (("a", 1.0), ("b", 2.0), ("c", 4.0))]
    assert settings(*sources, total=10).asked() == [
        1,
        3,
        6,
    ]  # 1.43, 2.86, 5.71: two more to the largest remainders


@pytest.mark.parametrize(
    ("sources", "more", "message"),
    [
        ([{**QA, "layuot": "llava"}], {}, "unknown key `sources.0.layuot`.*did you mean `layout`"),
        ([{**QA, "answers": {"stile": "pixels"}}], {}, "did you mean `style`"),
        ([QA], {"tokenizr": {}}, "did you mean `tokenizer`"),
        ([QA], {"rl": {"source": "a", "count": 1, "share": 1}}, "unknown key `rl.share`"),
        (
            [{**QA, "robot": "x"}],
            {},
            "needs one of robot, preset, qa, conversations; it has robot and qa",
        ),
        ([{**QA, "camera": "front"}], {}, "source a is qa, and `camera` does not belong"),
        ([{**QA, "weight": 1.0}], {}, "either a count or a weight"),
        ([QA, QA], {}, "two sources are called a"),
        ([QA], {"total": 5}, "leave out `total`"),
        (
            [QA, {"name": "b", "qa": "b", "weight": 1}],
            {"total": 3},
            "leaves nothing to the weights",
        ),
        ([{"name": "r", "robot": "r", "count": 9}], {}, "needs `tokenizer`"),
        (
            [{"name": "r", "robot": "r", "count": 9}],
            {"tokenizer": {}},
            "`path` of a FAST tokenizer, or `fit: true`",
        ),
        (
            [{"name": "r", "robot": "r", "count": 9}],
            {"tokenizer": {"fit": True}, "rl": {"source": "r", "count": 1}},
            "rl.at_most",
        ),
        ([{**QA, "kind": "action"}], {}, "kind action does not go with `qa`"),
        ([{**QA, "count": 0}], {}, "sources.0.count.*greater than or equal to 1, got 0"),
    ],
)
def test_faults_name_the_key(tmp_path: Path, sources: list[dict], more: dict, message: str):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "sources": sources, **more}))
    with pytest.raises(RoboAlignError, match=message) as raised:
        load_mixture(path)
    assert str(path) in str(raised.value) and raised.value.fix


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\x00"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RoboAlignError, match=r"mine.yaml"):
        load_mixture(tmp_path / "mine.yaml")


def test_a_manifest_that_is_none_is_refused(tmp_path: Path):
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": {}, "settings": {"name": "a"}}))
    with pytest.raises(RoboAlignError, match="no settings of a mixture"):
        load_mixture(tmp_path / "manifest.json")


def test_places_are_replaced_by_name(tmp_path: Path):
    values = {
        "name": "m",
        "evaluation": ["e"],
        "model": "m",
        "tokenizer": {"path": "t"},
        "sources": [
            QA,
            {"name": "p", "preset": "robopoint", "path": "p", "count": 1},
            {"name": "r", "robot": "r", "count": 2},
        ],
    }
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(values))
    names = ("a", "a.images", "p", "r", "tokenizer", "model", "evaluation.0")
    config, _ = load_mixture(tmp_path / "m.yaml", {name: f"/x/{name}" for name in names})
    qa, preset, robot = config.sources
    assert (qa.qa, qa.images, preset.path, robot.robot) == ("/x/a", "/x/a.images", "/x/p", "/x/r")
    assert (robot.named, qa.named, config.evaluation[0].path) == ("r", None, "/x/evaluation.0")
    assert (config.tokenizer.path, config.model) == ("/x/tokenizer", "/x/model")
    with pytest.raises(RoboAlignError, match=r"--at b: .*name one of .*evaluation.0"):
        load_mixture(tmp_path / "m.yaml", {"b": "x"})


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_recipes_are_valid_and_come_back_from_a_manifest(path: Path, tmp_path: Path):
    config, manifest = load_mixture(path)
    assert manifest is None
    listed = {name: {} for name in ("files", "shards", "lengths")}
    (tmp_path / "manifest.json").write_text(
        json.dumps({"settings": config.model_dump(mode="json"), **listed})
    )
    assert load_mixture(tmp_path / "manifest.json")[0] == config


def test_the_papers_mixture_has_its_sources_and_counts():
    config, _ = load_mixture(RECIPES / "paper.yaml")
    counts = {source.name: source.count for source in config.sources}
    assert counts == {
        **{name: preset.count for name, preset in QA_PRESETS.items()},
        "bridge-actions": 400_000,
    }
    assert round(sum(counts.values()), -4) == 2_280_000 and config.rl.count == 12_800
    assert isinstance(config, MixtureConfig) and config.rl.count / sum(counts.values()) < 0.0057


@pytest.mark.parametrize(
    "wrong",
    [
        {"rl_share": 0.01},
        {"min_turns": 9},
        {"weights": {"fun": 1.0}},
        {"weights": {"general": 0.0}},
        {"turns": 3},
    ],
)
def test_config_refuses(wrong):
    with pytest.raises(ValidationError):
        MixConfig(**wrong)


def test_types_are_drawn_by_weight():
    rng = random.Random(0)
    first = Counter(
        QUESTION_TYPES[draw_types({"general": 1.0, "planning": 3.0}, rng)[-1]].group
        for _ in range(4000)
    )
    assert set(first) == {"general", "planning"}
    assert abs(first["planning"] / 4000 - 0.75) < 0.03  # +-4 standard errors
