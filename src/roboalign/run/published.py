"""Read published results, the small folder that `tools/publish.py` keeps of a run, and rebuild the
page from it."""

from functools import partial
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl
from roboalign.report.page import write_report
from roboalign.report.summary import ArmSummary, Curve, RunSummary
from roboalign.run.arms import ARMS, backbones
from roboalign.run.load import load_recipe
from roboalign.run.recipe import Recipe
from roboalign.run.stages.report import notes, stage_curves

NOT_PUBLISHED = "Not in the published records. Run the recipe to have it."
_FIX = "give one of docs/results/, or a folder that tools/publish.py wrote"


def is_published(folder: Path) -> bool:
    """Return whether this is a folder of published results, not a run's."""
    return (folder / "summary.json").is_file()


def write_published(folder: Path, out: Path) -> None:
    """Write the page of published results to the file `out`. The page states what was not
    published.

    Raises RoboAlignError if the summary or the recipe is missing or incomplete.
    """
    if out.is_dir() or out.suffix != ".html":
        raise RoboAlignError("the page is one HTML file", where=str(out), fix="--out page.html")
    write_report(read_published(folder), out)


def read_published(folder: Path) -> RunSummary:
    """Read the facts of a run from its published folder: numbers, RL's curves and the recipe."""
    path = folder / "summary.json"
    summary: dict[str, Any] = read_json(path, fix=_FIX)
    recipe = load_recipe(folder / "recipe.yaml")
    try:
        environment, success = summary["environment"], summary["success"]
        pairs, metrics = summary["pairs"], summary["arms"]
        size = environment["model"].partition(" parameters")[0]
    except (KeyError, TypeError, AttributeError):
        raise RoboAlignError(
            "it lacks one of environment, success, pairs and arms", where=str(path), fix=_FIX
        ) from None
    return RunSummary(
        name=recipe.name,
        environment=environment,
        arms=[_arm(name, metrics.get(name)) for name in recipe.arms],
        success=success,
        mllm_pairs=pairs,
        visited=[_arm(name, one) for name, one in summary.get("visited", {}).items()],
        visited_pairs=summary.get("visited_pairs", []),
        curves=_curves(folder, recipe),
        recipe=(folder / "recipe.yaml").read_text(),  # as it was then, without settings added later
        notes=notes(recipe, size),
        absent=NOT_PUBLISHED,
    )


def _arm(name: str, metrics: dict[str, Any] | None) -> ArmSummary:
    row = ARMS[name]
    return ArmSummary(name, row.title, row.description, metrics, claim=row.claim)


def _curves(folder: Path, recipe: Recipe) -> list[Curve]:
    """Return the logs that are published: those of RL."""
    trained = [backbone for backbone in backbones(recipe.arms) if backbone.curve]
    curves: list[Curve] = []
    for seed in recipe.seeds:
        curves += stage_curves(trained, seed, partial(_log, folder, seed))
    return curves


def _log(folder: Path, seed: int, stage: str) -> list[dict[str, Any]]:
    return read_jsonl(folder / f"seed-{seed}-{stage}-metrics.jsonl")
