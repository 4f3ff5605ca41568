"""The two sides of `roboalign compare`: their records, whether these pair, and the numbers of the pairs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.evaluate.statistics import Estimate, paired_difference
from roboalign.evaluate.success import RolloutRecord, read_episodes, success_table
from roboalign.run.benchmark import evaluation_episodes, simulator_packages
from roboalign.run.load import load_recipe
from roboalign.run.recipe import Recipe


@dataclass(frozen=True)
class Side:
    """The records of one side. `name` distinguishes it from the other side."""

    name: str
    folder: Path
    records: Sequence[RolloutRecord]


@dataclass(frozen=True)
class RunSide(Side):
    """One arm of one run."""

    recipe: Recipe
    arm: str
    protocol: dict[str, Any] | None
    """What the evaluation wrote down, such as the commits of a simulator; None if it is not there."""


def read_side(folder: Path, arm: str, seeds: Sequence[int] = (), *, named: bool = True) -> RunSide:
    """Read the recipe and the episodes of an arm. Raises RoboAlignError if the run lacks it or some
    of its episodes."""
    if not (folder / "recipe.yaml").is_file():
        raise RoboAlignError(
            "no run here: recipe.yaml does not exist",
            where=str(folder),
            fix="give a run's folder, or one of docs/results/",
        )
    recipe = load_recipe(folder / "recipe.yaml")
    if recipe.measure == "offline":
        raise RoboAlignError(
            "nothing was measured in closed loop, so there are no episodes to compare",
            where=str(folder),
            fix=f"see the open-loop errors: roboalign table {folder}",
        )
    if arm not in recipe.arms:
        raise RoboAlignError(
            f"the run has no arm {arm!r}",
            where=str(folder),
            fix=f"choose of {', '.join(recipe.arms)} with --arm",
        )
    if unknown := sorted(set(seeds) - set(recipe.seeds)):
        raise RoboAlignError(
            f"the run has no training seed {unknown[0]}",
            where=str(folder),
            fix=f"choose of {', '.join(map(str, recipe.seeds))} with --seed",
        )
    wanted, records = evaluation_episodes(recipe), list[RolloutRecord]()
    fix = f"roboalign run {folder / 'recipe.yaml'} --out {folder} --until eval"
    for seed in seeds or recipe.seeds:
        found = read_episodes(_records_path(folder, seed, arm), wanted, fix)
        records += [{**row, "run_seed": seed} for row in found]
    written = _records_path(folder, (seeds or recipe.seeds)[0], arm).parent / "protocol.json"
    protocol = read_json(written) if written.is_file() else None
    return RunSide(f"{folder} {arm}" if named else arm, folder, records, recipe, arm, protocol)


def refuse_other_episodes(before: Side, after: Side) -> None:
    """Raise RoboAlignError if the episodes (training seed, task, episode seed) are not the same."""
    a, b = (
        {(row["run_seed"], row["task"], row["seed"]) for row in side.records}
        for side in (before, after)
    )
    for side, extra in ((before, a - b), (after, b - a)):
        if extra:
            run_seed, task, seed = min(extra)
            shape = " and ".join(
                f"{len({t for _, t, _ in keys})} tasks, {len({s for _, _, s in keys})} episodes of "
                f"each, training seeds {sorted({r for r, _, _ in keys})}"
                for keys in (a, b)
            )
            raise RoboAlignError(
                f"{len(extra)} episodes are in this one only, as {task} seed {seed} of training seed {run_seed} "
                f"({shape})",
                where=side.name,
                fix="evaluate both on the same episodes"
                + (
                    ""
                    if {r for r, _, _ in a} == {r for r, _, _ in b}
                    else ", or take --seed N, a training seed of both"
                ),
            )


def pair_table(before: Side, after: Side) -> dict[str, Any]:
    """Return the rates of both sides by arm, and `pair`, their difference on the same episodes; call
    after the refusals."""
    table = success_table({before.name: before.records, after.name: after.records})
    (pair,) = table.pop("pairs")
    pair |= {
        "tasks": len({row["task"] for row in before.records}),
        "by_training_seed": _by_training_seed(before, after),
        "by_state": asdict(_by_state(before, after)),
    }
    return {**table, "pair": pair}


def _pairs(before: Side, after: Side) -> list[tuple[RolloutRecord, RolloutRecord]]:
    """Return the same episodes of both, without those in which either crashed; call after the
    refusals."""
    others = {(row["run_seed"], row["task"], row["seed"]): row for row in after.records}
    both = [(row, others[row["run_seed"], row["task"], row["seed"]]) for row in before.records]
    return [(a, b) for a, b in both if a["crash"] is None and b["crash"] is None]


def _by_state(before: Side, after: Side) -> Estimate:
    """Return the difference with an interval that resamples initial states.

    Several training seeds on one state add no new state.
    """
    pairs = _pairs(before, after)
    return paired_difference(
        [a["success"] for a, _ in pairs],
        [b["success"] for _, b in pairs],
        clusters=[(a["task"], a["seed"]) for a, _ in pairs],
    )


def _by_training_seed(before: Side, after: Side) -> dict[str, dict[str, int]]:
    rows: dict[str, dict[str, int]] = {}
    for a, b in _pairs(before, after):
        row = rows.setdefault(str(a["run_seed"]), {"n": 0, "gained": 0})
        row["n"] += 1
        row["gained"] += int(b["success"]) - int(a["success"])
    return rows


def _records_path(folder: Path, seed: int, arm: str) -> Path:
    """Return the path of the records; published results (`tools/publish.py`) keep theirs next to
    the recipe."""
    published = (folder / "summary.json").is_file()
    name = (
        f"seed-{seed}-episodes-{arm}.jsonl"
        if published
        else f"seed-{seed}/eval/rollouts/{arm}/episodes.jsonl"
    )
    return folder / name


def versions_of(side: RunSide) -> dict[str, str]:
    """Return package -> version, as the report recorded them; {} if there is no report yet."""
    path = side.folder / "summary.json"
    path = path if path.is_file() else side.folder / "report" / "summary.json"
    if not path.is_file():
        return {}
    written = str((read_json(path).get("environment") or {}).get("versions", ""))
    return {
        name: found[1]
        for name in simulator_packages(side.recipe)
        if (found := re.search(rf"{name} ([\w.+-]+)", written))
    }


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings below nested groups by their dotted key."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the keys of which two sides have other values, with both."""
    return [
        {"key": key, "before": a.get(key), "after": b.get(key)}
        for key in {**a, **b}
        if a.get(key) != b.get(key)
    ]


def refuse_differences(a: Mapping[str, Any], b: Mapping[str, Any], *, where: str, fix: str) -> None:
    """Raise RoboAlignError naming each key of which two sides have other values."""
    differ = [
        f"`{one['key']}` is {one['before']!r} and {one['after']!r}" for one in differing(a, b)
    ]
    if differ:
        raise RoboAlignError(f"not measured alike: {'; '.join(differ)}", where=where, fix=fix)
