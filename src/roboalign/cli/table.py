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
from roboalign.report.console import fold, grid, render
from roboalign.report.paper_numbers import METRICS
from roboalign.report.text import number_text
from roboalign.run.arms import ARMS
from roboalign.run.benchmark import OFFLINE_NOTE
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
    found = [offline(Path(one)) or comparison(Path(one), metric) for one in folders]
    if as_json:
        return json.dumps(found, indent=2)
    return "\n".join(
        format_offline(one) if "open_loop" in one else format_comparison(one) for one in found
    )


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


def format_offline(found: dict[str, Any]) -> str:
    """Format the open-loop errors of one run as text."""
    table = grid("arm", "open-loop error", title=found["name"])
    for arm, overall in found["open_loop"].items():
        table.add_row(arm, number_text(overall["policy"]["value"]))
    for method, title in (("mean", "mean action"), ("hold", "last action held")):
        overall = next(iter(found["open_loop"].values()))
        table.add_row(title, number_text(overall[method]["value"]))
    return render(table) + fold(OFFLINE_NOTE) + "\n"


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
