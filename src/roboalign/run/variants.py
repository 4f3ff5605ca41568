"""Measure variants of one policy on the same initial states and the same recorded frames: what
`roboalign think-curve` and `roboalign causal` share."""

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import append_jsonl, read_json, write_json
from roboalign.core.machine import device_of
from roboalign.core.progress import Progress
from roboalign.core.state import State, read_records
from roboalign.episodes.episode import Episode
from roboalign.evaluate.success import EpisodeState
from roboalign.run.benchmark import alignment_benchmark, measured_benchmark, rollout_config
from roboalign.run.demos import DemosPart
from roboalign.run.folder import split_demonstrations
from roboalign.run.recipe import Recipe
from roboalign.run.stage import limit_threads
from roboalign.run.stages.evaluate import refuse_leaks
from roboalign.sim.base import Benchmark, Observation
from roboalign.sim.parallel import evaluate_parallel
from roboalign.sim.rollout import Act, EpisodeResult, Planned, RolloutConfig
from roboalign.sim.varied import (
    Varied,
    act_by_variant,
    split_variant,
    varied_episodes,
    with_variant,
)
from roboalign.vla.best_of import Decides
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy import Policy
from roboalign.vla.token_policy import TokenPolicy

AnyPolicy = HeadPolicy | TokenPolicy
Make = Callable[[AnyPolicy, str], Decides]
"""Build a variant of a policy by its name; picklable."""
EPISODE_RECORDS, FRAME_RECORDS, ASKED_FILE = "episodes.jsonl", "frames.jsonl", "asked.json"
REMOVE = "give another --out, or remove the folder"


class VariantEpisode(EpisodeState):
    """One line of episodes.jsonl."""

    variant: str


class VariantFrame(State):
    """One line of frames.jsonl: one decision at a recorded frame."""

    variant: str
    episode_id: str
    step: int
    l1: float = Field(ge=0)
    """To the recorded chunk, normalized units."""
    seconds: float = Field(ge=0)
    """Of this decision alone."""
    counts: dict[str, int]


@dataclass(frozen=True)
class Ground:
    """Where variants are measured."""

    benchmark: Benchmark
    episodes: list[tuple[str, int]]
    """(task, seed): initial states that nothing was trained on."""
    config: RolloutConfig
    training: list[Episode]
    """Demonstrations of the same part that the policy's stages learned from."""
    heldout: list[Episode]
    """Those that they did not."""


def find_ground(
    run_dir: Path, recipe: Recipe, policy: AnyPolicy, tasks: Sequence[str] | None, count: int
) -> Ground:
    """Return what to measure on: `count` unseen initial states of each task, and the
    demonstrations.

    By default the tasks are those that the policy learned to act in: the alignment tasks for a
    token policy, the downstream tasks for a head. Raises RoboAlignError if `tasks` are of neither,
    or an initial state is among the demonstrations.
    """
    collect = recipe.collect
    if recipe.measure == "offline":
        raise RoboAlignError(
            "the run has no simulator in which its policies could be measured",
            where="measure",
            fix="give a run whose recipe has `measure: benchmark`",
        )
    part: DemosPart = "align" if isinstance(policy, TokenPolicy) else "downstream"
    if tasks is not None and set(tasks) <= set(collect.downstream_names()):
        part = "downstream"
    names = collect.align_names() if part == "align" else collect.downstream_names()
    for task in set(tasks or ()) - set(names):
        raise RoboAlignError(
            f"{task!r} is none of the {part} tasks",
            where="--tasks",
            fix=f"choose of {', '.join(names)}",
        )
    if part == "align":
        benchmark: Benchmark = alignment_benchmark(recipe)
        spec = collect.align_spec
        config = spec.rollout(collect.align_settings, recipe.rollout)
    else:
        benchmark, spec, config = measured_benchmark(recipe), collect.spec, rollout_config(recipe)
    chosen = list(dict.fromkeys(tasks or names))  # a task named twice is measured once
    seeds = spec.evaluation_seeds[:count]
    episodes = [(task, seed) for task in chosen for seed in seeds]
    refuse_leaks(run_dir, benchmark, episodes)
    training, heldout = (
        [one for one in group if one.task in chosen]
        for group in split_demonstrations(run_dir, recipe, part)
    )
    return Ground(benchmark, episodes, config, training, heldout)


def require_same(folder: Path, asked: Mapping[str, Any]) -> None:
    """Write what is asked for, or raise RoboAlignError if the folder has measurements of something
    else."""
    path = folder / ASKED_FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(asked))
        return
    found = read_json(path, fix=REMOVE)
    differs = [name for name in asked if found.get(name) != asked[name]]
    if differs:
        raise RoboAlignError(
            f"the folder has measurements with another {differs[0]}", where=str(path), fix=REMOVE
        )


def closed_loop(
    folder: Path, policy: Path, make: Make, names: Sequence[str], ground: Ground, workers: int
) -> dict[str, list[dict[str, Any]]]:
    """Run every episode under every variant and return the records by variant; those that
    episodes.jsonl has are not run again."""
    path = folder / EPISODE_RECORDS
    done = {(row["variant"], row["task"], row["seed"]) for row in _episode_rows(path)}
    missing = [
        (task, seed)
        for task, seed in varied_episodes(names, ground.episodes)
        if (*split_variant(task), seed) not in done
    ]

    def keep(result: EpisodeResult) -> None:
        variant, task = split_variant(result.task)
        append_jsonl(path, {"variant": variant, **replace(result, task=task).record()})

    if missing:
        evaluate_parallel(
            functools.partial(_load_variants, policy, make),
            Varied(ground.benchmark),
            missing,
            ground.config,
            workers=workers,
            on_result=keep,
        )
    wanted = set(varied_episodes(names, ground.episodes))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for row in _episode_rows(path):
        if (with_variant(row["variant"], row["task"]), row["seed"]) in wanted:
            rows[row["variant"]].append(row)
    return rows


def _load_variants(policy: Path, make: Make) -> Act:
    """Return the policy's variants as the simulator's workers call them."""
    limit_threads(1)
    loaded = load_any(policy)
    plain = fresh(loaded)

    def variant_act(name: str) -> Act:
        decides = make(plain(), name)
        return lambda observations, keys: Planned(*decides.act_and_count(observations, keys))

    return act_by_variant(variant_act)


def load_any(folder: Path) -> AnyPolicy:
    """Open a policy of either kind on the device that there is."""
    policy = Policy.load(folder, str(device_of("auto")))
    assert isinstance(policy, HeadPolicy | TokenPolicy)
    return policy


def fresh(policy: AnyPolicy) -> Callable[[], AnyPolicy]:
    """Return what makes copies of a policy that share its weights and nothing that it remembers."""

    def make() -> AnyPolicy:
        if isinstance(policy, TokenPolicy):
            return replace(policy, counts=Counter(), memory=type(policy.memory)())
        return replace(policy, counts=Counter())

    return make


def open_loop(
    folder: Path,
    policy: AnyPolicy,
    make: Make,
    names: Sequence[str],
    frames: Sequence[tuple[Episode, int]],
) -> dict[str, list[dict[str, Any]]]:
    """Decide once at every frame under every variant, one at a time, and return the records by
    variant; those that frames.jsonl has are not made again."""
    path = folder / FRAME_RECORDS
    rows = read_records(path, VariantFrame, REMOVE)
    done = {(row["variant"], row["episode_id"], row["step"]) for row in rows}
    left = {
        name: [(one, t) for one, t in frames if (name, one.episode_id, t) not in done]
        for name in names
    }
    total = len(names) * len(frames)
    with Progress("frames", total, start=total - sum(map(len, left.values()))) as progress:
        for name, missing in left.items():
            if not missing:
                continue
            decides = make(fresh(policy)(), name)
            _decide(decides, policy, *missing[0])  # warms up
            for one, t in missing:
                append_jsonl(path, {"variant": name, **_decide(decides, policy, one, t)})
                progress.advance(note=name)
    wanted = {(one.episode_id, t) for one, t in frames}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for row in read_records(path, VariantFrame, REMOVE):
        if row["variant"] in found and (row["episode_id"], row["step"]) in wanted:
            found[row["variant"]].append(row)
    return found


def _decide(decides: Decides, policy: AnyPolicy, one: Episode, t: int) -> dict[str, Any]:
    seen = recorded(one, t)
    began = time.perf_counter()
    chunks, counts = decides.act_and_count([seen], [("frame", one.episode_id, t)])
    seconds = time.perf_counter() - began
    target = policy.normalized(one.chunks(policy.horizon)[t], seen)
    errors = np.abs(policy.normalized(chunks[0], seen) - target)
    # An oracle returns all its candidates, and is judged by the best one.
    l1 = errors.reshape(-1, *target.shape).mean(axis=(1, 2)).min()
    return {
        "episode_id": one.episode_id,
        "step": t,
        "l1": float(l1),
        "seconds": seconds,
        "counts": dict(counts[0]),
    }


def recorded(one: Episode, t: int) -> Observation:
    """Return what a policy would have seen at a step of a demonstration."""
    images = {camera: one.frame(camera, t) for camera in one.cameras}
    return Observation(images, one.state[t], one.instruction)


def keyed(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str, int], Mapping[str, Any]]:
    """Return episode records by what pairs them."""
    return {(0, row["task"], row["seed"]): row for row in rows}


def in_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return frame records in one order under every variant."""
    return sorted(rows, key=lambda row: (row["episode_id"], row["step"]))


def choose_frames(episodes: Sequence[Episode], count: int) -> list[tuple[Episode, int]]:
    """Return `count` frames, evenly spaced over all of the episodes; fewer if there are fewer.

    Raises RoboAlignError if there is none.
    """
    every = [(one, t) for one in episodes for t in range(len(one))]
    if not every:
        raise RoboAlignError(
            "no demonstration was held out", where="frames", fix="collect more demonstrations"
        )
    places = np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int)
    return [every[place] for place in places]


def _episode_rows(path: Path) -> list[dict[str, Any]]:
    return read_records(path, VariantEpisode, REMOVE)
