"""Measure how often Meta-World's scripted experts succeed, as a table.

Run `python -m roboalign.sim.metaworld.experts [--tasks TASK ...]`.
"""

import argparse
from collections.abc import Mapping, Sequence

from roboalign.sim.collect import CollectConfig, collect, collected_table
from roboalign.sim.metaworld.environment import MetaWorld
from roboalign.sim.metaworld.instructions import TASKS


def expert_table(
    tasks: Sequence[str], noises: Sequence[float], *, episodes: int, workers: int
) -> str:
    """Return a Markdown table: how many of the seeds 0 to `episodes` - 1 end in success, and the
    mean steps to success."""
    columns = []
    for noise in noises:
        config = CollectConfig(
            episodes_per_task=episodes, attempts=1, noise=noise, steps_after_success=0
        )
        columns.append(collected_table(collect(tasks, MetaWorld(), config, workers=workers)))
    head = "".join(f" noise {noise:g} | steps |" for noise in noises)
    lines = [f"| task |{head}", "|---|" + "---|---|" * len(noises)]
    for task in tasks:
        lines.append(f"| {task} |" + "".join(_cells(column[task]) for column in columns))
    return "\n".join(lines)


def _cells(row: Mapping[str, int]) -> str:
    crashed = f", {row['crashed']} crashed" if row["crashed"] else ""
    steps = f"{row['frames'] / row['solved']:.0f}" if row["solved"] else "–"
    return f" {row['solved']}/{row['attempts']}{crashed} | {steps} |"


def main() -> None:
    """Print the table for the requested tasks."""
    parser = argparse.ArgumentParser(
        prog="python -m roboalign.sim.metaworld.experts", description=__doc__
    )
    parser.add_argument(
        "--tasks", nargs="+", default=sorted(TASKS), choices=sorted(TASKS), metavar="TASK"
    )
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.15])
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(
        expert_table(
            options.tasks, options.noise, episodes=options.episodes, workers=options.workers
        )
    )


if __name__ == "__main__":
    main()
