"""The `roboalign` command: one verb a stage, `run` for all of them, `data` for robot data, `doctor` for the machine."""

import argparse
import os
import sys
from pathlib import Path

from roboalign.errors import RoboAlignError

VERBS = {
    "collect": "demonstrations from the benchmark's scripted experts, as a LeRobot v3.0 data set",
    "tokenizer": "fit FAST on the action chunks, or load a published one",
    "mix": "the SFT mixture, the RL subset and the held-out set, with their manifest",
    "base": "the pretrained MLLM: shipped, trained here, or any Hugging Face folder",
    "sft": "supervised fine-tuning on the mixture",
    "rl": "GRPO on the accuracy of the action tokens",
    "head": "the flow-matching action head on each frozen backbone",
    "eval": "token metrics on held-out frames and rollouts on the downstream tasks",
    "report": "one self-contained HTML page of the run",
    "run": "all of the above",
}


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 2 for a fault of the input, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve the processes beside them
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if options.verb == "doctor":
            from roboalign.stages.doctor import doctor

            return doctor(quiet=options.quiet)
        if options.verb == "data":
            return _data(options)
        return _run(options)
    except RoboAlignError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from roboalign.pipeline import run_stages, select, stage_table
    from roboalign.recipe import load_recipe
    from roboalign.stages.report import print_summary

    recipe = load_recipe(options.recipe, tuple(options.set))
    run_dir = Path(options.out) if options.out else Path("runs") / recipe.name
    if run_dir.exists() and not run_dir.is_dir():
        raise RoboAlignError("this is a file, not a folder", where=str(run_dir), fix="pass --out with another folder")
    run_stages(recipe, run_dir, select(stage_table(recipe), options.verb), say=lambda line: print(line, flush=True))
    if options.verb in ("run", "report"):
        print_summary(run_dir)
    return 0


def _data(options: argparse.Namespace) -> int:
    from roboalign.stages.robot_data import convert_data, inspect_data, open_data

    data = open_data(options.path, options.format, options.read, options.space, options.strict)
    if options.action == "inspect":
        print(inspect_data(data, options.out, camera=options.camera, horizon=options.horizon, fast=options.fast))
    else:
        print(convert_data(data, options.out, options.to))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="roboalign", description="Turn an open multimodal LLM into a robot policy.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in VERBS.items():
        command = verbs.add_parser(verb, help=text, description=f"{text}. Stages that it needs run first; what is "
                                   "done under the same settings is not done again.")
        command.add_argument("recipe", help="a recipe file, for example recipes/quickstart.yaml")
        command.add_argument("--out", help="the run's folder (default: runs/<name of the recipe>)")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                             help="override one setting, for example sft.max_steps=100")
    _add_data(verbs.add_parser("data", help="look at a robot data set, or write it as LeRobot v3.0"))
    checks = verbs.add_parser("doctor", help="check this machine and say what is missing")
    checks.add_argument("--quiet", action="store_true", help="print only what is wrong")
    return parser


def _add_data(data: argparse.ArgumentParser) -> None:
    """The options of `roboalign data inspect` and `roboalign data convert`."""
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    inspect = actions.add_parser("inspect", help="one page: dimensions, frames, tokens, and what needs attention")
    convert = actions.add_parser("convert", help="write it as a LeRobot v3.0 data set")
    for command in (inspect, convert):
        command.add_argument("path", help="LeRobot v2.0 to v3.0, RLDS, robomimic or LIBERO HDF5, or a CALVIN split")
        command.add_argument("--format", help="lerobot, rlds, robomimic or calvin, where the files do not tell")
        command.add_argument("--read", action="append", default=[], metavar="KEY=VALUE",
                             help="an option of the format's reader, for example fps=5 or flip=true")
        command.add_argument("--space", metavar="NAME", help="what the actions mean, for example bridge or libero")
        command.add_argument("--strict", action="store_true", help="stop at the first episode that is broken")
    inspect.add_argument("--out", default="inspection.html", help="the page (default: inspection.html)")
    inspect.add_argument("--camera", help="look at this camera only")
    inspect.add_argument("--horizon", type=int, default=16, help="steps of an action chunk (default: 16)")
    inspect.add_argument("--fast", help="the folder of a FAST tokenizer; one is fitted without it")
    convert.add_argument("--out", required=True, help="the folder to write; an unfinished one is gone on with")
    convert.add_argument("--to", metavar="NAME", help="convert the actions to this space (needs --space)")


if __name__ == "__main__":
    sys.exit(main())
