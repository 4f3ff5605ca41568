"""`roboalign causal`: does a policy act by what its reasoning says? The reasoning is kept or replaced
before each decision, on the same initial states and the same recorded frames."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_tree, locked, read_json, write_json
from roboalign.core.progress import Progress
from roboalign.evaluate.statistics import holm, mean_interval, paired_difference, proportion
from roboalign.evaluate.success import compare_arms
from roboalign.run.recipe import Recipe
from roboalign.run.variants import (
    REMOVE,
    AnyPolicy,
    Ground,
    choose_frames,
    closed_loop,
    find_ground,
    in_order,
    keyed,
    load_any,
    open_loop,
    recorded,
    require_same,
)
from roboalign.vla.best_of import Decides
from roboalign.vla.forced import CONDITIONS, Donor, Forced, thought_text

KEPT_REASONING = CONDITIONS[0]
DONORS = "donors.json"


class CausalSettings(Config):
    """How much a test of the reasoning measures."""

    tasks: tuple[str, ...] | None = None
    """Tasks; by default all alignment tasks for a token policy, all downstream tasks for a head."""
    episodes: int = Field(8, ge=1)
    """Initial states of each task that nothing was trained on; the same for every condition."""
    frames: int = Field(100, ge=1)
    """Frames of held-out demonstrations, evenly spaced, at which the action's error is taken."""
    donors: int = Field(200, ge=2)
    """Frames of training demonstrations whose reasonings take the place of the policy's own."""
    workers: int = Field(1, ge=1)
    """Processes that run episodes."""


def make_condition(donors: Sequence[Donor], policy: AnyPolicy, name: str) -> Decides:
    """Build a policy under one condition."""
    [condition] = [one for one in CONDITIONS if one == name]
    return Forced(policy, condition, donors)


def causal(
    run_dir: Path, recipe: Recipe, folder: Path, settings: CausalSettings, out: Path
) -> dict[str, Any]:
    """Measure the policy in `folder` under every condition, write the records and causal.json to
    `out`, and return the latter's content. What `out` has already is not measured again.

    Raises RoboAlignError if the policy writes no reasoning, or `out` has measurements of another
    one.
    """
    policy = load_any(folder)
    Forced(
        policy, KEPT_REASONING
    )  # refuses a policy without a reasoning before anything is measured
    ground = find_ground(run_dir, recipe, policy, settings.tasks, settings.episodes)
    frames = choose_frames(ground.heldout, settings.frames)
    with locked(out):
        rollout = ground.config.model_dump(exclude={"batch_size"})
        asked = {"policy": hash_tree(folder), "rollout": rollout, "donors": settings.donors}
        require_same(out, asked)
        donors = _donors(out / DONORS, policy, choose_frames(ground.training, settings.donors))
        _require_donors(donors, ground)
        make = functools.partial(make_condition, donors)
        names = list(CONDITIONS)
        opened = open_loop(out, policy, make, names, frames)
        closed = closed_loop(out, folder, make, names, ground, settings.workers)
        rows = [_row(name, opened, closed) for name in names]
        for row, p in zip(rows[1:], holm([one["p"] for one in rows[1:]]), strict=True):
            row["p_holm"] = p
        result = {
            "run": str(run_dir),
            "policy": str(folder),
            "kind": policy.kind,
            "settings": settings.model_dump(mode="json"),
            "rollout": rollout,
            "tasks": sorted({task for task, _ in ground.episodes}),
            "donors": len(donors),
            "conditions": rows,
        }
        write_json(out / "causal.json", result)
    return result


def _donors(path: Path, policy: AnyPolicy, frames: Sequence[Any]) -> list[Donor]:
    """Return the reasonings that the policy writes to these frames, from the file if it is there.

    Raises RoboAlignError if the file has those of other frames, as after a change of the tasks.
    """
    if path.is_file():
        found = [Donor.model_validate(one) for one in read_json(path, fix=REMOVE)]
        if [(one.episode_id, one.step) for one in found] != [
            (one.episode_id, t) for one, t in frames
        ]:
            raise RoboAlignError(
                "the folder has reasonings of other demonstrations, as of other --tasks",
                where=str(path),
                fix=REMOVE,
            )
        return found
    writer, donors = Forced(policy, KEPT_REASONING), []
    with Progress("reasonings", len(frames)) as progress:
        for one, t in frames:
            [thought] = writer.think([recorded(one, t)])
            donors.append(
                Donor(
                    instruction=one.instruction,
                    episode_id=one.episode_id,
                    step=t,
                    text=thought_text(policy.mllm, thought.ids),
                )
            )
            progress.advance()
    write_json(path, [one.model_dump() for one in donors])
    return donors


def _require_donors(donors: Sequence[Donor], ground: Ground) -> None:
    """Raise RoboAlignError if a measured task has no reasoning of another frame, or of another
    instruction, before any episode is run."""
    measured = {task for task, _ in ground.episodes}
    known = {one.instruction for one in donors}
    for task in ground.benchmark.tasks():
        if task.name in measured and (task.instruction not in known or len(known) < 2):
            raise RoboAlignError(
                f"{len(donors)} frames of demonstrations have no reasoning of {task.name}, or of "
                "no other task",
                where="--donors",
                fix="give a larger number, or other --tasks",
            )


_Rows = Sequence[Mapping[str, Any]]


def _row(name: str, opened: Mapping[str, _Rows], closed: Mapping[str, _Rows]) -> dict[str, Any]:
    """Return what one condition did, against the kept reasoning on the same states and frames."""
    finished = [row for row in closed[name] if row["crash"] is None]
    frames, kept = in_order(opened[name]), in_order(opened[KEPT_REASONING])
    owners = [row["episode_id"] for row in frames]
    decisions = sum(row["counts"]["decisions"] for row in finished)

    def share(count: str) -> float | None:
        total = sum(row["counts"].get(count, 0) for row in finished)
        return total / decisions if decisions else None

    errors = [row["l1"] for row in frames]
    row = {
        "condition": name,
        "success": asdict(proportion([one["success"] for one in finished])),
        "crashes": len(closed[name]) - len(finished),
        "changed": share("changed"),
        "holds": share("holds"),
        "l1": asdict(mean_interval(errors, clusters=owners)),
        "frames": len(frames),
        "frames_changed": float(np.mean([one["counts"]["changed"] for one in frames])),
    }
    if name == KEPT_REASONING:
        return row
    pair = compare_arms(keyed(closed[KEPT_REASONING]), keyed(closed[name]))
    difference = paired_difference([one["l1"] for one in kept], errors, clusters=owners)
    return {
        **row,
        "success_difference": pair["difference"],
        "p": pair["p"],
        "gained": pair["only_after"],
        "lost": pair["only_before"],
        "l1_difference": asdict(difference),
    }
