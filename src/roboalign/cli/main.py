"""The `roboalign` command: its verbs, and for each the file with its options and its work."""

import argparse
import sys
from importlib import import_module
from typing import Any

from roboalign import __version__
from roboalign.cli.options import Parser, nearest
from roboalign.core.command import exit_status
from roboalign.core.errors import RoboAlignError

_GROUPS = {
    "make a policy": {
        "init": "look at recorded demonstrations and write a recipe for them",
        "run": "do a recipe: data, SFT, RL, action head, evaluation and report",
        "plan": "estimate memory, time and money of a recipe before it starts",
        "distill": "train on checkable questions, then keep its reasoning as training data",
    },
    "work with data": {
        "data": "inspect or convert robot data, generate questions, build a mixture",
    },
    "look at results": {
        "replay": "compare a policy with recorded episodes, in open loop",
        "table": "print the paper's tables with measured numbers",
        "eval": "score any policy server on a benchmark",
        "bench": "measure MLLMs on public benchmarks of images and space",
        "compare": "compare two runs, or two arms of one, on the same initial states",
        "probe": "measure what a run's backbones know of the robot's progress, by layer",
        "think-curve": "measure what a policy gains from more computation before each decision",
        "causal": "measure whether a policy acts by what its reasoning says",
    },
    "use them elsewhere": {
        "serve": "let a robot ask a policy over openpi's websocket protocol",
        "trial": "compare policies on a robot, blind, by a plan that is locked before",
        "export": "write a policy as a folder of its own, or an RL stage for verl or EasyR1",
        "push": "upload a policy or a model, with its card, to the Hugging Face Hub",
    },
    "check the machine": {
        "doctor": "check what is installed and say what is missing",
    },
}
VERBS = {verb: text for group in _GROUPS.values() for verb, text in group.items()}
STAGES = ("collect", "tokenizer", "mix", "base", "sft", "rl", "head", "report")
"""Hidden verbs: `roboalign sft RECIPE` is `roboalign run RECIPE --until sft`."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status, as `exit_status` says."""
    return exit_status(lambda: _dispatch(sys.argv[1:] if arguments is None else arguments))


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        _parser(only="").print_help()
        return 0
    verb = arguments[0]
    if not verb.startswith("-"):
        check_verb(verb)
    options = _parser(only=verb).parse_args(arguments)
    status: int = import_module(f"roboalign.cli.{_home(verb)}").main(options)
    return status


def check_verb(verb: str) -> None:
    """Raise RoboAlignError if there is no such verb, and suggest the nearest one."""
    if verb not in (*VERBS, *STAGES):
        near = nearest(verb, [*VERBS, *STAGES])
        raise RoboAlignError(
            f"no verb `{verb}`. Available: {', '.join(VERBS)}",
            where="roboalign",
            fix=f"did you mean `roboalign {near}`?" if near else "see roboalign --help",
        )


def _home(verb: str) -> str:
    return "run" if verb in STAGES else verb.replace("-", "_")


def _parser(only: str | None = None) -> argparse.ArgumentParser:
    """Build the whole command's parser; with `only`, other verbs have no options and their files
    are not imported."""
    lines = ["Turn an open multimodal LLM into a robot policy."]
    for title, group in _GROUPS.items():
        lines += ["", f"{title}:", *(f"  {verb:<11} {text}" for verb, text in group.items())]
    lines += ["", "roboalign VERB --help lists the options of a verb."]
    parser = Parser(prog="roboalign", description="\n".join(lines), usage="roboalign VERB ...")
    parser.add_argument("--version", action="version", version=f"roboalign {__version__}")
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", help=argparse.SUPPRESS, prog="roboalign"
    )
    for verb in (*VERBS, *STAGES):
        text = VERBS.get(verb, f"do a recipe up to its stage `{verb}`")
        listed: dict[str, Any] = (
            {"help": text} if verb in VERBS else {}
        )  # otherwise hidden from references too
        command = verbs.add_parser(verb, description=f"{text[0].upper()}{text[1:]}.", **listed)
        if only is None or only == verb:
            import_module(f"roboalign.cli.{_home(verb)}").add_options(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
