"""`roboalign probe`: what a run's backbones know of the robot's progress, layer by layer
(`evaluate/probe.py`).

The frames are from the downstream demonstrations, on which no backbone was trained. A frame's
features are the hidden states of the direct action question, as the head reads them, by default the
mean over all tokens. The head attends to every token, and in a low layer the last token has
gathered hardly anything yet.
"""

import argparse
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from roboalign.cli.options import add_settings
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_json
from roboalign.core.progress import Progress
from roboalign.episodes.episode import Episode
from roboalign.evaluate.probe import LabelledFrames, accuracy, baselines, knn, label_frames
from roboalign.evaluate.probe_features import (
    ProbeSettings,
    choose_episodes,
    chosen_layers,
    frame_states,
    small_images,
)
from roboalign.evaluate.statistics import paired_difference
from roboalign.mllm.load import load_mllm
from roboalign.report.probe_text import format_probe
from roboalign.run.arms import pairs as compared
from roboalign.run.benchmark import head_cameras
from roboalign.run.folder import read_demonstrations
from roboalign.run.load import load_recipe
from roboalign.run.probe_sweep import sweep
from roboalign.run.probed import ProbedBackbone, find_backbones
from roboalign.vla.features import View


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the run and the fields of `ProbeSettings`."""
    parser.add_argument("run", help="a run's folder; it is only read")
    parser.add_argument("--out", default="probe.json", help="the file for the results")
    names = [name for name in ProbeSettings.model_fields if name not in ("arms", "seeds")]
    add_settings(parser, ProbeSettings, *names)
    parser.add_argument(
        "--arm",
        action="append",
        dest="arms",
        help="probe this arm; without it all whose backbone is done; may be repeated",
    )
    parser.add_argument(
        "--seed",
        action="append",
        type=int,
        dest="seeds",
        metavar="N",
        help="probe this training seed; without it all; may be repeated",
    )


def main(options: argparse.Namespace) -> int:
    """Run the probe, or the sweep of readings, and print the table."""
    given = {name: getattr(options, name) for name in ProbeSettings.model_fields}
    settings = probe_settings(given)
    work = sweep if settings.readings else probe
    print(work(options.run, settings, options.out))
    return 0


def probe_settings(given: Mapping[str, Any]) -> ProbeSettings:
    """Build the settings from the options that were given; None is the default. Raises
    RoboAlignError on an invalid value."""
    try:
        return ProbeSettings.model_validate(
            {name: value for name, value in given.items() if value is not None}
        )
    except ValidationError as error:
        fault = error.errors()[0]
        option = f"--{str(fault['loc'][0]).replace('_', '-')}"
        raise RoboAlignError(
            f"{fault['msg']}, got {fault['input']}", where=option, fix="give another value"
        ) from None


Correct = Mapping[int, np.ndarray]
"""Layer -> bool [N]: whether each frame got its correct label."""
Seeds = Mapping[int | None, Correct]
"""The same by training seed; None for what all seeds share."""


def probe(run: str | Path, settings: ProbeSettings, out: str | Path) -> str:
    """Write the results to `out` as JSON; return them as text. The run's folder is only read.

    Raises RoboAlignError if the run lacks what is asked for.
    """
    run_dir = Path(run)
    recipe = load_recipe(run_dir / "recipe.yaml")
    found, absent = find_backbones(recipe, run_dir, settings.arms, settings.seeds)
    chosen = choose_episodes(read_demonstrations(run_dir, "downstream"), settings)
    frames = {
        task: label_frames(task, [one.state for one in episodes], settings.phases, settings.every)
        for task, episodes in chosen.items()
    }
    cameras = head_cameras(recipe)
    plain = [
        baselines(frames[task], small_images(episodes, frames[task], cameras), settings.k)
        for task, episodes in chosen.items()
    ]
    labels = np.concatenate([one.label for one in frames.values()])
    predicted = {name: np.concatenate([one[name] for one in plain]) for name in plain[0]}
    view = View(layer=recipe.backbone.layer, cameras=cameras, cameras_as=recipe.backbone.cameras_as)
    correct = _classify(found, chosen, frames, view, settings)
    owners = [f"{task}/{number}" for task, one in frames.items() for number in one.owner]
    result = {
        "run": str(run),
        "recipe": recipe.name,
        "settings": settings.model_dump(mode="json"),
        "head_layer": recipe.backbone.layer,
        "camera": ", ".join(cameras),
        "absent": absent,
        "frames": len(labels),
        "episodes": len(set(owners)),
        "tasks": {task: _describe(chosen[task], frames[task]) for task in chosen},
        **_measure({name: found == labels for name, found in predicted.items()}, correct, owners),
    }
    write_json(out, result)
    return format_probe(result) + f"written to {out}\n"


def _classify(
    backbones: Sequence[ProbedBackbone],
    chosen: Mapping[str, list[Episode]],
    frames: Mapping[str, LabelledFrames],
    view: View,
    settings: ProbeSettings,
) -> list[tuple[ProbedBackbone, Correct]]:
    """Return, for each backbone and layer, whether each frame, task after task, got its correct
    label."""
    results: list[tuple[ProbedBackbone, Correct]] = []
    total = len(backbones) * sum(len(one.label) for one in frames.values())
    with Progress("probe", total) as progress:
        for backbone in backbones:
            mllm = load_mllm(backbone.folder)
            layers = chosen_layers(mllm, settings.layers)
            right: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
            for task, episodes in chosen.items():
                one = frames[task]
                states = frame_states(mllm, episodes, one, view, layers, settings, progress)
                for layer, features in zip(layers, states):
                    right[layer].append(
                        knn(features, one.label, one.owner, k=settings.k) == one.label
                    )
            results.append(
                (backbone, {layer: np.concatenate(parts) for layer, parts in right.items()})
            )
    return results


def _describe(episodes: Sequence[Episode], frames: LabelledFrames) -> dict[str, Any]:
    return {
        "demonstrations": [one.episode_id for one in episodes],
        "steps": [len(one) for one in episodes],
        "reference": episodes[frames.reference].episode_id,
        "frames": len(frames.label),
        "frames_of_phase": np.bincount(frames.label, minlength=frames.phases).tolist(),
    }


def _measure(
    plain: Mapping[str, np.ndarray],
    backbones: Sequence[tuple[ProbedBackbone, Correct]],
    owners: list[str],
) -> dict[str, Any]:
    """Return accuracies of baselines, backbones and arms (training seeds averaged), and paired
    differences, with intervals."""
    row = functools.partial(_row, errs=~plain["time"], owners=owners)
    arms: dict[str, Seeds] = {}
    for backbone, correct in backbones:
        arms[backbone.arm] = {**arms.get(backbone.arm, {}), backbone.seed: correct}
    layers = list(backbones[0][1])
    without: dict[str, Seeds] = {
        name: {None: dict.fromkeys(layers, plain[name])} for name in ("time", "pixels")
    }
    sides = {**arms, **without}
    pairs = compared(arms) + [(name, arm) for name in without for arm in arms]
    return {
        "baselines": {name: row(correct) for name, correct in plain.items()},
        "backbones": [
            {
                "arm": backbone.arm,
                "seed": backbone.seed,
                "folder": str(backbone.folder),
                "layers": {str(layer): row(one) for layer, one in correct.items()},
            }
            for backbone, correct in backbones
        ],
        "arms": {
            arm: {str(layer): row(_mean(seeds, layer)) for layer in layers}
            for arm, seeds in arms.items()
        },
        "differences": [
            {
                "before": a,
                "after": b,
                "seeds": shared,
                "layers": {
                    str(layer): asdict(
                        paired_difference(
                            _mean(sides[a], layer, shared),
                            _mean(sides[b], layer, shared),
                            clusters=owners,
                        )
                    )
                    for layer in layers
                },
            }
            for a, b in pairs
            if (shared := _shared(sides[a], sides[b]))
        ],
    }


def _row(correct: np.ndarray, errs: np.ndarray, owners: list[str]) -> dict[str, Any]:
    """Return accuracy over all frames, in each task, and on frames where the clock step / length
    errs (bool [N]).

    A model whose features were only that clock would score 0 there.
    """
    tasks = [owner.rsplit("/", 1)[0] for owner in owners]
    by_task = {
        task: [i for i, one in enumerate(tasks) if one == task] for task in dict.fromkeys(tasks)
    }
    parts = {"where_time_errs": np.flatnonzero(errs).tolist(), **by_task}
    found = {
        name: asdict(accuracy(correct[places], [owners[i] for i in places]))
        for name, places in parts.items()
    }
    return {
        "accuracy": asdict(accuracy(correct, owners)),
        "where_time_errs": found.pop("where_time_errs"),
        "tasks": found,
    }


def _shared(a: Seeds, b: Seeds) -> list[int | None]:
    """Return the training seeds by which two arms are compared; an arm without seeds is compared
    with every seed of the other."""
    if None in a or None in b:
        return list({**a, **b})
    return [seed for seed in a if seed in b]


def _mean(seeds: Seeds, layer: int, wanted: Sequence[int | None] | None = None) -> np.ndarray:
    """Return float [N]: the share of training seeds (those `wanted`; None: the only one) that found
    a frame's label."""
    return np.mean(
        [
            correct[layer]
            for seed, correct in seeds.items()
            if not wanted or seed in (None, *wanted)
        ],
        axis=0,
    )
