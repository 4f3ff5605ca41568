"""The verb `bench`: what MLLMs know of images and space, on public benchmarks or a file of one's own."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign.bench.items import CONTROLS
from roboalign.bench.judge import BenchJudge
from roboalign.bench.measure import BenchConfig, BenchModel, bench_model
from roboalign.bench.tasks.base import BenchTask
from roboalign.bench.tasks.registry import BENCH_TASKS, find_bench, find_protocol
from roboalign.cli.bench_text import format_bench
from roboalign.cli.options import add_settings
from roboalign.core.config import validated
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_output, write_json
from roboalign.core.hub import resolve, resolve_files
from roboalign.core.machine import device_of
from roboalign.mllm.shipped import builtin_folder
from roboalign.questions.teacher.client import Endpoint
from roboalign.run.arms import ARMS
from roboalign.run.folder import backbone_folder
from roboalign.run.load import load_recipe

SUMMARY, VERDICTS = "summary.json", "judge.jsonl"
_BY_DEFAULT = ("base", "sft", "roboalign")


@dataclass(frozen=True)
class ModelPlace:
    """A model that is measured."""

    name: str
    folder: Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for models, tasks, protocol and machine."""
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a model's folder or Hub id, `builtin`, or a run's folder: its arms, each paired with "
        "the first",
    )
    add(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help=f"of {', '.join(BENCH_TASKS)}",
    )
    add(
        "--data",
        action="append",
        default=[],
        metavar="[TASK=]PATH",
        help="where a task's files are (a path or a Hub id), or a folder with one folder per task; "
        "without it the task's own data set on the Hub; may be repeated",
    )
    add("--out", required=True, metavar="FOLDER", help="where the replies and their scores go")
    names = list(BenchConfig.model_fields)
    add_settings(parser, BenchConfig, *names)
    add(
        "--controls",
        nargs="+",
        choices=CONTROLS[1:],
        default=[],
        help="ask again with gray images, without images, or with the options in another order",
    )
    add("--judge", metavar="URL", help="base URL of the endpoint that scores open answers")
    add("--judge-model", metavar="NAME", help="name of the model there")
    key = Endpoint.model_fields["key_env"].default
    add("--judge-key-env", metavar="NAME", default=key, help="variable that holds its API key")
    add("--arm", action="append", default=[], help="of a run: this arm; may be repeated")
    add("--seed", type=int, metavar="N", help="of a run: this training seed, else its first")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the models run")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of their weights")
    add("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> int:
    """Measure every model on every task, and print the table."""
    fields = {name: getattr(options, name) for name in BenchConfig.model_fields}
    config: BenchConfig = validated(BenchConfig, fields, where="roboalign bench")
    tasks = [find_bench(name) for name in dict.fromkeys(options.tasks)]
    for task in tasks:
        find_protocol(task, config.preset)
    if (options.judge is None) != (options.judge_model is None):
        raise RoboAlignError(
            "a judge has an endpoint and a name", where="--judge", fix="give --judge-model too"
        )
    places = data_places(options.data, tasks)
    models = models_of(options.models, options.arm, options.seed)
    out = Path(options.out)
    check_output(out, marks=[SUMMARY, VERDICTS, *(f"{model.name}/model.json" for model in models)])
    result = _measure(models, [(task, places[task.name]) for task in tasks], config, options, out)
    write_json(out / SUMMARY, result)
    print(json.dumps(result, indent=2) if options.json else format_bench(result, out))
    return 0


def _measure(
    models: list[ModelPlace],
    tasks: list[tuple[BenchTask, Path]],
    config: BenchConfig,
    options: argparse.Namespace,
    out: Path,
) -> dict[str, Any]:
    """Return summary.json. One model is in memory at a time."""
    import torch

    from roboalign.bench.summary import summarize_models
    from roboalign.mllm.load import load_mllm

    controls = ("asked", *options.controls)
    records = {}
    with _judge(options, out) as judge:
        for model in models:
            mllm = load_mllm(
                model.folder, dtype=getattr(torch, options.dtype), device=device_of(options.device)
            )
            asked = BenchModel(model.name, mllm, config, judge).bounded()
            records[model.name] = bench_model(asked, tasks, controls, out / model.name)
    protocols = {task.name: find_protocol(task, config.preset).described() for task, _ in tasks}
    return {
        "settings": config.model_dump(mode="json"),
        "models": {model.name: str(model.folder) for model in models},
        "protocols": protocols,
        "tasks": summarize_models(records, {task.name: task.headline for task, _ in tasks}),
    }


@contextmanager
def _judge(options: argparse.Namespace, out: Path) -> Iterator[BenchJudge | None]:
    """Yield the judge of open answers, whose verdicts are in OUT/judge.jsonl; None without one."""
    if options.judge is None:
        yield None
        return
    values = {"url": options.judge, "key_env": options.judge_key_env}
    endpoint = validated(Endpoint, values, where="--judge")
    judge = BenchJudge(endpoint, options.judge_model, out / VERDICTS)
    try:
        yield judge
    finally:
        judge.close()


def data_places(given: list[str], tasks: list[BenchTask]) -> dict[str, Path]:
    """Return where the files of each task are: as `given`, else its data set on the Hub.

    Raises RoboAlignError if a path does not exist, or the Hub has no such data set.
    """
    own: dict[str, str] = {}
    folders: list[Path] = []
    for text in given:
        name, equals, path = text.partition("=")
        if equals and name in BENCH_TASKS:
            if name not in {task.name for task in tasks}:
                raise RoboAlignError(
                    f"{name} is not asked", where=f"--data {text}", fix=f"add {name} to --tasks"
                )
            own[name] = path
            continue
        folders.append(Path(text).expanduser())
        if not folders[-1].is_dir():
            raise RoboAlignError(
                "no such folder", where=f"--data {text}", fix="give a folder, or TASK=PATH"
            )
    places: dict[str, Path] = {}
    for task in tasks:
        below = [folder / task.name for folder in folders if (folder / task.name).is_dir()]
        if task.name not in own and folders and not below:
            raise RoboAlignError(
                f"none of these folders has a folder {task.name}",
                where=f"--data {folders[-1]}",
                fix=f"give --data {task.name}=PATH, or leave it out to use {task.repository}",
            )
        if task.name not in own and not below and not task.repository:
            raise RoboAlignError(
                f"the questions of {task.title} are not public",
                where="--data",
                fix=f"give your own file: --data {task.name}=PATH",
            )
        name = own.get(task.name) or (str(below[-1]) if below else task.repository)
        patterns = [*task.files, *(f"*/{pattern}" for pattern in task.files)]
        places[task.name] = resolve_files(name, patterns, where=f"--data {task.name}")
    return places


def models_of(given: list[str], arms: list[str], seed: int | None) -> list[ModelPlace]:
    """Return the models that the arguments name, each with a name of its own.

    Raises RoboAlignError if one does not exist, or two have one name.
    """
    models: list[ModelPlace] = []
    for one in given:
        path = Path(one).expanduser()
        if (path / "recipe.yaml").is_file():
            models += _arms_of(path, arms, seed)
        elif one == "builtin":
            models.append(ModelPlace(one, builtin_folder()))
        else:
            # Absolute, so that `.`, `..` and `model` have the names of their folders.
            place = path.resolve() if ".." in path.parts else path.absolute()
            name = place.parent.name if place.name == "model" else place.name
            models.append(ModelPlace(name.partition("@")[0], resolve(one, "model", where="MODEL")))
    if (arms or seed is not None) and not any(
        (Path(one).expanduser() / "recipe.yaml").is_file() for one in given
    ):
        raise RoboAlignError(
            "only a run has arms and seeds", where="--arm, --seed", fix="leave it out"
        )
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RoboAlignError(
            f"two models are called {twice[0]}",
            where="MODEL",
            fix="measure them into two folders, and pair these with `roboalign compare`",
        )
    return models


def _arms_of(run: Path, arms: list[str], seed: int | None) -> list[ModelPlace]:
    """Return the backbones of a run's arms: base, SFT and RL, or those asked for."""
    recipe = load_recipe(run / "recipe.yaml")
    if seed is not None and seed not in recipe.seeds:
        raise RoboAlignError(
            f"the run has no training seed {seed}",
            where=str(run),
            fix=f"choose of {', '.join(map(str, recipe.seeds))} with --seed",
        )
    for arm in arms:
        if arm not in recipe.arms:
            raise RoboAlignError(
                f"the run has no arm {arm!r}",
                where=str(run),
                fix=f"choose of {', '.join(recipe.arms)} with --arm",
            )
    chosen = arms or [arm for arm in _BY_DEFAULT if arm in recipe.arms]
    found: dict[Path, ModelPlace] = {}
    for arm in chosen:
        folder = backbone_folder(run, recipe.seeds[0] if seed is None else seed, arm)
        if not (folder.parent / "stage.json").is_file():  # written last: the model is whole
            raise RoboAlignError(
                f"the backbone of {ARMS[arm].title} is not done",
                where=str(run),
                fix=f"roboalign run {run / 'recipe.yaml'} --out {run}, or choose arms with --arm",
            )
        found.setdefault(folder, ModelPlace(arm, folder))
    return list(found.values())
