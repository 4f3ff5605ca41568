"""`roboalign compare`: two runs, or two arms of one, on the same initial states, compared in pairs.

Reads folders of runs and of published results. A difference that would make comparing two rates
meaningless (other episodes, another benchmark, other cameras, other limits) is refused by name. All
other differences between the recipes are listed: they are what such a comparison is about.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roboalign.cli.comparison.answers import compare_answers
from roboalign.cli.comparison.benches import compare_benches, is_benched
from roboalign.cli.comparison.protocols import only_a_place, protocols_differ
from roboalign.cli.comparison.scores import compare_scores, is_scored
from roboalign.cli.comparison.sides import (
    RunSide,
    leaves,
    pair_table,
    read_side,
    refuse_other_episodes,
    versions_of,
)
from roboalign.cli.comparison.text import format_compared
from roboalign.cli.comparison.trials import compare_trials
from roboalign.core.errors import RoboAlignError
from roboalign.run.benchmark import head_cameras
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
        help="two runs' folders (or of docs/results/, `roboalign eval` or `roboalign bench`), or one; or "
        "the log of `roboalign trial`",
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
    if all(is_benched(Path(run)) for run in options.runs):
        print(compare_benches(options.runs, as_json=options.json))
        return 0
    if any(is_scored(Path(run)) for run in options.runs):
        print(compare_scores(options.runs, options.arm, options.seed, as_json=options.json))
        return 0
    print(compare_runs(options.runs, options.arm, options.seed, as_json=options.json))
    return 0


def compare_runs(
    runs: Sequence[str],
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    *,
    as_json: bool = False,
) -> str:
    """Compare two runs with one arm of both (or one arm of each), or two arms of one run, as text
    or JSON: their success in pairs, and their answers on held-out frames and visited states.

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
    other = [
        {"key": key, "before": a, "after": b}
        for key, a, b in recipe_differences(before.recipe, after.recipe)
        if not _below(key, (*_meaning(before.recipe, after.recipe), *EPISODE_KEYS, *NEUTRAL))
    ]
    result = {
        **pair_table(before, after),
        "answers": compare_answers(before, after, seeds),
        "recipes_differ_in": other,
        "versions": [versions_of(before), versions_of(after)],
    }
    return json.dumps(result, indent=2) if as_json else format_compared(result)


def recipe_differences(before: Recipe, after: Recipe) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value before, value after) of every setting that differs; None for a side
    that lacks it."""
    a, b = (dict(leaves(recipe.model_dump(mode="json"))) for recipe in (before, after))
    return [(key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)]


def refuse_other_settings(before: RunSide, after: RunSide) -> None:
    """Raise RoboAlignError that names every setting of benchmark and rollout in which the two
    differ."""
    found = [
        f"`{key}` is {a!r} and {b!r}"
        for key, a, b in recipe_differences(before.recipe, after.recipe)
        if _below(key, _meaning(before.recipe, after.recipe))
        and not only_a_place(key, before, after)
    ]
    found = found or protocols_differ(before, after)
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


def _below(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)
