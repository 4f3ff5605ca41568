"""`roboalign trial plan`: blind trials of several policies on one robot."""

import argparse
from pathlib import Path

from roboalign.cli.trial_text import format_plan
from roboalign.core.errors import RoboAlignError
from roboalign.trial.plan import PLAN_ENDING, draw_plan, lock_plan, number_of_trials, read_study


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add one parser for each action."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    plan = actions.add_parser(
        "plan", help="compute the number of trials, draw their order and arms, and lock both"
    )
    plan.add_argument("study", metavar="STUDY", help="a YAML file: arms, tasks, conditions, number")
    plan.add_argument(
        "--out", metavar="PLAN", help=f"file to write; without it STUDY's name with {PLAN_ENDING}"
    )
    plan.add_argument(
        "--dry-run", action="store_true", help="print the numbers only, and lock nothing"
    )


def main(options: argparse.Namespace) -> int:
    """Do the action."""
    return _plan(options)


def _plan(options: argparse.Namespace) -> int:
    source = Path(options.study)
    study = read_study(source)
    trials, sized = number_of_trials(study)
    out = Path(options.out) if options.out else source.with_name(source.stem + PLAN_ENDING)
    if not options.dry_run and out.resolve() == source.resolve():
        raise RoboAlignError("the plan would replace its study", where=str(out), fix="pass --out")
    locked = None
    if not options.dry_run:
        locked, key = draw_plan(study)
        lock_plan(out, locked, key)
    print(format_plan(study, trials, sized, locked, out), end="")
    return 0
