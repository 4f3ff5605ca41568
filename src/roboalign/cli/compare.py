"""`roboalign compare`: two runs, or two arms of one, on the same initial states, compared in pairs.

Reads folders of runs and of published results. A difference that would make comparing two rates
meaningless (other episodes, another benchmark, other cameras, other limits) is refused by name. All
other differences between the recipes are listed: they are what such a comparison is about.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roboalign.cli.compare_text import format_compared
from roboalign.cli.compare_trials import compare_trials
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.evaluate.statistics import Estimate, paired_difference
from roboalign.evaluate.success import RolloutRecord, read_episodes, success_table
from roboalign.run.benchmark import evaluation_episodes, head_cameras, simulator_packages
from roboalign.run.load import load_recipe
from roboalign.run.recipe import Recipe

MEANING = (
    "collect.benchmark",
    "collect.head_cameras",
    "rollout.max_steps",
    "rollout.replan_every",
)
"""Keys of a recipe that must agree, together with the benchmark's own section. They define the
world, what a policy sees of it and how often, and how long an episode runs."""
EPISODE_KEYS = (
    "collect.downstream_tasks",
    "rollout.episodes",
    "seeds",
)  # these are compared episode by episode
NEUTRAL = ("name", "arms", "parallel", "rollout.batch_size")  # these change no outcome


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for runs, arms and seeds."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="two runs' folders (or of docs/results/), or one; or the log of `roboalign trial`",
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        help="the arm of both runs (roboalign where none is given); twice: of the first and of "
        "the second run, or two arms of one run",
    )
    parser.add_argument(
        "--seed",
        action="append",
        type=int,
        default=[],
        metavar="N",
        help="compare this training seed only; may be repeated",
    )
    parser.add_argument(
        "--plan", metavar="PLAN", help="of a log of trials: its plan; without it the log's name"
    )
    parser.add_argument(
        "--unfinished",
        action="store_true",
        help="of a log of trials: unblind it before its plan is done, which is written down",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> int:
    """Print the comparison."""
    if Path(options.runs[0]).is_file():
        print(compare_trials(options))
        return 0
    if options.plan or options.unfinished:
        raise RoboAlignError(
            "--plan and --unfinished are for a log of trials, and this is no file",
            where=options.runs[0],
            fix="give the log that `roboalign trial run` wrote",
        )
    print(compare_runs(options.runs, options.arm, options.seed, as_json=options.json))
    return 0


@dataclass(frozen=True)
class Side:
    """One arm of one run. `name` distinguishes it from the other side."""

    name: str
    folder: Path
    recipe: Recipe
    records: list[RolloutRecord]


def compare_runs(
    runs: Sequence[str],
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    *,
    as_json: bool = False,
) -> str:
    """Compare two runs with one arm of both (or one arm of each), or two arms of one run, as text
    or JSON.

    `seeds`: these training seeds only. Raises RoboAlignError if the sides do not share episodes and
    settings.
    """
    first, second = _sides(runs, arms)
    before, after = (
        read_side(Path(run), arm, seeds, named=first[0] != second[0])
        for run, arm in (first, second)
    )
    refuse_other_settings(before, after)
    refuse_other_episodes(before, after)
    table = success_table({before.name: before.records, after.name: after.records})
    (pair,) = table.pop("pairs")
    pair |= {
        "tasks": len({row["task"] for row in before.records}),
        "by_training_seed": _by_training_seed(before, after),
        "by_state": asdict(_by_state(before, after)),
    }
    other = [
        {"key": key, "before": a, "after": b}
        for key, a, b in recipe_differences(before.recipe, after.recipe)
        if not _below(key, (*_meaning(before.recipe, after.recipe), *EPISODE_KEYS, *NEUTRAL))
    ]
    result = {
        **table,
        "pair": pair,
        "recipes_differ_in": other,
        "versions": [_versions(before), _versions(after)],
    }
    return json.dumps(result, indent=2) if as_json else format_compared(result)


def read_side(folder: Path, arm: str, seeds: Sequence[int] = (), *, named: bool = True) -> Side:
    """Read the recipe and the episodes of an arm. Raises RoboAlignError if the run lacks it or some
    of its episodes."""
    if not (folder / "recipe.yaml").is_file():
        raise RoboAlignError(
            "no run here: recipe.yaml does not exist",
            where=str(folder),
            fix="give a run's folder, or one of docs/results/",
        )
    recipe = load_recipe(folder / "recipe.yaml")
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
    return Side(f"{folder} {arm}" if named else arm, folder, recipe, records)


def recipe_differences(before: Recipe, after: Recipe) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value before, value after) of every setting that differs; None for a side
    that lacks it."""
    a, b = (dict(_leaves(recipe.model_dump(mode="json"))) for recipe in (before, after))
    return [(key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)]


def refuse_other_settings(before: Side, after: Side) -> None:
    """Raise RoboAlignError that names every setting of benchmark and rollout in which the two
    differ."""
    found = [
        f"`{key}` is {a!r} and {b!r}"
        for key, a, b in recipe_differences(before.recipe, after.recipe)
        if _below(key, _meaning(before.recipe, after.recipe))
    ]
    if found:
        raise RoboAlignError(
            f"not measured alike: {'; '.join(found)}",
            where=f"{before.folder} and {after.folder}",
            fix="run one of them again under the settings of the other",
        )


def _meaning(before: Recipe, after: Recipe) -> tuple[str, ...]:
    """Return the keys that must agree; `mix.camera` counts only if it changes the camera that the
    head sees."""
    shown = ("mix.camera",) if head_cameras(before) != head_cameras(after) else ()
    return (*MEANING, *shown, f"collect.{before.collect.spec.section}")


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
                    if before.recipe.seeds == after.recipe.seeds
                    else ", or take --seed N, a training seed of both"
                ),
            )


def _sides(runs: Sequence[str], arms: Sequence[str]) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return (run, arm) before and after. The arm is RoboAlign if none is named."""
    if not 1 <= len(runs) <= 2 or len(arms) > 2:
        raise RoboAlignError(
            f"{len(runs)} runs and {len(arms)} arms: a comparison has two sides",
            where="compare",
            fix="give two runs, or one run and two arms",
        )
    chosen = list(arms) or ["roboalign"]
    first, second = (str(runs[0]), chosen[0]), (str(runs[-1]), chosen[-1])
    if (Path(first[0]).resolve(), first[1]) == (Path(second[0]).resolve(), second[1]):
        raise RoboAlignError(
            f"{first[1]} of {first[0]} would be compared with itself",
            where="compare",
            fix="give a second run, or --arm twice: before, then after",
        )
    return first, second


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


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _below(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _versions(side: Side) -> dict[str, str]:
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
