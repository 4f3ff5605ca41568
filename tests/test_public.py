"""The public face: what `import roboalign` costs, lists and gives."""

import subprocess
import sys
from pathlib import Path

import pytest

import roboalign as ra

ROOT = Path(__file__).parents[1]


def test_importing_it_loads_nothing_heavy() -> None:
    program = "import sys, roboalign; roboalign.run; roboalign.RoboAlignError; print(*sorted(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(ended.stdout.split())
    assert "roboalign.core.errors" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "transformers", "pandas", "matplotlib"}


def test_it_lists_what_it_has_and_names_it_where_a_name_is_wrong() -> None:
    assert set(ra.__all__) < set(dir(ra))
    for name in ra.__all__:
        found = getattr(ra, name)
        assert callable(found) and found.__doc__
    with pytest.raises(AttributeError, match=r"no 'polciy'.* Available: Policy, Recipe"):
        _ = ra.polciy


def test_its_types_are_shipped() -> None:
    assert (Path(ra.__file__).parent / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text()


def test_a_run_and_its_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstrations of the smoke recipe are collected, then opened."""
    monkeypatch.chdir(tmp_path)
    few = ("collect.align.episodes_per_task=2", "collect.downstream.episodes_per_task=1")
    recipe = ra.load_recipe(ROOT / "recipes" / "smoke.yaml", ("parallel=1", *few))
    assert isinstance(recipe, ra.Recipe)
    folder = ra.run(recipe, until="collect")
    assert folder == Path("runs/smoke") and (folder / "collect" / "stage.json").is_file()
    episodes = list(ra.open_episodes(folder / "collect" / "align"))
    assert len(episodes) == 4  # two tasks, two each
    assert {episode.actions.shape[1] for episode in episodes} == {4}


def test_faults_are_the_one_error(tmp_path: Path) -> None:
    with pytest.raises(ra.RoboAlignError, match="stage `sfft` not found"):
        ra.run(ROOT / "recipes" / "smoke.yaml", tmp_path / "run", until="sfft")
    with pytest.raises(ra.RoboAlignError, match="this is a file"):
        ra.run(ROOT / "recipes" / "smoke.yaml", ROOT / "README.md")
    with pytest.raises(ra.RoboAlignError, match="no such file or folder"):
        ra.open_episodes(tmp_path / "none")
    with pytest.raises(ra.RoboAlignError) as caught:
        ra.Policy.load(tmp_path)
    assert str(tmp_path) in caught.value.where
    assert not (tmp_path / "run").exists()
