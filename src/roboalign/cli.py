"""The `roboalign` command: one verb a stage, `run` for all of them, `doctor` for the machine."""

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
    checks = verbs.add_parser("doctor", help="check this machine and say what is missing")
    checks.add_argument("--quiet", action="store_true", help="print only what is wrong")
    return parser


if __name__ == "__main__":
    sys.exit(main())
