"""The verb `think-curve`: success and error of a policy against what a decision costs."""

import argparse
from pathlib import Path

from roboalign.cli.options import add_settings
from roboalign.cli.push import chosen_upload
from roboalign.core.config import validated
from roboalign.core.errors import RoboAlignError
from roboalign.run.think_curve import ThinkCurveSettings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the policy, the folder, and the fields of `ThinkCurveSettings`."""
    add_policy(parser, "think-curve")
    add_settings(parser, ThinkCurveSettings, *ThinkCurveSettings.model_fields)


def add_policy(parser: argparse.ArgumentParser, out: str) -> None:
    """Add the options of a verb that measures one policy of a run."""
    add = parser.add_argument
    add("policy", metavar="RUN_OR_POLICY", help="a run's folder, or a policy's in it; only read")
    add("--arm", help="of a run: this arm; without it roboalign")
    add("--seed", type=int, metavar="N", help="of a run: this training seed; without it the first")
    add(
        "--out",
        default=out,
        metavar="FOLDER",
        help="the folder for records and results; measurements in it are continued",
    )


def main(options: argparse.Namespace) -> int:
    """Measure, draw, and print the table."""
    from roboalign.report.think_curve import curve_text, draw_curve
    from roboalign.run.load import load_recipe
    from roboalign.run.think_curve import think_curve

    given = {name: getattr(options, name) for name in ThinkCurveSettings.model_fields}
    settings: ThinkCurveSettings = validated(
        ThinkCurveSettings, given, where="roboalign think-curve"
    )
    run, folder = policy_of_run(options)
    out = Path(options.out)
    result = think_curve(run, load_recipe(run / "recipe.yaml"), folder, settings, out)
    draw_curve(result, out / "curve.png")
    print(curve_text(result))
    print(f"plot: {(out / 'curve.png').resolve()}")
    return 0


def policy_of_run(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return the run's folder and the policy's. Raises RoboAlignError for a policy without a
    run."""
    found = chosen_upload(options.policy, None, options.arm, options.seed)
    if found.run is None:
        raise RoboAlignError(
            "the policy is outside of its run, which knows the simulator and the demonstrations",
            where=options.policy,
            fix="give the run's folder and --arm",
        )
    return found.run, found.folder
