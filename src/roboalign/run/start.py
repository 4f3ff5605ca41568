"""Start one run of a recipe, from Python and from the command line."""

from pathlib import Path

from roboalign.core.distributed import Team
from roboalign.core.errors import RoboAlignError
from roboalign.run.graph import distill_stages, pin_recipe, plan_stages
from roboalign.run.load import load_recipe
from roboalign.run.observer import Observer
from roboalign.run.recipe import Recipe
from roboalign.run.scheduler import Run


def run_recipe(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    until: str | None = None,
    observer: Observer | None = None,
    *,
    team: Team | None = None,
) -> Path:
    """Run the stages of a recipe up to `until` that are not done yet; return the run's folder.

    `out` is the folder (None: `runs/NAME`); `until` is as in `Run.select`, or `distill`, whose
    stages no other run has. Raises RoboAlignError for a fault in the recipe, `out` or `until`.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    folder = Path(out) if out else Path("runs") / recipe.name
    if folder.exists() and not folder.is_dir():
        raise RoboAlignError(
            "this is a file, not a folder", where=str(folder), fix="give another folder (--out)"
        )
    recipe = pin_recipe(recipe)
    stages = distill_stages(recipe) if until == "distill" else plan_stages(recipe)
    run = Run(recipe, folder, stages, observer, team)
    run.execute(run.select(until))
    return folder
