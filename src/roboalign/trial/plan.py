"""Draw the order of trials and their arms from a study, lock it, and read it back unchanged.

A locked plan is two files. The plan itself says what is done when, and names no arm: it can be shown
to everybody. Its key says which arm each trial has, and belongs to the machine that routes alone.
Each file holds the sha256 of its content, and the plan that of its key.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from roboalign.core.config import Config, validated
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, read_json
from roboalign.core.yaml import read_yaml
from roboalign.trial.power import Sized, trials_needed
from roboalign.trial.study import Study, StudyTask

CODE_LETTERS = "ACDEFGHJKLMNPQRTUVWXY34679"
"""Letters and digits that are not taken for one another on paper."""
PLAN_ENDING = ".plan.json"
KEY_ENDING = ".key.json"
LOG_ENDING = ".log.jsonl"


class PlannedTrial(Config):
    """One trial, without its arm."""

    number: int
    """1 for the first."""
    code: str
    """Names the trial on videos and in notes; says nothing of the arm."""
    block: int
    """Trials of one block have the same task and initial condition, one for each arm."""
    task: str
    condition: str


class LockedPlan(Config):
    """What is done, in which order; the arms of the trials are in the key."""

    kind: Literal["roboalign trial plan 1"] = "roboalign trial plan 1"
    name: str
    arms: tuple[str, ...]
    comparisons: tuple[tuple[str, str], ...]
    alpha: float
    """Two-sided error of the first kind, over all comparisons."""
    tasks: dict[str, StudyTask]
    seconds: float | None
    answer_after: float
    failures: tuple[str, ...]
    exclusions: tuple[str, ...]
    pictures: dict[str, dict[str, str]]
    """Task -> initial condition -> its photo, a JPEG in base64."""
    trials: tuple[PlannedTrial, ...]
    key_sha256: str

    @property
    def sha256(self) -> str:
        """Return the digest that names the plan in the log and in the results."""
        return content_sha256(self.model_dump(mode="json"))


class PlanKey(Config):
    """Which arm each trial has."""

    kind: Literal["roboalign trial key 1"] = "roboalign trial key 1"
    seed: int
    arms: dict[str, str]
    """Name -> address of its server."""
    assignment: tuple[str, ...]
    """Arm of each trial, in their order."""


def content_sha256(value: Any) -> str:
    """Return the sha256 of a JSON value, written in one way: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_study(path: str | Path) -> Study:
    """Read a study. Raises RoboAlignError naming the key at fault."""
    values = read_yaml(Path(path), fix="write a study: docs/how-to/run-robot-trials.md")
    study: Study = validated(Study, values, str(path))
    return study


def number_of_trials(study: Study) -> tuple[int, Sized | None]:
    """Return the trials of each task and arm, and the power calculation if the study asks for one."""
    if study.power is None:
        assert study.trials is not None
        return study.trials, None
    sized = trials_needed(study.power, len(study.tasks), len(study.tested))
    return sized.trials, sized


def draw_plan(
    study: Study, pictures: Mapping[str, dict[str, str]] | None = None
) -> tuple[LockedPlan, PlanKey]:
    """Return the plan of a study and its key; the same study with the same seed gives the same.

    Tasks are done one after another. Within a task, every block is one initial condition with all
    arms, one after another. Initial conditions are used equally often (to within one) in random
    order, and so is each place of a block by each arm.
    """
    seed = secrets.randbits(32) if study.seed is None else study.seed
    order, codes = np.random.default_rng(seed).spawn(2)
    trials, _ = number_of_trials(study)
    rows: list[tuple[str, str, str, int]] = []
    for name, task in study.tasks.items():
        conditions = _equally_often(task.conditions, trials, order)
        for arms, condition in zip(_orders(list(study.arms), trials, order), conditions):
            block = rows[-1][3] + 1 if rows else 1
            rows += [(arm, name, condition, block) for arm in arms]
    key = PlanKey(seed=seed, arms=dict(study.arms), assignment=tuple(row[0] for row in rows))
    planned = tuple(
        PlannedTrial(number=number, code=code, block=block, task=task, condition=condition)
        for number, (code, (_, task, condition, block)) in enumerate(
            zip(_codes(len(rows), codes), rows), start=1
        )
    )
    plan = LockedPlan(
        name=study.name,
        arms=tuple(study.arms),
        comparisons=study.tested,
        alpha=study.power.alpha if study.power else 0.05,
        tasks=study.tasks,
        seconds=study.seconds,
        answer_after=study.answer_after,
        failures=study.failures,
        exclusions=study.exclusions,
        pictures=dict(pictures or {}),
        trials=planned,
        key_sha256=content_sha256(key.model_dump(mode="json")),
    )
    return plan, key


def key_path(plan: str | Path) -> Path:
    """Return where the key of a plan is. Raises RoboAlignError if the file is not named as a plan."""
    path = Path(plan)
    if not path.name.endswith(PLAN_ENDING):
        raise RoboAlignError(
            f"the name of a plan ends with {PLAN_ENDING}",
            where=str(path),
            fix="give the file that `roboalign trial plan` wrote",
        )
    return path.with_name(path.name.removesuffix(PLAN_ENDING) + KEY_ENDING)


def lock_plan(path: str | Path, plan: LockedPlan, key: PlanKey) -> None:
    """Write a plan and its key, which only its owner may read.

    Raises RoboAlignError if another plan is locked there.
    """
    at = key_path(path)
    if Path(path).exists() and at.exists():
        before, before_key = read_plan(path), read_key(path)
        if (before, before_key) == (plan, key):
            return
    if Path(path).exists():  # a key without a plan was cut off by a kill: nobody has seen its plan
        raise RoboAlignError(
            "another plan is locked here, and a locked plan does not change",
            where=str(path),
            fix="run this plan, or lock the new one in another file with --out",
        )
    _write(at, key, mode=0o600)
    _write(Path(path), plan, mode=0o644)


def read_plan(path: str | Path) -> LockedPlan:
    """Read a locked plan. Raises RoboAlignError if it was changed after it was locked."""
    plan: LockedPlan = _read(Path(path), LockedPlan)
    return plan


def read_key(path: str | Path) -> PlanKey:
    """Read the key of the plan at `path`. Raises RoboAlignError if it is changed, or another plan's."""
    plan, at = read_plan(path), key_path(path)
    key: PlanKey = _read(at, PlanKey)
    if content_sha256(key.model_dump(mode="json")) != plan.key_sha256:
        raise RoboAlignError(
            "this is the key of another plan", where=str(at), fix=f"restore the key of {path}"
        )
    return key


def _write(path: Path, value: LockedPlan | PlanKey, mode: int) -> None:
    content = value.model_dump(mode="json")
    with atomic_path(path) as temporary:
        temporary.touch(mode=mode)
        temporary.write_text(
            json.dumps(content | {"sha256": content_sha256(content)}, indent=1) + "\n"
        )
    path.chmod(mode)


def _read(path: Path, kind: type[Config]) -> Any:
    content = read_json(path, fix="give the file that `roboalign trial plan` wrote, with its key")
    if not isinstance(content, dict) or "sha256" not in content:
        raise RoboAlignError(
            "this is no locked plan: it has no sha256",
            where=str(path),
            fix="lock a study with: roboalign trial plan STUDY",
        )
    said = content.pop("sha256")
    if content_sha256(content) != said:
        raise RoboAlignError(
            "it was changed after it was locked: its content has another sha256",
            where=str(path),
            fix="restore the file; a changed study is another plan, with a log of its own",
        )
    return validated(kind, content, str(path))


def _orders(arms: list[str], blocks: int, rng: np.random.Generator) -> list[list[str]]:
    """Return the order of the arms in each block: each arm has each place equally often, to within
    one."""
    rows: list[list[str]] = []
    while len(rows) < blocks:
        base = [arms[i] for i in rng.permutation(len(arms))]
        square = [base[i:] + base[:i] for i in range(len(base))]
        taken = rng.permutation(len(square))[: blocks - len(rows)]
        rows += [square[i] for i in taken]
    return [rows[i] for i in rng.permutation(len(rows))]


def _equally_often(names: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Return `count` names in random order, each equally often, to within one."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += [names[i] for i in rng.permutation(len(names))[: count - len(drawn)]]
    return [drawn[i] for i in rng.permutation(len(drawn))]


def _codes(count: int, rng: np.random.Generator) -> list[str]:
    """Return distinct codes of four characters."""
    base = len(CODE_LETTERS)
    drawn = rng.choice(base**4, size=count, replace=False)
    return [
        "".join(CODE_LETTERS[int(number) // base**place % base] for place in range(4))
        for number in drawn
    ]
