"""`roboalign plan`: memory, time and money of a recipe's trainings, before anything starts."""

import argparse
from pathlib import Path

from roboalign.cli.options import add_set


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the recipe, the GPUs and the assumptions."""
    parser.add_argument(
        "recipe", help="a recipe file; a backbone that is absent is known by its folder's name"
    )
    parser.add_argument("--gpus", default="1xH100", help="count and kind, for example 8xH100")
    add_set(parser)
    parser.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace an assumption, for example utilisation=0.4; may be repeated",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="also run one update of each training at full size without its weights; takes minutes",
    )
    parser.add_argument(
        "--price-per-gpu-hour", type=float, metavar="PRICE", help="also say what the run costs"
    )


def main(options: argparse.Namespace) -> int:
    """Print the plan and, if requested, the rehearsal."""
    from roboalign.plan.arithmetic import parse_gpus
    from roboalign.plan.model import assumptions
    from roboalign.plan.recorded import read_recorded
    from roboalign.plan.stored_lengths import with_stored
    from roboalign.plan.text import describe_plan
    from roboalign.report.console import fold
    from roboalign.run.load import load_recipe

    gpu, count = parse_gpus(options.gpus)
    recipe = load_recipe(options.recipe, tuple(options.set))
    recorded = read_recorded(recipe)
    for sentence in recorded.sentences:
        print(fold(sentence))
    assumed = with_stored(recorded.replace_in(assumptions(options.assume)), recipe)
    if recipe.mixture and not Path(recipe.mixture).is_dir():
        print(f"{recipe.mixture} is not here: the lengths of its conversations are assumed")
    print(fold(describe_plan(recipe, gpu, count, assumed, options.price_per_gpu_hour)))
    if options.rehearse:
        from roboalign.plan.rehearse import describe_rehearsal

        print(flush=True)
        for line in describe_rehearsal(recipe, gpu, count, assumed):
            print(fold(line), flush=True)
    return 0
