"""`roboalign run`, and the hidden verbs that name a stage: run a recipe, completely or up to a
stage."""

import argparse
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from roboalign.cli.options import add_set
from roboalign.core.progress import say

if TYPE_CHECKING:
    from roboalign.core.distributed import Team


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for what to run, where, and how far."""
    what, out = "a recipe file, for example recipes/quickstart.yaml", "the run's folder"
    if parser.prog.endswith(" report"):
        what += "; a run's folder; or one of docs/results/"
        out += ", or the HTML file that is made of published results"
    parser.add_argument("recipe", help=what)
    parser.add_argument("--out", help=f"{out}; without it runs/NAME, NAME as in the recipe")
    if parser.prog.endswith(" run"):
        parser.add_argument(
            "--until",
            metavar="STAGE",
            help="stop after this stage, for example sft, head or eval; what it needs is done first",
        )
    add_set(parser)


def main(options: argparse.Namespace) -> int:
    """Run the stages; under a launcher with several processes, each takes its part."""
    if os.environ.get("RANK", "0") == "0":
        # Importing PyTorch and the simulator takes seconds, and half a minute on a busy machine.
        say(f"reading {options.recipe}", "run")
    from roboalign.core.distributed import join_team

    team = join_team()
    with team.guarded() if team else contextlib.nullcontext():
        return _run(options, team)


def _run(options: argparse.Namespace, team: "Team | None") -> int:
    from roboalign.core.machine import side_by_side
    from roboalign.run.load import load_recipe
    from roboalign.run.published import is_published, write_published
    from roboalign.run.stages.distill import print_keep_rate
    from roboalign.run.stages.report import print_summary
    from roboalign.run.start import run_recipe
    from roboalign.run.view import watch

    path = Path(options.recipe)
    out = options.out
    if options.verb == "report" and is_published(path):
        page = Path(out or f"{path.resolve().name}.html")
        write_published(path, page)
        print(page.resolve())
        return 0
    if options.verb == "report" and path.is_dir():
        path, out = path / "recipe.yaml", out or path
    until = options.until if options.verb == "run" else options.verb
    recipe = load_recipe(path, tuple(options.set))
    with watch(side_by_side(recipe.parallel), live=team is None) as observer:
        folder = run_recipe(recipe, out, until, observer, team=team)
    if team and not team.leads:
        return 0
    if until in (None, "report"):
        print_summary(folder, recipe)
    if until == "distill":
        print_keep_rate(folder)
    return 0
