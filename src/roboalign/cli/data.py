"""`roboalign data inspect`, `convert`, `questions` and `mix`."""

import argparse
import os

from roboalign.cli.options import add_settings
from roboalign.core.errors import RoboAlignError
from roboalign.questions.base import QuestionConfig
from roboalign.questions.teacher.client import Endpoint


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add one parser for each action."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    inspect = actions.add_parser(
        "inspect", help="write one page: dimensions, frames, tokens, and what needs attention"
    )
    convert = actions.add_parser("convert", help="write the data as a LeRobot v3.0 data set")
    questions = actions.add_parser(
        "questions", help="generate question-answering data from the episodes"
    )
    for command in (inspect, convert, questions):
        _add_source(command)
    inspect.add_argument("--out", default="inspection.html", help="the page to write")
    inspect.add_argument("--camera", help="look at this camera only")
    inspect.add_argument("--horizon", type=int, default=16, help="steps of an action chunk")
    inspect.add_argument(
        "--fast", help="a FAST tokenizer, folder or Hub id; without it one is fitted"
    )
    _add_out(convert)
    convert.add_argument(
        "--to", metavar="NAME", help="convert the actions to this space; needs --space"
    )
    convert.add_argument(
        "--pictures",
        action="store_true",
        help="store each frame of a video as PNG; without it the video files are copied",
    )
    _add_questions(questions)
    _add_mix(actions.add_parser("mix", help="build a training mixture from any sources"))


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "path",
        help="LeRobot v2.0 to v3.0 (a folder or a Hub id, owner/name@revision), RLDS, robomimic or "
        "LIBERO HDF5, or a CALVIN split",
    )
    command.add_argument(
        "--format", help="lerobot, rlds, robomimic or calvin, where the files do not tell"
    )
    command.add_argument(
        "--read",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the format's reader, for example fps=5 or flip=true; may be repeated",
    )
    command.add_argument(
        "--space", metavar="NAME", help="what the actions mean, for example bridge or libero"
    )
    command.add_argument(
        "--strict", action="store_true", help="stop at the first episode that is broken"
    )


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", required=True, help="the folder to write; an unfinished one is continued"
    )


def _add_questions(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _add_out(command)
    add(
        "--by",
        choices=("states", "teacher"),
        default="states",
        help="compute the answers from states and actions, or let a model at --endpoint write them",
    )
    add("--count", type=int, default=1000, help="most conversations, each about one frame")
    add(
        "--axes",
        metavar="X,Y,Z",
        help="where the axes of the actions' base frame point, seen from the robot, for example "
        "forward,left,up; known for most names of --space",
    )
    names = (
        "position",
        "camera",
        "frames",
        "questions",
        "horizon",
        "think_share",
        "prompts",
        "grid",
        "whole",
        "seed",
    )
    add_settings(command, QuestionConfig, *names)
    add("--endpoint", metavar="URL", help="teacher: base URL of an OpenAI-compatible endpoint")
    add("--model", metavar="NAME", help="teacher: name of the model there")
    add_settings(command, Endpoint, "concurrency", "timeout", "retries", prefix="teacher: ")
    add(
        "--key-env",
        metavar="NAME",
        help="teacher: environment variable that holds the API key; without it "
        f"{Endpoint.model_fields['key_env'].default}, where set",
    )
    for side, text in (("in", "prompt"), ("out", "completion")):
        add(
            f"--price-{side}",
            type=float,
            metavar="PRICE",
            help=f"teacher: price of a million {text} tokens",
        )
    add(
        "--dry-run",
        action="store_true",
        help="teacher: print what would be asked and what it costs, ask nothing",
    )


def _add_mix(mix: argparse.ArgumentParser) -> None:
    mix.add_argument(
        "mixture",
        help="a mixture file, for example recipes/mixtures/paper.yaml, or the manifest.json of "
        "a mixture to build again",
    )
    mix.add_argument("--out", help="the folder to write; an unfinished one is continued")
    mix.add_argument("--workers", type=int, metavar="N", help="processes; without it one per core")
    mix.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where a source is on this machine; also NAME.images, tokenizer, model and "
        "evaluation.0; may be repeated",
    )
    mix.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: say what is there and missing of each source, from a sample; the exit "
        "status is 1 if anything is missing",
    )
    mix.add_argument(
        "--sample",
        type=int,
        default=200,
        metavar="N",
        help="with --dry-run: most records read of each source",
    )
    mix.add_argument("--json", action="store_true", help="with --dry-run: print JSON")


def _cores() -> int:
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def main(options: argparse.Namespace) -> int:
    """Run the action."""
    if options.action == "mix":
        return _mix(options)
    from roboalign.cli.robot_data import convert_data, inspect_data, open_data

    data = open_data(options.path, options.format, options.read, options.space, options.strict)
    if options.action == "inspect":
        text = inspect_data(
            data, options.out, camera=options.camera, horizon=options.horizon, fast=options.fast
        )
    elif options.action == "questions":
        from roboalign.cli.questions import question_data

        text = question_data(data, vars(options))
    else:
        text = convert_data(data, options.out, options.to, pictures=options.pictures)
    print(text)
    return 0


def _mix(options: argparse.Namespace) -> int:
    """Build a mixture, or say what it would be."""
    if options.dry_run:
        from roboalign.cli.mix_preview import preview_mix

        text, status = preview_mix(
            options.mixture, at=options.at, most=options.sample, as_json=options.json
        )
        print(text)
        return status
    from roboalign.cli.data_mix import mix_data

    if options.out is None:
        raise RoboAlignError("no folder to write", where="--out", fix="give --out, or --dry-run")
    workers = _cores() if options.workers is None else options.workers
    print(mix_data(options.mixture, options.out, workers=workers, at=options.at))
    return 0
