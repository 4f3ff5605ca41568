"""Speed of Meta-World here: drawing in both render modes, and evaluation episodes against the straightforward loop.

    OMP_NUM_THREADS=1 python benchmarks/simulator.py [--episodes 2] [--repeats 3] [--json PATH]

The straightforward loop builds a fresh environment for each episode, draws every step as the model asks for, and runs
one episode at a time. Ours takes environments from a pool, draws only when the policy looks (every 8 steps), in the
fast mode. Both execute the same action chunks (no policy is in the time) and must end each episode in the same state.
Times are CPU seconds of this one process, so that load on the machine distorts them less; the two sides run in turn,
and ratios are taken within a repeat. Medians over repeats are printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.core.files import write_json
from roboalign.sim.base import Observation
from roboalign.sim.metaworld.environment import MetaWorld, MetaWorldConfig, MetaWorldEnvironment
from roboalign.sim.rollout import EnvironmentPool, Key, RolloutConfig, rollout_batch

TASKS = ("reach-v3", "drawer-open-v3", "hammer-v3")
STEPS, REPLAN = 48, 8


def cpu_seconds(call: Callable[[], Any]) -> float:
    """CPU time of one call in this process, all threads."""
    began = time.process_time()
    call()
    return time.process_time() - began


def act(observations: list[Observation], keys: list[Key]) -> np.ndarray:
    """Random chunks [k, REPLAN, 4], fixed by the keys."""
    return np.stack(
        [np.random.default_rng([seed, step]).uniform(-1, 1, (REPLAN, 4)) for _, seed, step in keys]
    )


def straightforward(episodes: list[tuple[str, int]]) -> list[np.ndarray]:
    """Final joint positions of each episode: a fresh environment, every step drawn."""
    ends = []
    world = MetaWorld(MetaWorldConfig(render="default"))
    for task, seed in episodes:
        environment = world.make(task)
        environment.reset(seed)
        solved, step = False, 0
        while step < STEPS and not solved:
            observation = environment.observe()
            if step % REPLAN == 0:
                chunk = act([observation], [(task, seed, step)])[0]
            solved = environment.step(chunk[step % REPLAN])
            step += 1
        ends.append(environment.data.qpos.copy())
        environment.close()
    return ends


def pooled(pool: EnvironmentPool, episodes: list[tuple[str, int]]) -> None:
    """The same episodes as `rollout_batch` runs them."""
    results = list(
        rollout_batch(act, pool, episodes, RolloutConfig(replan_every=REPLAN, max_steps=STEPS))
    )
    if any(result.crash for result in results):
        raise RuntimeError(f"an episode crashed: {results}")


def drawing(repeats: int, frames: int) -> dict[str, list[float]]:
    """Per repeat: frames a CPU second in each mode, steps a CPU second without drawing, episode resets a CPU second."""
    environments: dict[str, MetaWorldEnvironment] = {}
    for mode in ("default", "fast"):
        environments[mode] = MetaWorld(MetaWorldConfig(render=mode)).make("drawer-open-v3")
        environments[mode].reset(0)
        environments[mode].render()
    fast, rates = environments["fast"], {"default": [], "fast": [], "steps": [], "resets": []}
    for _ in range(repeats):
        rates["default"].append(
            frames
            / 10
            / cpu_seconds(lambda: [environments["default"].render() for _ in range(frames // 10)])
        )
        rates["fast"].append(frames / cpu_seconds(lambda: [fast.render() for _ in range(frames)]))
        rates["resets"].append(20 / cpu_seconds(lambda: [fast.reset(seed) for seed in range(20)]))
        rates["steps"].append(
            400 / cpu_seconds(lambda: [fast.step(np.zeros(4)) for _ in range(400)])
        )
    return rates


def evaluation(repeats: int, per_task: int) -> dict[str, list[float]]:
    """Per repeat: episodes a CPU minute of both loops. Raises AssertionError where they do not end alike."""
    episodes = [(task, seed) for task in TASKS for seed in range(per_task)]
    pool = EnvironmentPool(MetaWorld(), limit=12)
    pooled(pool, episodes)  # the pool and the renderers are built once in an evaluation: not timed
    straightforward([(task, 0) for task in TASKS])
    rates: dict[str, list[float]] = {"straightforward": [], "pooled": []}
    for _ in range(repeats):
        ends: list[list[np.ndarray]] = []
        slow = cpu_seconds(lambda ends=ends: ends.append(straightforward(episodes)))
        quick = cpu_seconds(lambda: pooled(pool, episodes))
        left = {environment.data.qpos.tobytes() for _, environment in pool.idle}
        assert left == {end.tobytes() for end in ends[0]}, "the two loops ran different episodes"
        rates["straightforward"].append(60 * len(episodes) / slow)
        rates["pooled"].append(60 * len(episodes) / quick)
    return rates


def summary(rates: dict[str, list[float]], slow: str, quick: str) -> dict[str, Any]:
    """Medians, and the median and range of the ratio within a repeat."""
    ratios = sorted(b / a for a, b in zip(rates[slow], rates[quick], strict=True))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "median": medians,
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--episodes", type=int, default=2, help="episodes of each of the three tasks"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--frames", type=int, default=100, help="frames of one timing in the fast mode"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    frames = summary(drawing(options.repeats, options.frames), "default", "fast")
    episodes = summary(evaluation(options.repeats, options.episodes), "straightforward", "pooled")
    lines = [
        "| 64x64, per CPU second of one core | default | fast | ratio (range) |",
        "|---|---|---|---|",
        _row("frames drawn", frames, "default", "fast"),
        "",
        f"| {STEPS}-step episodes, per CPU minute of one core | straightforward | ours | ratio (range) |",
        "|---|---|---|---|",
        _row(f"episodes (replanning every {REPLAN} steps)", episodes, "straightforward", "pooled"),
        "",
        f"Without drawing: {frames['median']['steps']:.0f} steps/s, {frames['median']['resets']:.0f} resets/s.",
    ]
    print("\n".join(lines))
    if options.json:
        write_json(
            options.json, {"frames": frames, "episodes": episodes, "repeats": options.repeats}
        )


def _row(label: str, result: dict[str, Any], slow: str, quick: str) -> str:
    low, high = result["ratio_range"]
    medians = result["median"]
    return f"| {label} | {medians[slow]:.1f} | {medians[quick]:.1f} | {result['ratio']:.1f}x ({low:.1f}-{high:.1f}) |"


if __name__ == "__main__":
    main()
