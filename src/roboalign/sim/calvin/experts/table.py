"""Measure how often CALVIN's scripted experts succeed, as a table.

Run `python -m roboalign.sim.calvin.experts.table --checkout FOLDER [--tasks TASK ...]`.
"""

import argparse
import time
from collections.abc import Iterator, Sequence

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import EnvironmentCrash
from roboalign.sim.calvin.chains import LENGTH
from roboalign.sim.calvin.config import CalvinConfig
from roboalign.sim.calvin.demonstrations import (
    TASK_PREFIX,
    DemonstratedCalvin,
    DemonstratedCalvinEnvironment,
)
from roboalign.sim.calvin.environment import MEASURED_SCENE, ChainEnvironment
from roboalign.sim.calvin.experts.catalog import expert_moves, expert_tasks
from roboalign.sim.calvin.experts.hand import OPEN, Hand


def expert_rows(
    benchmark: DemonstratedCalvin,
    tasks: Sequence[str],
    seeds: Sequence[int],
    scene: str = MEASURED_SCENE,
) -> Iterator[str]:
    """Yield a Markdown row for each task: solved of those that could be prepared, mean steps, and
    how many could not be prepared."""
    known = {one.name: one for one in benchmark.tasks()}
    for task in tasks:
        environment = DemonstratedCalvinEnvironment(
            known[TASK_PREFIX + task], benchmark.config, scene
        )
        outcomes = [_solve(environment, seed) for seed in seeds]
        environment.close()
        steps = [steps for prepared, steps in outcomes if prepared and steps is not None]
        begun = sum(prepared for prepared, _ in outcomes)
        mean = f"{np.mean(steps):.0f}" if steps else "–"
        yield f"| {task} | {len(steps)}/{begun} | {mean} | {len(outcomes) - begun} |"


def _solve(environment: DemonstratedCalvinEnvironment, seed: int) -> tuple[bool, int | None]:
    """Return whether the start could be prepared, and the steps to success, None without it."""
    try:
        environment.reset(seed)
        expert = environment.expert()
    except (EnvironmentCrash, RoboAlignError):  # a block that does not stay where it was put
        return False, None
    for step in range(1, environment.max_steps + 1):
        if environment.step(expert()):
            return True, step
    return True, None


def expert_chain(environment: ChainEnvironment, number: int) -> int:
    """Run a measured chain by the experts of its tasks; return how many it solved in a row."""
    environment.reset(number)
    hand, solved = Hand(environment.world), 0
    moves, still = expert_moves(environment.task, hand), np.array([0.0] * 6 + [OPEN])
    while True:
        action = next(moves, still)
        outcome = environment.step(action)
        still[6] = action[6]
        if outcome.solved or outcome.ended:
            return outcome.progress
        if outcome.progress > solved:
            solved, moves = outcome.progress, expert_moves(environment.task, hand)


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(
        prog="python -m roboalign.sim.calvin.experts.table", description=__doc__
    )
    parser.add_argument("--checkout", required=True)
    parser.add_argument("--tasks", nargs="+", default=expert_tasks(), metavar="TASK")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--scene", choices="ABCD", default=MEASURED_SCENE)
    parser.add_argument("--chains", type=int, help="run this many measured chains instead")
    options = parser.parse_args()
    if options.chains:
        environment = ChainEnvironment(CalvinConfig(checkout=options.checkout, render="tiny"))
        lengths = [expert_chain(environment, number) for number in range(options.chains)]
        shares = [f"{sum(n >= k for n in lengths)}/{len(lengths)}" for k in range(1, LENGTH + 1)]
        print(f"1 to {LENGTH} in a row: {', '.join(shares)}; mean length {np.mean(lengths):.2f}")
        environment.close()
        return
    benchmark = DemonstratedCalvin(CalvinConfig(checkout=options.checkout, render="tiny"))
    seeds = range(options.first_seed, options.first_seed + options.episodes)
    began = time.monotonic()
    print("| task | solved | steps | not prepared |\n|---|---|---|---|")
    for row in expert_rows(benchmark, options.tasks, seeds, options.scene):
        print(row, flush=True)
    print(f"\n{time.monotonic() - began:.0f} seconds")


if __name__ == "__main__":
    main()
