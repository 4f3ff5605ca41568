"""`roboalign table`: the success rates of runs and of published results next to the paper's
numbers."""

import argparse
import json
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl
from roboalign.evaluate.success import RolloutRecord
from roboalign.report.comparison import Measured, compare_with_paper, format_comparison
from roboalign.report.paper_numbers import METRICS
from roboalign.run.arms import ARMS
from roboalign.run.load import load_recipe


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the runs and for the paper's numbers."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or one of docs/results/"
    )
    parser.add_argument(
        "--metric", default="libero-avg", help=f"column of the paper: {', '.join(METRICS)}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> int:
    """Print the tables."""
    print(table(options.runs, options.metric, as_json=options.json))
    return 0


def table(folders: list[str], metric: str, *, as_json: bool = False) -> str:
    """Return one table per folder, as text or as JSON (a list). Raises RoboAlignError if one holds
    no results."""
    if metric not in METRICS:
        raise RoboAlignError(
            f"the paper has no column `{metric}` here",
            where="--metric",
            fix=f"use one of {', '.join(METRICS)}",
        )
    compared = [comparison(Path(folder), metric) for folder in folders]
    return (
        json.dumps(compared, indent=2) if as_json else "\n".join(map(format_comparison, compared))
    )


def comparison(folder: Path, metric: str) -> dict[str, Any]:
    """Return `compare_with_paper` of one folder."""
    titles = {name: arm.title for name, arm in ARMS.items()}
    return compare_with_paper(read_measured(folder), METRICS[metric], titles)


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
