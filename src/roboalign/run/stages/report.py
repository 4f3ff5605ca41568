"""Stage `report`: collect the stages' results and write one HTML page, summary.json and
table.txt."""

import datetime
import math
import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from roboalign.conversations.conversation import read_conversations
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl, write_json, write_text
from roboalign.core.machine import cores
from roboalign.core.progress import format_seconds
from roboalign.evaluate.success import format_success, read_episodes, success_table
from roboalign.evaluate.token_metrics import summarize
from roboalign.report.samples import frames_side_by_side
from roboalign.report.summary import ArmSummary, Curve, FrameSample, RunSummary, Video
from roboalign.report.terminal import format_arms, format_end
from roboalign.run.answered import answers_of, compared_answers
from roboalign.run.arms import ARMS, MAIN, Backbone, backbones
from roboalign.run.arms import pairs as compared
from roboalign.run.benchmark import (
    OFFLINE_NOTE,
    benchmark_notes,
    evaluation_episodes,
    installed_versions,
    protocol_line,
    simulator_packages,
)
from roboalign.run.folder import mixture_folder
from roboalign.run.load import dump_recipe
from roboalign.run.recipe import Recipe
from roboalign.run.stage import Context

ROLL_OUT = (
    "remove {}/stage.json, and the damaged lines: the same command runs the episodes that lack"
)
REMADE = "delete the folder videos/, or the stage eval's folder to roll out again"


def report(context: Context, stages: tuple[str, ...]) -> dict[str, Any]:
    """Write index.html, summary.json (arms, success, paired differences) and table.txt.

    `stages` are the stages of the run before this one, in order: those of its ledger.
    """
    recipe, run_dir = context.recipe, context.run_dir
    answers: dict[str, list[dict[str, Any]]] = {
        arm: answers_of(run_dir, recipe.seeds, arm) for arm in recipe.arms
    }
    episodes: dict[str, list[dict[str, Any]]] = {
        arm: _episodes(run_dir, recipe, arm) for arm in recipe.arms
    }
    seen = {
        arm: answers_of(run_dir, recipe.seeds, arm, "visited") if recipe.measures_visited else []
        for arm in recipe.arms
    }
    pairs = compared(recipe.arms)
    success = success_table(episodes, pairs) if recipe.measure == "benchmark" else None
    ledger = read_ledger(run_dir, stages)
    summary = RunSummary(
        name=recipe.name,
        environment=_environment(run_dir, recipe, ledger),
        arms=[_arm(arm, answers[arm]) for arm in recipe.arms],
        success=success,
        mllm_pairs=compared_answers(recipe.arms, answers),
        curves=_curves(run_dir, recipe),
        manifest=read_json(mixture_folder(run_dir) / "manifest.json"),
        samples=_samples(run_dir, recipe, answers),
        videos=_videos(run_dir, recipe),
        replays=_replays(run_dir, recipe),
        visited=[_arm(arm, found) for arm, found in seen.items() if found],
        visited_pairs=compared_answers(recipe.arms, seen),
        ledger=ledger,
        recipe=dump_recipe(recipe),
        notes=[
            *notes(
                recipe, number_in_words(read_json(run_dir / "base" / "stage.json")["parameters"])
            ),
            *hold_notes(episodes),
        ],
    )
    from roboalign.report.page import write_report  # matplotlib, in every process of a run

    write_report(summary, context.folder / "index.html")
    write_json(
        context.folder / "summary.json",
        {
            "environment": summary.environment,
            "success": success,
            "pairs": summary.mllm_pairs,
            "arms": {arm.name: arm.mllm for arm in summary.arms},
            **({"open_loop": summary.replays} if summary.replays else {}),
            **_visited_parts(summary),
        },
    )
    write_text(context.folder / "end.txt", format_end(summary))
    closing = format_success(success) if success else f"{OFFLINE_NOTE}\n"
    write_text(context.folder / "table.txt", format_arms(summary) + "\n" + closing)
    return {"arms": len(recipe.arms), "bytes": (context.folder / "index.html").stat().st_size}


def _visited_parts(summary: RunSummary) -> dict[str, Any]:
    """Return what summary.json says about visited states; nothing where none were measured."""
    if not summary.visited:
        return {}
    return {
        "visited": {arm.name: arm.mllm for arm in summary.visited},
        "visited_pairs": summary.visited_pairs,
    }


def notes(recipe: Recipe, size: str) -> list[str]:
    """Return what limits these results besides their own numbers: where they were measured, which
    model, which questions.

    `size` is the number of the backbone's parameters in words.
    """
    model = (
        f"The backbone has {size} parameters: these numbers say how the recipe behaves at this size, not how it would "
        "with a model of another."
    )
    if recipe.backbone.source in ("builtin", "train"):
        model = (
            f"The backbone has {size} parameters and a small vocabulary of its own: these numbers say how the recipe "
            "behaves at this size, not what a published MLLM would do."
        )
    questions = "The questions are generated from templates in a controlled English; free-form language is not tested."
    if recipe.demos.of("align"):
        questions = (
            "No questions were asked: recorded demonstrations tell actions only. What alignment does to "
            "other answers of the MLLM is not tested."
        )
    if recipe.mixture:
        questions = (
            f"The held-out questions are those of the mixture {Path(recipe.mixture).name}, of the sources that SFT "
            "learned from; other questions are not tested."
        )
    return [
        *benchmark_notes(recipe),
        model,
        questions,
    ]


def hold_notes(episodes: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return for each arm that counts its decisions how often it held the robot still, or how long
    its reasonings were."""
    found = []
    for arm, rows in episodes.items():
        counts = Counter[str]()
        for row in rows:
            counts.update(row.get("counts", {}))
        total = counts["decisions"]
        if total and "holds" not in counts:
            found.append(
                f"{ARMS[arm].title}: {counts['tokens'] / total:.1f} tokens of reasoning a decision; "
                f"{counts['closed']} of {total} reasonings did not end by themselves."
            )
        elif total:
            found.append(
                f"{ARMS[arm].title}: {counts['holds']} of {total} decisions "
                f"({100 * counts['holds'] / total:.1f}%) were no action chunk and held the robot "
                f"still; {counts['tokens'] / total:.1f} tokens a decision."
            )
    return found


def number_in_words(count: int) -> str:
    """Return the count to three digits: `178656` -> `179 thousand`, `8291375616` -> `8.29
    billion`."""
    for unit, name in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if count >= 0.9995 * unit:
            value = count / unit
            digits = 2 - int(math.log10(max(value, 1)))
            return f"{value:.{max(digits, 0)}f} {name}"
    return str(count)


def _arm(name: str, answers: list[dict[str, Any]]) -> ArmSummary:
    row = ARMS[name]
    mllm = summarize(answers) if answers else None
    return ArmSummary(name, row.title, row.description, mllm, claim=row.claim)


def print_summary(run_dir: Path, recipe: Recipe) -> None:
    """Print the end of a finished run: the verdict, one table of 80 columns, where its page is, and
    what to try next.

    The wide table is in `report/table.txt`; a run of an earlier version has only that one.
    """
    folder = run_dir / "report"
    end = folder / "end.txt"
    print((end if end.exists() else folder / "table.txt").read_text())
    print(f"report: {(folder / 'index.html').resolve()}")
    print(f"next:   {next_command(run_dir, recipe)}")


def next_command(run_dir: Path, recipe: Recipe) -> str:
    """Return what to try after a run: the comparison that it is about, for one arm a probe of its
    backbone, and where nothing was measured in closed loop, the robot."""
    arms = recipe.arms
    if recipe.measure == "offline":
        arm = "" if MAIN in arms else f" --arm {arms[-1]}"
        return f"roboalign serve {run_dir}{arm}"
    for before, after in compared(arms):
        return f"roboalign compare {run_dir} --arm {before} --arm {after}"
    return f"roboalign probe {run_dir} --arm {arms[0]}"


def _episodes(run_dir: Path, recipe: Recipe, arm: str) -> list[dict[str, Any]]:
    """Return the episode records of an arm over all seeds. Raises RoboAlignError if one is missing
    or damaged."""
    if recipe.measure == "offline":
        return []
    wanted = evaluation_episodes(recipe)
    records: list[dict[str, Any]] = []
    for seed in recipe.seeds:
        folder = run_dir / f"seed-{seed}" / "eval" / "rollouts" / arm
        records += read_episodes(folder / "episodes.jsonl", wanted, fix=ROLL_OUT.format(folder))
    return records


def _replays(run_dir: Path, recipe: Recipe) -> dict[str, Mapping[str, Any]]:
    """Return the open-loop comparison of each arm, of the first training seed; {} for a run that
    was measured in a simulator."""
    if recipe.measure == "benchmark":
        return {}
    folder = run_dir / f"seed-{recipe.seeds[0]}" / "eval" / "replay"
    return {arm: read_json(folder / arm / "replay.json") for arm in recipe.arms}


def _environment(run_dir: Path, recipe: Recipe, ledger: list[Mapping[str, Any]]) -> dict[str, str]:
    seconds = sum(row["seconds"] for row in ledger)
    base = read_json(run_dir / "base" / "stage.json")
    packages = ("torch", "transformers", *simulator_packages(recipe))
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": f"{cores()} x {_processor()}" + gpu,
        "stage time": f"{format_seconds(seconds)} summed over the stages, some of which ran side by side",
        "training seeds": ", ".join(map(str, recipe.seeds)),
        "model": f"{number_in_words(base['parameters'])} parameters, base: {base['source']}",
        "versions": installed_versions(packages) + f", Python {platform.python_version()}",
        "rendering": protocol_line(recipe),
    }


def commit() -> str:
    """Return the commit of the running source, with `+changes` if files differ from it; `unknown`
    outside a checkout."""
    here = Path(__file__).parent
    try:
        head, state = (
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
            for words in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--", str(here.parent)],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if state.stdout.strip() else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def read_ledger(run_dir: Path, stages: Iterable[str]) -> list[Mapping[str, Any]]:
    """Read one row per finished stage, in the order of `stages`: what it counted and its seconds.

    Stages of arms or seeds from an earlier recipe are still in the folder, but not part of this
    run.
    """
    hidden = {"key", "needs", "settings", "files"}
    files = [run_dir / name / "stage.json" for name in stages]
    rows = [read_json(path) for path in files if path.exists()]
    return [{key: value for key, value in row.items() if key not in hidden} for row in rows]


def _curves(run_dir: Path, recipe: Recipe) -> list[Curve]:
    curves = []
    if records := read_jsonl(run_dir / "base" / "pretrain" / "metrics.jsonl"):
        curves.append(Curve("base", "pretraining", records))
    trained = [backbone for backbone in backbones(recipe.arms) if backbone.curve]
    for seed in recipe.seeds:
        folder = run_dir / f"seed-{seed}"
        curves += stage_curves(trained, seed, partial(_log, folder))
        for arm in recipe.arms:
            if records := read_jsonl(folder / "head" / arm / "metrics.jsonl"):
                curves.append(Curve("head", f"{arm}, seed {seed}", records))
            if records := read_jsonl(folder / "online" / arm / "metrics.jsonl"):
                curves.append(Curve("online", f"{arm}, seed {seed}", records))
    return curves


def _log(folder: Path, stage: str) -> list[dict[str, Any]]:
    return read_jsonl(folder / stage / "metrics.jsonl")


def stage_curves(
    trained: Sequence[Backbone], seed: int, log: Callable[[str], list[dict[str, Any]]]
) -> list[Curve]:
    """Return the logs of the stages that train backbones with `seed`; `log` reads a stage's log, []
    if there is none."""
    axes = Counter(backbone.curve for backbone in trained)
    curves = []
    for backbone in trained:
        if records := log(backbone.stage):
            label = f"seed {seed}"
            if axes[backbone.curve] > 1:
                label = f"{_first_arm(backbone)}, {label}"
            curves.append(Curve(backbone.curve, label, records))
    return curves


def _first_arm(backbone: Backbone) -> str:
    return next(arm.name for arm in ARMS.values() if arm.backbone == backbone)


def _samples(
    run_dir: Path, recipe: Recipe, answers: dict[str, list[dict[str, Any]]]
) -> list[FrameSample]:
    """Return what SFT and RoboAlign said about the same frames, for the first training seed."""
    if not {"sft", "roboalign"} <= set(recipe.arms):
        return []
    first = {
        arm: [row for row in answers[arm] if row["run_seed"] == recipe.seeds[0]]
        for arm in ("sft", "roboalign")
    }
    heldout = read_conversations(mixture_folder(run_dir), "heldout")
    return frames_side_by_side(("sft", first["sft"]), ("roboalign", first["roboalign"]), heldout)


def _videos(run_dir: Path, recipe: Recipe) -> list[Video]:
    videos: list[Video] = []
    for arm in recipe.arms:
        folder = run_dir / f"seed-{recipe.seeds[0]}" / "eval" / "rollouts" / arm / "videos"
        # Of all videos in the folder, take one of each outcome: the page embeds them all.
        found: dict[str, Video] = {}
        for number, row in enumerate(stored_videos(folder)):
            path = video_file(folder, row, number)
            found.setdefault(
                row["outcome"], Video(arm, row["task"], row["seed"], row["outcome"], path)
            )
        videos += found.values()
    return videos


def stored_videos(folder: Path) -> list[Any]:
    """Return the rows of the index of a folder of videos; [] if it has none."""
    index = folder / "index.json"
    rows = read_json(index) if index.exists() else []
    if not isinstance(rows, list):
        raise RoboAlignError("expected a list of videos", where=str(index), fix=REMADE)
    return rows


def video_file(folder: Path, row: Any, number: int) -> Path:
    """Return the file of one row. Raises RoboAlignError if it is not a plain file of this folder,
    since the page embeds it."""
    where = f"{folder / 'index.json'}, row {number}"
    kinds = {"task": str, "seed": int, "outcome": str, "path": str}
    for key, kind in kinds.items():
        if not isinstance(row, dict) or not isinstance(row.get(key), kind):
            raise RoboAlignError(f"{key} is missing or no {kind.__name__}", where=where, fix=REMADE)
    path = folder / row["path"]
    if path.name in ("", "..") or path.name != row["path"] or path.is_symlink():
        raise RoboAlignError(
            f"path is {row['path']!r}, which is no plain file name in this folder",
            where=where,
            fix=REMADE,
        )
    return path
