"""Run a recipe. The package itself is callable: `roboalign.run("recipe.yaml")` does the run.

Importing a package binds its name in its parent. A function `roboalign.run` would then be replaced
by this package, so the package itself is made callable.
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
        """Run the stages of a recipe that are not done yet, and return the run's folder.

        `out` is the folder (None: `runs/NAME`), `until` is the last stage (None: all of them; see
        `Run.select`), and `observer` is notified of events. Raises RoboAlignError for a fault in
        the recipe or in what it names.
        """
        from roboalign.run.start import run_recipe

        return run_recipe(recipe, out, until, observer)


sys.modules[__name__].__class__ = _Run
