"""Episodes a minute of LIBERO, here and in the naive loop, on the same actions: `python benchmarks/libero_speed.py`.

The naive loop builds the model anew at every reset and draws both cameras at every step. Here the environment is kept,
and drawn only when a policy would look (every `replan_every` steps). Each loop has a process and one core to itself;
the time to build the first environment is not counted. Where the cores are shared, processor time is what counts: each
loop draws in its own thread. The actions are the scripted experts', found beforehand.
"""

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from roboalign.sim.libero.environment import REST, LiberoEnvironment
from roboalign.sim.libero.protocol import LiberoConfig, preset
from roboalign.sim.libero.suites import (
    bddl_file,
    find_task,
    load_library,
    stored_states,
    suite_tasks,
)
from roboalign.sim.rendering import gl_backend

CORES = len(os.sched_getaffinity(0))
Episode = tuple[str, int, np.ndarray]
"""(task, seed, actions [T, 7])."""
Measured = tuple[float, float, list[bool], np.ndarray]
"""(seconds, of them processor time, success of each episode, the first image of agentview)."""


def expert_episode(task: str, seed: int) -> Episode:
    """The actions of the scripted expert, up to the success or the step limit, without rendering."""
    from roboalign.sim.libero.experts import make_expert

    environment = LiberoEnvironment(find_task(task), preset("openpi"))
    environment.reset(seed)
    expert, actions = make_expert(environment), []
    for _ in range(environment.max_steps):
        actions.append(expert.action())
        if environment.step(actions[-1]):
            break
    environment.close()
    return task, seed, np.stack(actions)


def naive(episodes: list[Episode]) -> Measured:
    """Hard resets, both cameras at every step. One environment a task, as the peers' loops have."""
    gl_backend()
    load_library()
    from libero.libero.envs.env_wrapper import OffScreenRenderEnv

    config, seconds, busy, solved, first = preset("openpi"), 0.0, 0.0, [], None
    environments: dict[str, Any] = {}
    for task, seed, actions in episodes:
        if task not in environments:
            environments = {
                task: OffScreenRenderEnv(
                    bddl_file_name=str(bddl_file(task)),
                    ignore_done=True,
                    camera_heights=config.render_size,
                    camera_widths=config.render_size,
                )
            }
        environment, began, started = environments[task], time.perf_counter(), time.process_time()
        environment.seed(config.seed)
        environment.reset()
        environment.set_init_state(stored_states(task)[seed])
        for _ in range(config.settle_steps):
            seen, *_ = environment.step(REST)
        success = False
        first = seen["agentview_image"][::-1, ::-1] if first is None else first
        for action in actions:
            _, _, success, _ = environment.step(action)
            if success:
                break
        seconds, busy = seconds + time.perf_counter() - began, busy + time.process_time() - started
        solved.append(bool(success))
    for environment in environments.values():
        environment.close()
    assert first is not None
    return seconds, busy, solved, first


def kept(episodes: list[Episode], config: LiberoConfig) -> Measured:
    """The environment of this package; it is observed as often as a policy replans."""
    seconds, busy, solved, first = 0.0, 0.0, [], None
    environments: dict[str, LiberoEnvironment] = {}
    for task, seed, actions in episodes:
        if task not in environments:
            environments = {task: LiberoEnvironment(find_task(task), config)}
        environment, began, started = environments[task], time.perf_counter(), time.process_time()
        environment.reset(seed)
        success = False
        for step, action in enumerate(actions):
            if step % config.replan_every == 0:
                image = environment.observe().images["agentview"]
                first = image if first is None else first
            success = environment.step(action)
            if success:
                break
        seconds, busy = seconds + time.perf_counter() - began, busy + time.process_time() - started
        solved.append(success)
    assert first is not None
    return seconds, busy, solved, first


def side_by_side(function: Any, episodes: list[Episode], *arguments: Any) -> Measured:
    """The same with a process a core, as an evaluation runs: seconds are those of the last to end."""
    with ProcessPoolExecutor(CORES, mp_context=multiprocessing.get_context("spawn")) as pool:
        shares = [episodes[core::CORES] for core in range(CORES)]
        parts = [
            part.result()
            for part in [pool.submit(function, share, *arguments) for share in shares if share]
        ]
    solved = dict(
        zip(
            [key[:2] for share in shares for key in share],
            [one for part in parts for one in part[2]],
            strict=True,
        )
    )
    return (
        max(part[0] for part in parts),
        sum(part[1] for part in parts),
        [solved[key[:2]] for key in episodes],
        parts[0][3],
    )


def main() -> None:
    """Print episodes a minute of each loop, the ratio, and whether all agree on the successes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument(
        "--episodes", type=int, default=2, help="episodes a task, from stored initial states"
    )
    options = parser.parse_args()
    os.environ["LP_NUM_THREADS"] = (
        "0"  # Mesa's software renderer draws in the loop's own thread, in all of them
    )
    wanted = [
        (task.name, seed)
        for task in suite_tasks(options.suite)[: options.tasks]
        for seed in range(options.episodes)
    ]
    episodes = [expert_episode(task, seed) for task, seed in wanted]
    whole = preset("openpi").model_copy(update={"image_size": preset("openpi").render_size})
    loops: dict[str, tuple[Any, ...]] = {
        "naive": (naive, episodes),
        "kept, render default": (kept, episodes, whole),
        "kept, render fast": (kept, episodes, whole.model_copy(update={"render": "fast"})),
    }
    results: dict[str, Measured] = {}
    for name, (function, *arguments) in loops.items():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            results[name] = pool.submit(function, *arguments).result()
        seconds, busy, solved, _ = results[name]
        print(
            f"{name}: {len(episodes) / busy * 60:.2f} episodes a minute of processor time ({busy:.1f} s of "
            f"{seconds:.1f} s), solved {solved}",
            flush=True,
        )
    for name, (function, *arguments) in list(loops.items())[1:]:
        results[f"{name}, {CORES} processes"] = side_by_side(function, episodes, *arguments[1:])
    reference = results["naive"]
    steps = sum(len(actions) for _, _, actions in episodes)
    print(f"{len(episodes)} episodes, {steps} policy steps, {options.suite}")
    for name, (seconds, busy, solved, image) in list(results.items())[1:]:
        difference = np.abs(image.astype(int) - reference[3].astype(int))
        print(
            f"{name}: {reference[1] / busy:.2f} times the naive loop in processor time, "
            f"{reference[0] / seconds:.2f} by the clock; same successes: {solved == reference[2]}; "
            f"first image differs by {difference.mean():.2f} of 255 on average, at most {difference.max()}"
        )


if __name__ == "__main__":
    main()
