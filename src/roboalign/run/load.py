"""Read a recipe from its YAML file with `--set` overrides, and write it back."""

import copy
from pathlib import Path
from typing import Any

import yaml

from roboalign.core.config import validated
from roboalign.core.errors import RoboAlignError
from roboalign.core.yaml import parse_yaml, read_yaml
from roboalign.run.recipe import Recipe

_CORRECT = "correct `{key}` in the recipe, or pass --set {key}=VALUE"
_START = "start from recipes/quickstart.yaml"


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read and validate a recipe; `overrides` are `dotted.key=value` with YAML values.

    Raises RoboAlignError that names the key and the fix.
    """
    path = Path(path)
    if not _is_file(path):
        raise RoboAlignError(
            "no such recipe", where=str(path)[:200], fix=f"choose one of {_known_recipes(path)}"
        )
    values = read_yaml(path, fix=_START)
    if not isinstance(values, dict):
        raise RoboAlignError("a recipe is a mapping of keys to values", where=str(path), fix=_START)
    written = copy.deepcopy(values)
    for override in overrides:
        _apply(values, override)
    recipe: Recipe = validated(Recipe, values, where=str(path), fix=_CORRECT)
    if _is_of_a_run(path):
        _require_all(written, recipe.model_dump(mode="json"), path)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    where = f"--set {override}"
    if not equals or not key:
        raise RoboAlignError(
            "an override is dotted.key=value",
            where=where,
            fix="for example --set sft.max_steps=100",
        )
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RoboAlignError(f"`{parent}` is a value, not a group of settings", where=where)
    values[last] = parse_yaml(text, where=where, fix="put the value in quotes")


def _is_of_a_run(path: Path) -> bool:
    """Return whether a run wrote this file, which then has every key."""
    return path.name == "recipe.yaml" and any(path.parent.glob("*/started.json"))


def _require_all(written: Any, whole: dict[str, Any], path: Path, at: str = "") -> None:
    """Raise RoboAlignError if a key of `whole` is not in the file: a default might differ from what
    the run used."""
    for key, value in whole.items():
        if not isinstance(written, dict) or key not in written:
            raise RoboAlignError(
                f"`{at}{key}` is missing: the file is damaged, or of an earlier version, as a run writes out every key",
                where=str(path),
                fix=f"run its recipe with --out {path.parent} again: that writes the file and does no stage twice",
            )
        if isinstance(value, dict) and not (at == "mix." and key == "weights"):
            _require_all(written[key], value, path, f"{at}{key}.")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system accepts
        return False


def _known_recipes(path: Path) -> str:
    folder = path.parent
    if len(str(folder)) > 200 or not folder.is_dir():
        folder = Path()
    return ", ".join(sorted(str(p) for p in folder.rglob("*.yaml"))) or "the files in recipes/"
