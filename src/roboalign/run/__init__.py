"""Runs of a recipe. The package itself can be called: `roboalign.run("recipe.yaml")` does the run.

Python puts a package's name into its parent when the package is imported. A function `roboalign.run` would be replaced
by this package then, so the package is what is called.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from roboalign.run.observer import Observer
    from roboalign.run.recipe import Recipe


class _Run(ModuleType):
    def __call__(
        self,
        recipe: Union["Recipe", str, Path],
        out: str | Path | None = None,
        until: str | None = None,
        observer: "Observer | None" = None,
    ) -> Path:
        """Do the stages of a recipe that are not done yet, and return the run's folder.

        `out` is the folder (None: `runs/NAME`), `until` the last stage (None: all of them; see `Run.select`), and
        `observer` is told what happens. Raises RoboAlignError for a fault of the recipe or of what it names.
        """
        from roboalign.run.start import run_recipe

        return run_recipe(recipe, out, until, observer)


sys.modules[__name__].__class__ = _Run
