"""Hub ids where a recipe or a command takes a folder, against a stand-in of the Hub on loopback."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_stand_in import Hub, Repository, served, used
from stage_run import recipe, write_episodes

from roboalign.actions.fast import FastTokenizer
from roboalign.cli.data_mix import mix_data
from roboalign.cli.main import main
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.episodes.formats.lerobot import read_lerobot
from roboalign.episodes.open import open_robot_data
from roboalign.mllm.shipped import builtin_folder
from roboalign.run.graph import pin_recipe, plan_stages
from roboalign.run.recipe import Recipe
from roboalign.run.scheduler import by_name, stage_keys
from roboalign.run.stage import Stage
from roboalign.run.stages.base import source_folder


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with the shipped model, a FAST tokenizer and a data set."""
    write_episodes(tmp_path / "made", range(2), prefix="made")
    chunks = np.random.default_rng(0).uniform(-1, 1, (64, 4, 4))
    FastTokenizer.fit(chunks, scale=2.0, vocab_size=64).save(tmp_path / "fast")
    with served() as found, used(found, tmp_path, monkeypatch):
        found.repositories["model", "owner/tiny"] = Repository.of(builtin_folder())
        found.repositories["model", "owner/fast"] = Repository.of(tmp_path / "fast")
        data = Repository.of(tmp_path / "made", revisions=("main", "v3.0"))
        data.files |= {"README.md": b"", "meta/loader.py": b"never fetched"}
        found.repositories["dataset", "owner/pick"] = data
        yield found


def table_of(settings: Recipe) -> dict[str, Stage]:
    return by_name(plan_stages(settings))


def test_a_backbone_and_a_tokenizer_by_id(there: Hub) -> None:
    named = recipe(backbone={"source": "owner/tiny"}, tokenizer={"path": "owner/fast"})
    pinned = pin_recipe(named)
    tiny, fast = (there.repositories["model", f"owner/{name}"] for name in ("tiny", "fast"))
    assert pinned.backbone.source == f"owner/tiny@{tiny.commit}"
    assert pinned.tokenizer.path == f"owner/fast@{fast.commit}"
    assert source_folder(pinned.backbone.source).name == tiny.commit

    table = table_of(pinned)
    assert table["base"].settings["weights"] == tiny.commit
    assert table["tokenizer"].settings["path"] == fast.commit
    keys = stage_keys(table)
    assert stage_keys(table_of(named)) == keys, "the name is no part of a key"
    there.repositories["model", "other/tiny"] = tiny
    renamed = recipe(backbone={"source": "other/tiny"}, tokenizer={"path": "owner/fast"})
    assert stage_keys(table_of(renamed)) == keys


def test_names_that_are_no_ids_are_left_as_they_are() -> None:
    for source in ("builtin", "train", str(builtin_folder())):
        settings = recipe(backbone={"source": source})
        assert pin_recipe(settings) == settings


def test_a_data_set_by_id(there: Hub, tmp_path: Path) -> None:
    data = open_robot_data("owner/pick@v3.0")
    assert data.name == "pick"
    found = list(data.read())
    for one, same in zip(found, read_lerobot(tmp_path / "made"), strict=True):
        assert one.episode_id == same.episode_id, "the ids of the data set's own"
        np.testing.assert_array_equal(one.actions, same.actions)
        np.testing.assert_array_equal(one.frame("workspace", 3), same.frame("workspace", 3))
    asked = there.files_asked()
    assert "meta/info.json" in asked
    assert not {name for name in asked if name.endswith((".py", ".md"))}
    with pytest.raises(RoboAlignError, match="no revision `v9`"):
        open_robot_data("owner/pick@v9")


def test_data_inspect_by_ids(there: Hub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.html"
    arguments = ["owner/pick", "--fast", "owner/fast", "--horizon", "4", "--out", str(page)]
    assert main(["data", "inspect", *arguments]) == 0
    by_id = capsys.readouterr().out
    folders = [str(tmp_path / "made"), "--fast", str(tmp_path / "fast"), *arguments[3:]]
    assert main(["data", "inspect", *folders]) == 0
    assert by_id == capsys.readouterr().out.replace("made", "pick", 1)
    assert main(["data", "inspect", "owner/missing"]) == 2
    assert "the Hub shows no such data set" in capsys.readouterr().err


def test_a_mixture_names_the_commit_and_is_built_again_from_it(there: Hub, tmp_path: Path) -> None:
    sources = "[{name: pick, robot: owner/pick, count: 20}]"
    lines = f"name: hub\nsources: {sources}\ntokenizer: {{fit: true, horizon: 4}}\n"
    (tmp_path / "mixture.yaml").write_text(lines)
    mix_data(str(tmp_path / "mixture.yaml"), str(tmp_path / "one"), workers=1)
    manifest = read_json(tmp_path / "one" / "manifest.json")
    commit = there.repositories["dataset", "owner/pick"].commit
    assert manifest["settings"]["sources"][0]["robot"] == f"owner/pick@{commit}"
    there.repositories["dataset", "owner/pick"].files["meta/info.json"] = b"{}"  # the branch moves
    mix_data(str(tmp_path / "one" / "manifest.json"), str(tmp_path / "two"), workers=1)
    assert read_json(tmp_path / "two" / "manifest.json")["shards"] == manifest["shards"]
