"""Read what a run, or published results, say about its policies, next to a column of the paper."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from roboalign.cli.comparison.paper_sources import SUITE_COLUMNS
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl
from roboalign.evaluate.success import RolloutRecord
from roboalign.report.comparison import Measured, compare_with_paper
from roboalign.report.paper_numbers import METRICS
from roboalign.run.arms import ARMS
from roboalign.run.load import load_recipe

ELSEWHERE = "libero-avg"
"""The column next to which a run on a benchmark that the paper does not have is printed."""


def offline(folder: Path) -> dict[str, Any] | None:
    """Return the open-loop errors of a run that was measured offline; None for any other."""
    path = folder / "recipe.yaml"
    if not path.is_file() or (recipe := load_recipe(path)).measure != "offline":
        return None
    summary = folder / "report" / "summary.json"
    found = read_json(summary, fix="give a run's folder whose report is made")
    try:
        errors = {arm: found["open_loop"][arm]["overall"] for arm in recipe.arms}
    except (KeyError, TypeError):
        raise RoboAlignError(
            "it has no open-loop errors", where=str(summary), fix="make the report again"
        ) from None
    return {"name": recipe.name, "open_loop": errors, "closed_loop": None}


def comparison(folder: Path, metric: str) -> dict[str, Any]:
    """Return `compare_with_paper` of one folder."""
    titles = {name: arm.title for name, arm in ARMS.items()}
    run = read_measured(folder)
    if _has_column(run, metric):
        run = replace(run, benchmark=METRICS[metric].benchmark)
    return compare_with_paper(run, METRICS[metric], titles)


def _has_column(run: Measured, metric: str) -> bool:
    """Return whether the run measured tasks of the column's suite alone, or of all four suites."""
    suites = {task.partition("/")[0] for task in run.tasks}
    columns = {SUITE_COLUMNS.get(suite, "").lower() for suite in suites}
    return columns == ({metric.removeprefix("libero-")}) or (
        metric == ELSEWHERE and suites == set(SUITE_COLUMNS)
    )


def read_measured(folder: Path) -> Measured:
    """Read what a run's folder, or a folder of published results (`tools/publish.py`), says about
    its policies."""
    published = (folder / "summary.json").is_file()
    path = folder / "summary.json" if published else folder / "report" / "summary.json"
    summary: dict[str, Any] = read_json(
        path, fix="give a run's folder whose report is made, or one of docs/results/"
    )
    recipe = load_recipe(folder / "recipe.yaml")
    try:
        arms, model = summary["success"]["arms"], summary["environment"]["model"]
    except (KeyError, TypeError):
        raise RoboAlignError(
            "it has no success rates or no environment",
            where=str(path),
            fix="make the report again",
        ) from None
    return Measured(
        name=recipe.name,
        benchmark=recipe.collect.benchmark,
        tasks=recipe.collect.downstream_names(),
        model=model,
        counts=recipe.baselines.counts,
        success=arms,
        episodes={
            arm: found for arm in arms if (found := _episodes(folder, arm, recipe.seeds, published))
        },
    )


def _episodes(
    folder: Path, arm: str, seeds: tuple[int, ...], published: bool
) -> list[RolloutRecord]:
    """Return the records of an arm over all training seeds; [] if those of one seed are missing."""
    pattern = (
        "seed-{}-episodes-{}.jsonl" if published else "seed-{}/eval/rollouts/{}/episodes.jsonl"
    )
    found = [read_jsonl(folder / pattern.format(seed, arm)) for seed in seeds]
    return [row for rows in found for row in rows] if all(found) else []
