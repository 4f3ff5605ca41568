"""`roboalign probe --readings`: rank what the heads of a run could read, without training one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from roboalign.actions.normalize import ActionStats
from roboalign.core.files import write_json
from roboalign.core.progress import Progress
from roboalign.episodes.episode import Episode
from roboalign.evaluate.probe import accuracy, label_frames
from roboalign.evaluate.probe_features import ProbeSettings, choose_episodes
from roboalign.evaluate.readout import mean_errors
from roboalign.evaluate.statistics import mean_interval, paired_difference
from roboalign.evaluate.sweep import ReadingChoice, SweepFrames, sweep_backbone
from roboalign.mllm.load import load_mllm
from roboalign.report.console import fold, grid, render
from roboalign.report.text import interval, number_text, percent, signed_text
from roboalign.run.benchmark import head_view
from roboalign.run.folder import read_demonstrations
from roboalign.run.load import load_recipe
from roboalign.run.probed import ProbedBackbone, find_backbones
from roboalign.run.recipe import Recipe


def sweep(run: str | Path, settings: ProbeSettings, out: str | Path) -> str:
    """Write the ranking of every backbone to `out` as JSON; return it as text. The run's folder is
    only read.

    Raises RoboAlignError if the run lacks what is asked for.
    """
    run_dir = Path(run)
    recipe = load_recipe(run_dir / "recipe.yaml")
    found, absent = find_backbones(recipe, run_dir, settings.arms, settings.seeds)
    chosen = choose_episodes(read_demonstrations(run_dir, "downstream"), settings)
    frames = _frames(chosen, recipe, settings)
    owners = [one.episode_id for one, _ in frames.shown()]
    tasks = [one.task for one, _ in frames.shown()]
    readings = set(settings.readings or ())
    with Progress("probe", len(found) * len(readings) * len(owners)) as progress:
        ranked = [
            _ranked(
                backbone,
                sweep_backbone(
                    load_mllm(backbone.folder), frames, head_view(recipe), settings, progress
                ),
                recipe,
                owners,
                settings.max_reasoning_tokens,
            )
            for backbone in found
        ]
    result = {
        "run": str(run),
        "recipe": recipe.name,
        "settings": settings.model_dump(mode="json"),
        "absent": absent,
        "frames": len(owners),
        "episodes": len(set(owners)),
        "horizon": recipe.tokenizer.horizon,
        "baselines": {
            "mean": _error(mean_errors(frames.chunks, frames.owner, ["all"] * len(tasks)), owners),
            "task mean": _error(mean_errors(frames.chunks, frames.owner, tasks), owners),
        },
        "backbones": ranked,
    }
    write_json(out, result)
    return format_sweep(result) + f"written to {out}\n"


def _frames(
    chosen: Mapping[str, list[Episode]], recipe: Recipe, settings: ProbeSettings
) -> SweepFrames:
    """Return the frames of the probe, with the normalized chunks that follow them."""
    labelled = {
        task: label_frames(task, [one.state for one in episodes], settings.phases, settings.every)
        for task, episodes in chosen.items()
    }
    every = [one for episodes in chosen.values() for one in episodes]
    stats = ActionStats.fit(
        np.concatenate([one.actions for one in every]),
        method=recipe.head_training.statistics,
        clip=True,
    )
    chunks, owner = [], []
    for task, one in labelled.items():
        for number, episode in enumerate(chosen[task]):
            steps = one.step[one.owner == number]
            chunks.append(stats.normalize(episode.chunks(recipe.tokenizer.horizon)[steps]))
            owner += [every.index(episode)] * len(steps)
    return SweepFrames(chosen, labelled, np.concatenate(chunks), np.array(owner))


def _ranked(
    backbone: ProbedBackbone,
    choices: Sequence[ReadingChoice],
    recipe: Recipe,
    owners: list[str],
    limit: int,
) -> dict[str, Any]:
    """Return the choices of a backbone, the smallest error first, each against the recipe's."""
    current = _current(choices, recipe, limit)
    rows = []
    for one in sorted(choices, key=lambda choice: choice.errors.mean()):
        against = None
        if current is not None and one is not current:
            difference = paired_difference(current.errors, one.errors, clusters=owners)
            against = asdict(difference)
        rows.append(
            {
                "reading": one.reading,
                "layer": one.layer,
                "final_norm": one.final_norm,
                "error": _error(one.errors, owners),
                "against_recipe": against,
                "phase": asdict(accuracy(one.correct, owners)),
                "tokens": one.tokens,
                "seconds": one.seconds,
                "of_recipe": one is current,
            }
        )
    return {
        "arm": backbone.arm,
        "seed": backbone.seed,
        "folder": str(backbone.folder),
        "choices": rows,
    }


def _current(choices: Sequence[ReadingChoice], recipe: Recipe, limit: int) -> ReadingChoice | None:
    """Return the recipe's choice, None if it is not among them: `limit` is the probe's
    max_reasoning_tokens. The model's topmost layer always has the norm, and is one choice."""
    wanted = recipe.backbone
    if wanted.reading == "reasoned" and wanted.max_reasoning_tokens != limit:
        return None
    there = [one for one in choices if (one.reading, one.layer) == (wanted.reading, wanted.layer)]
    same = (one for one in there if len(there) == 1 or one.final_norm == wanted.final_norm)
    return next(same, None)


def _error(errors: np.ndarray, owners: Sequence[str]) -> dict[str, Any]:
    return asdict(mean_interval(errors, clusters=owners))


def format_sweep(result: Mapping[str, Any]) -> str:
    """Format the results of `sweep` as tables of 80 columns."""
    settings = result["settings"]
    lines = [
        f"{result['run']}: what could the heads read? A linear readout of the next "
        f"{result['horizon']} actions, and the probe of {settings['phases']} phases.",
        f"{result['episodes']} demonstrations, {result['frames']} frames; tokens: "
        f"{settings['pool']}. Error: L1 in normalized units on episodes that the readout has not "
        "seen. 95% intervals draw episodes with replacement.",
    ]
    if result["absent"]:
        lines.append(f"not done yet, and left out: {', '.join(result['absent'])}")
    for name, text in (("mean", "the mean chunk"), ("task mean", "the task's mean chunk")):
        error = result["baselines"][name]
        shown = number_text(error["value"])
        lines.append(f"Without a model, {text}: {shown} ({interval(error, 'number')}).")
    tables = [_table(one) for one in result["backbones"]]
    notes = [
        "* is the recipe's choice; `to *` is the error minus its error, below zero where it is "
        "better. A linear readout of pooled tokens is not the head: close choices are worth a "
        "head each."
    ]
    return "\n".join([*map(fold, lines), "", *map(render, tables), *map(fold, notes)]) + "\n"


def _table(backbone: Mapping[str, Any]) -> Table:
    seed = "" if backbone["seed"] is None else f", seed {backbone['seed']}"
    table = grid(
        *("reads", "layer", "error", "to *", "phase", "tokens", "ms"),
        title=f"{backbone['arm']}{seed}",
    )
    for row in backbone["choices"]:
        mark = "*" if row["of_recipe"] else ""
        against, phase = row["against_recipe"], row["phase"]
        table.add_row(
            f"{row['reading']}{mark}",
            f"{row['layer']}{' norm' if row['final_norm'] else ''}",
            _cell(row["error"], "number", number_text(row["error"]["value"])),
            "" if against is None else _cell(against, "signed", signed_text(against["value"])),
            _cell(phase, "percent", percent(phase["value"])),
            f"{row['tokens']:.0f}",
            f"{1000 * row['seconds']:.1f}",
        )
    return table


def _cell(estimate: Mapping[str, Any], kind: str, value: str) -> str:
    """Return a value with its interval below it."""
    bounds = interval(estimate, kind)
    return f"{value}\n{bounds}" if bounds else value
