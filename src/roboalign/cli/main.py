"""The `roboalign` command: one verb a stage, `run` for all of them, `data` for robot data, `doctor` for the machine."""

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from roboalign.core.errors import RoboAlignError, format_error

if TYPE_CHECKING:
    from roboalign.core.distributed import Team

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
    "distill": "GRPO on questions that can be checked, then reasoning traces sampled, filtered and kept as a source",
}


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 2 for a fault of the input, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # spinning threads starve the processes beside them
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if options.verb == "doctor":
            from roboalign.cli.doctor import doctor

            return doctor(quiet=options.quiet)
        if options.verb == "data":
            return _data(options)
        if options.verb == "plan":
            return _plan(options)
        if options.verb == "table":
            from roboalign.cli.table import table

            print(table(options.runs, options.metric, as_json=options.json))
            return 0
        if options.verb == "compare":
            from roboalign.cli.compare import compare

            print(compare(options.runs, options.arm, options.seed, as_json=options.json))
            return 0
        if options.verb == "probe":
            return _probe(options)
        if options.verb == "export":
            from roboalign.cli.export import export_verl_folder

            print(
                export_verl_folder(options.run, options.out, seed=options.seed, gpus=options.gpus)
            )
            return 0
        if options.verb == "push":
            from roboalign.cli.push import push

            print(push(options))
            return 0
        return _run(options)
    except RoboAlignError as error:
        print(format_error(error), file=sys.stderr)
        return 2
    except OSError as error:
        from roboalign.core.files import no_room

        if not (reason := no_room(error)):
            raise
        full = RoboAlignError(
            f"cannot be written ({reason})",
            where=str(error.filename or ""),
            fix="free space, then run the same command again: it continues from here",
        )
        print(format_error(full), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from roboalign.core.distributed import join_team

    team = join_team()
    with team.guarded() if team else contextlib.nullcontext():
        return _run_recipe(options, team)


def _run_recipe(options: argparse.Namespace, team: "Team | None") -> int:
    from roboalign.run.graph import distill_stages, pin_hub_ids, plan_stages
    from roboalign.run.recipe import load_recipe
    from roboalign.run.scheduler import Run
    from roboalign.run.stages.distill import print_keep_rate
    from roboalign.run.stages.report import print_summary

    recipe = load_recipe(options.recipe, tuple(options.set))
    run_dir = Path(options.out) if options.out else Path("runs") / recipe.name
    if run_dir.exists() and not run_dir.is_dir():
        raise RoboAlignError(
            "this is a file, not a folder", where=str(run_dir), fix="pass --out with another folder"
        )
    recipe = pin_hub_ids(recipe)
    stages = distill_stages(recipe) if options.verb == "distill" else plan_stages(recipe)
    run = Run(recipe, run_dir, stages, team=team)
    until = getattr(options, "until", None) or options.verb
    run.execute(run.select(None if until == "run" else until))
    if team and not team.leads:
        return 0
    if until in ("run", "report"):
        print_summary(run_dir)
    if options.verb == "distill":
        print_keep_rate(run_dir)
    return 0


def _plan(options: argparse.Namespace) -> int:
    from roboalign.plan.arithmetic import parse_gpus
    from roboalign.plan.model import assumptions
    from roboalign.plan.text import describe_plan
    from roboalign.run.recipe import load_recipe

    gpu, count = parse_gpus(options.gpus)
    recipe = load_recipe(options.recipe, tuple(options.set))
    assumed = assumptions(options.assume)
    print(describe_plan(recipe, gpu, count, assumed, options.price_per_gpu_hour))
    if options.rehearse:
        from roboalign.plan.rehearse import describe_rehearsal

        print(flush=True)
        for line in describe_rehearsal(recipe, gpu, count, assumed):
            print(line, flush=True)
    return 0


def _probe(options: argparse.Namespace) -> int:
    from roboalign.cli.probe import probe, probe_settings

    given = {
        name: value for name, value in vars(options).items() if name not in ("verb", "run", "out")
    }
    print(probe(options.run, probe_settings(given), options.out))
    return 0


def _data(options: argparse.Namespace) -> int:
    if options.action == "mix":
        from roboalign.cli.data_mix import mix_data

        print(mix_data(options.mixture, options.out, workers=options.workers, at=options.at))
        return 0
    from roboalign.cli.robot_data import convert_data, inspect_data, open_data

    data = open_data(options.path, options.format, options.read, options.space, options.strict)
    if options.action == "inspect":
        print(
            inspect_data(
                data, options.out, camera=options.camera, horizon=options.horizon, fast=options.fast
            )
        )
    elif options.action == "questions":
        from roboalign.cli.questions import question_data

        print(question_data(data, vars(options)))
    else:
        print(convert_data(data, options.out, options.to))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="roboalign", description="Turn an open multimodal LLM into a robot policy."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in VERBS.items():
        command = verbs.add_parser(
            verb,
            help=text,
            description=f"{text}. Stages that it needs run first; what is "
            "done under the same settings is not done again.",
        )
        command.add_argument("recipe", help="a recipe file, for example recipes/quickstart.yaml")
        if verb == "run":
            command.add_argument(
                "--until",
                choices=[name for name in VERBS if name not in ("run", "distill")],
                metavar="STAGE",
                help="stop after this stage: collect, tokenizer, mix, base, sft, rl, head, eval or report",
            )
        command.add_argument("--out", help="the run's folder (default: runs/<name of the recipe>)")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override one setting, for example sft.max_steps=100",
        )
    plan = verbs.add_parser(
        "plan", help="memory, time and money of a recipe's trainings, before anything starts"
    )
    plan.add_argument(
        "recipe", help="a recipe file; a backbone that is not there is known by its folder's name"
    )
    plan.add_argument("--gpus", default="1xH100", help="for example 8xH100 (default: 1xH100)")
    plan.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting"
    )
    plan.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what cannot be known, for example utilisation=0.4",
    )
    plan.add_argument(
        "--rehearse",
        action="store_true",
        help="then run one update of each training on tensors without numbers; takes minutes",
    )
    plan.add_argument("--price-per-gpu-hour", type=float, metavar="PRICE", help="say what it costs")
    _add_data(
        verbs.add_parser(
            "data", help="robot data of any format: look at it, convert it, ask about it, mix it"
        )
    )
    _add_table(verbs.add_parser("table", help="success of runs beside the paper's numbers"))
    _add_compare(
        verbs.add_parser("compare", help="two runs, or two arms of one, on the same initial states")
    )
    _add_probe(
        verbs.add_parser(
            "probe", help="what a run's backbones know of the robot's state, layer by layer"
        )
    )
    _add_export(
        verbs.add_parser("export", help="a run's RL stage for another trainer: verl or EasyR1")
    )
    _add_push(
        verbs.add_parser("push", help="upload a policy or a model, with its card, to the Hub")
    )
    checks = verbs.add_parser("doctor", help="check this machine and say what is missing")
    checks.add_argument("--quiet", action="store_true", help="print only what is wrong")
    return parser


def _add_table(command: argparse.ArgumentParser) -> None:
    """The options of `roboalign table`."""
    command.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or one of docs/results/"
    )
    command.add_argument(
        "--metric",
        default="libero-avg",
        help="column of the paper: libero-avg (default), libero-long, calvin-mean, real-avg, ...",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_compare(command: argparse.ArgumentParser) -> None:
    """The options of `roboalign compare`."""
    command.add_argument(
        "runs", nargs="+", metavar="RUN", help="two runs' folders (or of docs/results/), or one"
    )
    command.add_argument(
        "--arm",
        action="append",
        default=[],
        help="the arm of both runs; twice: of the first and of the second, or two of one run",
    )
    command.add_argument(
        "--seed", action="append", type=int, default=[], help="this training seed only"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_probe(command: argparse.ArgumentParser) -> None:
    """The options of `roboalign probe`; what they mean and their defaults are in `stages.probe.ProbeSettings`."""
    command.add_argument("run", help="a run's folder; it is only read")
    command.add_argument(
        "--out", default="probe.json", help="where the results go (default: probe.json)"
    )
    command.add_argument("--task", help="one downstream task (default: all)")
    command.add_argument(
        "--demonstrations", type=int, help="demonstrations of a task (default: 20, as in the paper)"
    )
    command.add_argument(
        "--layers", type=int, nargs="+", help="text layers, 1 the lowest (default: all)"
    )
    command.add_argument(
        "--arm",
        action="append",
        dest="arms",
        help="this arm (default: all whose backbone is there)",
    )
    command.add_argument(
        "--seed", action="append", type=int, dest="seeds", help="this training seed (default: all)"
    )
    command.add_argument(
        "--phases", type=int, help="classes: equal stretches of the reference (default: 10)"
    )
    command.add_argument("--k", type=int, help="neighbours that vote (default: 5)")
    command.add_argument("--every", type=int, help="take every so manieth frame (default: 3)")
    command.add_argument(
        "--pool", choices=("mean", "last"), help="over a frame's tokens (default: mean)"
    )
    command.add_argument("--batch-size", type=int, help="frames a forward pass (default: 32)")


def _add_export(command: argparse.ArgumentParser) -> None:
    """The options of `roboalign export verl`."""
    command.add_argument("trainer", choices=("verl",), help="one folder serves verl and EasyR1")
    command.add_argument(
        "run", metavar="RUN", help="a run whose mix and sft stages are done; it is only read"
    )
    command.add_argument(
        "--out", required=True, help="the folder to write; an earlier export is replaced"
    )
    command.add_argument(
        "--seed", type=int, help="the SFT model of this training seed (default: the first)"
    )
    command.add_argument(
        "--gpus", type=int, default=8, help="GPUs a node in the settings (default: 8)"
    )


def _add_push(command: argparse.ArgumentParser) -> None:
    """The options of `roboalign push`."""
    add = command.add_argument
    add("folder", metavar="RUN_OR_POLICY", help="a run's folder, or a policy's; it is only read")
    add("--to", required=True, metavar="USER/NAME", help="the repository of the Hub to make")
    add("--what", choices=("policy", "model"), help="of a run: policy (default), or aligned model")
    add("--arm", help="of a run: this arm (default: roboalign)")
    add("--seed", type=int, help="of a run: this training seed (default: the first)")
    add("--private", action="store_true", help="make the repository private")
    add("--update", action="store_true", help="add to a repository that exists")
    add("--dry-run", action="store_true", help="print the card and the files, upload nothing")


def _add_data(data: argparse.ArgumentParser) -> None:
    """The options of `roboalign data inspect`, `convert`, `questions` and `mix`."""
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    inspect = actions.add_parser(
        "inspect", help="one page: dimensions, frames, tokens, and what needs attention"
    )
    convert = actions.add_parser("convert", help="write it as a LeRobot v3.0 data set")
    questions = actions.add_parser(
        "questions", help="question-answering data generated from its episodes"
    )
    for command in (inspect, convert, questions):
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
            help="an option of the format's reader, for example fps=5 or flip=true",
        )
        command.add_argument(
            "--space", metavar="NAME", help="what the actions mean, for example bridge or libero"
        )
        command.add_argument(
            "--strict", action="store_true", help="stop at the first episode that is broken"
        )
    inspect.add_argument(
        "--out", default="inspection.html", help="the page (default: inspection.html)"
    )
    inspect.add_argument("--camera", help="look at this camera only")
    inspect.add_argument(
        "--horizon", type=int, default=16, help="steps of an action chunk (default: 16)"
    )
    inspect.add_argument(
        "--fast", help="a FAST tokenizer, folder or Hub id; one is fitted without it"
    )
    convert.add_argument(
        "--out", required=True, help="the folder to write; an unfinished one is gone on with"
    )
    convert.add_argument(
        "--to", metavar="NAME", help="convert the actions to this space (needs --space)"
    )
    _add_questions(questions)
    _add_mix(actions.add_parser("mix", help="a training mixture from any sources"))


def _add_questions(command: argparse.ArgumentParser) -> None:
    """The options of `roboalign data questions`."""
    add = command.add_argument
    add("--out", required=True, help="the folder to write; an unfinished one is gone on with")
    add(
        "--by",
        choices=("states", "teacher"),
        default="states",
        help="answers computed from states and actions (default), or written by a model at --endpoint",
    )
    add(
        "--count",
        type=int,
        default=1000,
        help="most conversations, each about one frame (default: 1000)",
    )
    add(
        "--frames",
        type=int,
        metavar="N",
        help="ask about N images of each episode at most, evenly spaced (default: "
        "frames are drawn from all alike)",
    )
    add("--questions", type=int, default=4, help="most questions about one image (default: 4)")
    add(
        "--axes",
        metavar="X,Y,Z",
        help="where the axes of the actions' base frame point, seen from the robot, for "
        "example forward,left,up; known for most names of --space",
    )
    add(
        "--position",
        type=int,
        metavar="COLUMN",
        help="first of the three columns of the state that hold the "
        "gripper's position, metres (default: movement is what the actions command)",
    )
    add("--camera", help="ask about this camera's images (default: the first)")
    add("--horizon", type=int, default=5, help="steps that a question looks ahead (default: 5)")
    add(
        "--think-share",
        type=float,
        default=0.5,
        help="share of the questions with a reasoning (default: 0.5)",
    )
    add(
        "--grid",
        type=int,
        default=32,
        help="cells a side of the image, in which points are given (default: 32)",
    )
    add("--seed", type=int, default=0, help="fixes every draw (default: 0)")
    add("--endpoint", metavar="URL", help="teacher: base URL of an OpenAI-compatible endpoint")
    add("--model", metavar="NAME", help="teacher: the model there")
    add(
        "--concurrency", type=int, default=8, help="teacher: requests at the same time (default: 8)"
    )
    add(
        "--timeout",
        type=float,
        default=120.0,
        help="teacher: seconds of silence before a request is given up (default: 120)",
    )
    add(
        "--retries",
        type=int,
        default=6,
        help="teacher: times a request that failed in passing is sent again (default: 6)",
    )
    add(
        "--key-env",
        metavar="NAME",
        help="teacher: environment variable with the API key (default: OPENAI_API_KEY)",
    )
    add("--price-in", type=float, metavar="PRICE", help="teacher: price of a million prompt tokens")
    add(
        "--price-out",
        type=float,
        metavar="PRICE",
        help="teacher: price of a million completion tokens",
    )
    add(
        "--dry-run",
        action="store_true",
        help="teacher: print what would be asked and what it costs, ask nothing",
    )


def _add_mix(mix: argparse.ArgumentParser) -> None:
    """The options of `roboalign data mix`."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    mix.add_argument(
        "mixture",
        help="a mixture file, for example recipes/mixtures/paper.yaml, or the manifest.json of "
        "a mixture to build again",
    )
    mix.add_argument(
        "--out", required=True, help="the folder to write; an unfinished one is gone on with"
    )
    mix.add_argument(
        "--workers", type=int, default=cores, help=f"processes (default: one a core, {cores})"
    )
    mix.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where a source lies on this machine; also NAME.images, tokenizer, model and evaluation.0",
    )


if __name__ == "__main__":
    sys.exit(main())
