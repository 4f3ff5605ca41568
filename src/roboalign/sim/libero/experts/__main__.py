"""Measure the experts: `python -m roboalign.sim.libero.experts --suites libero_object --episodes 10`."""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from roboalign.core.command import exit_status
from roboalign.core.errors import RoboAlignError
from roboalign.sim.libero.environment import FIRST_PLACEMENT
from roboalign.sim.libero.experts.measure import MAX_STEPS, Attempt, Settings, code_digest, measure
from roboalign.sim.libero.suites import find_task


def _row(name: str, attempts: list[Attempt]) -> str:
    """Format one line: successes, their Wilson interval and the mean steps of the successes."""
    won = [attempt for attempt in attempts if attempt.success]
    low, high = binomtest(len(won), len(attempts)).proportion_ci(method="wilson")
    steps = f"{np.mean([attempt.steps for attempt in won]):.0f}" if won else "-"
    crashes = sum(attempt.crashed for attempt in attempts)
    return f"| {name} | {len(won)}/{len(attempts)} | {100 * low:.0f} to {100 * high:.0f} % | {steps} | {crashes} |"


def main() -> int:
    """Print one line per task, per suite and overall, and write the attempts. The same command resumes after a kill."""
    parser = argparse.ArgumentParser(
        prog="python -m roboalign.sim.libero.experts", description=__doc__
    )
    parser.add_argument("--suites", nargs="+", default=list(MAX_STEPS)[:4], choices=list(MAX_STEPS))
    parser.add_argument(
        "--tasks", nargs="+", default=[], help="suite/task of these suites: only these are measured"
    )
    parser.add_argument("--episodes", type=int, default=10, help="placements of each task")
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        help="standard deviation of the noise on the position action",
    )
    parser.add_argument(
        "--seed", type=int, default=FIRST_PLACEMENT, help="the first placement's seed"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("libero-experts.json"), help="where the attempts are kept"
    )
    args = parser.parse_args()
    return exit_status(lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
    settings = Settings(args.episodes, args.noise, args.seed, code_digest())
    everything: list[Attempt] = []
    for name in args.tasks:
        if find_task(name).name.partition("/")[0] not in args.suites:
            raise RoboAlignError(
                f"{name!r} is of none of the suites", where="--tasks", fix="name its suite too"
            )
    print(
        "| task | successes | 95% interval | mean steps | crashes |\n|---|---|---|---|---|",
        flush=True,
    )
    for suite in args.suites:
        attempts = []
        for of_task in measure(suite, settings, args.out, args.tasks):
            attempts += of_task
            print(_row(of_task[0].task, of_task), flush=True)
        if attempts:
            print(_row(f"**{suite}**", attempts), flush=True)
        everything += attempts
    print(_row("**all**", everything))
    return 0


if __name__ == "__main__":
    sys.exit(main())
