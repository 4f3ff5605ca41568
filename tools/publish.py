"""Copies what a run has to show into a small folder, and prints its tables.

    python -m tools.publish runs/quickstart docs/results/quickstart

The page is not kept: `roboalign report FOLDER --out page.html` makes it again from the records. The picture of its
head is made by a browser, on the page of the run, below 300 kB:

    chromium --headless --hide-scrollbars --window-size=1200,1250 \\
        --screenshot=docs/results/quickstart/report.png runs/quickstart/report/index.html
"""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roboalign.cli.comparison.paper_runs import comparison
from roboalign.core.command import exit_status
from roboalign.core.files import atomic_path, read_json
from roboalign.report.comparison import markdown_comparison
from roboalign.report.tables import ARM_COLUMNS, lookup
from roboalign.report.text import interval, value
from roboalign.run.arms import ARMS

BASELINES = {name for name, arm in ARMS.items() if arm.simulated}
RL = {arm.backbone.stage for arm in ARMS.values() if arm.backbone.curve == "rl"}
COLUMNS = (
    "VQA, direct",
    "Prefix, direct",
    "Prefix, reasoned",
    "Format",
    "L1, direct",
    "L1, reasoned",
)


def publish(run_dir: str | Path, target: str | Path) -> str:
    """Write the summary, the recipe and the raw records of `run_dir` to `target`; return its tables.

    They are Markdown, with 95% intervals; the second, of a run with baselines, has the paper's numbers. A folder that
    exists at `target` is replaced, its picture too. Raises RoboAlignError where the run has no report.
    """
    run_dir = Path(run_dir)
    summary = read_json(
        run_dir / "report" / "summary.json", fix=f"roboalign report RECIPE --out {run_dir}"
    )
    arms = sorted((summary.get("success") or {}).get("arms", {}))
    with atomic_path(target) as folder:
        folder.mkdir(parents=True)
        for name in ("summary.json", "table.txt"):
            shutil.copy(run_dir / "report" / name, folder / name)
        shutil.copy(run_dir / "recipe.yaml", folder / "recipe.yaml")
        shutil.copy(run_dir / "collect" / "experts.json", folder / "experts.json")
        for seed in sorted(run_dir.glob("seed-*")):
            for stage in sorted(RL):
                if (seed / stage / "metrics.jsonl").is_file():
                    shutil.copy(
                        seed / stage / "metrics.jsonl",
                        folder / f"{seed.name}-{stage}-metrics.jsonl",
                    )
            for arm in arms:  # and no other folder: those of outdated settings stand beside them
                if (episodes := seed / "eval" / "rollouts" / arm / "episodes.jsonl").is_file():
                    shutil.copy(episodes, folder / f"{seed.name}-episodes-{arm}.jsonl")
                if (protocol := seed / "eval" / "rollouts" / arm / "protocol.json").is_file():
                    shutil.copy(
                        protocol, folder / "protocol.json"
                    )  # one for all: the recipe alone decides it
    if not BASELINES & set(arms):
        return markdown_table(summary)
    return (
        markdown_table(summary) + "\n" + markdown_comparison(comparison(Path(target), "libero-avg"))
    )


def markdown_table(summary: Mapping[str, Any]) -> str:
    """One arm a row: success and what its backbone answers on held-out frames."""
    success = (summary.get("success") or {}).get("arms", {})
    first = next(iter(success.values()), {"overall": {"n": 0}})
    head = ["backbone", f"success, {first['overall']['n']} episodes", *COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in ARMS.items():
        if name not in summary["arms"] and name not in success:
            continue
        cells = [_rate(lookup(success, (name, "overall")))]
        cells += [
            _estimate(lookup(summary["arms"], (name, *path)), kind)
            for column, path, kind in ARM_COLUMNS
            if column in COLUMNS
        ]
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _rate(row: Mapping[str, Any] | None) -> str:
    if not row or not row["n"]:
        return "–"
    bounds = f"({100 * row['low']:.0f} to {100 * row['high']:.0f})"
    return f"{row['successes']}/{row['n']} = {100 * row['rate']:.0f}% {bounds}"


def _estimate(estimate: Mapping[str, Any] | None, kind: str) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    bounds = interval(estimate, kind)
    return f"{value(estimate, kind)} ({bounds})" if bounds else value(estimate, kind)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: print(publish(sys.argv[1], sys.argv[2])) or 0))
