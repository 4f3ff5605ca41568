"""Stage `online`: an arm's head after RL in the simulator, on the tasks that it is measured on but
from other initial states."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.machine import cores, device_of, side_by_side
from roboalign.online.config import OnlineConfig
from roboalign.online.explorer import Explorer, repeated
from roboalign.online.groups import Roll
from roboalign.online.train import WEIGHTS, train_online
from roboalign.run.arms import ARMS
from roboalign.run.benchmark import evaluation_episodes, measured_benchmark, rollout_config
from roboalign.run.folder import policy_folder
from roboalign.run.recipe import Recipe
from roboalign.run.stage import Context, limit_threads
from roboalign.sim.base import Benchmark
from roboalign.sim.parallel import Crew
from roboalign.sim.ray import evaluate_on_cluster
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy import policy_files


def online(context: Context) -> dict[str, Any]:
    """Train the head of the arm without `-online`; write policy/ and metrics.jsonl."""
    recipe, tasks = context.recipe, context.recipe.collect.downstream_names()
    benchmark = measured_benchmark(recipe)
    refuse_measured(recipe, benchmark)
    start = policy_folder(context.run_dir, context.seed, ARMS[context.arm].online)
    policy = HeadPolicy.load(start, str(device_of(recipe.hardware.device)))
    with _rolling(context, benchmark, start) as roll:
        return train_online(
            policy,
            roll,
            tasks,
            recipe.online,
            context.folder,
            seed=context.seed,
        )


def refuse_measured(recipe: Recipe, benchmark: Benchmark) -> None:
    """Refuse initial states that measure policies, by the names that the benchmark gives them.

    The recipe refuses their seeds before anything runs; a benchmark may give two seeds one name.
    """
    tasks = recipe.collect.downstream_names()
    measured = {benchmark.episode_id(task, seed) for task, seed in evaluation_episodes(recipe)}
    for task in tasks:
        for seed in recipe.online.seeds(len(tasks)):
            if (name := benchmark.episode_id(task, seed)) in measured:
                raise RoboAlignError(
                    f"episode {name} measures policies, and online RL would train on it",
                    where="online.first_seed",
                    fix="choose other seeds",
                )


@contextmanager
def _rolling(context: Context, benchmark: Benchmark, start: Path) -> Iterator[Roll]:
    """Give what runs episodes: in processes of this machine, which stay, or on the machines of a
    Ray cluster, which load the policy for each call."""
    recipe, weights = context.recipe, context.folder / WEIGHTS
    config, cluster = rollout_config(recipe), recipe.hardware.ray
    again = repeated(benchmark, recipe.online.group_size)
    explorer = partial(load_explorer, recipe.online, context.seed)
    if cluster is None:
        workers = max(1, cores() // side_by_side(recipe.parallel))
        device = str(device_of(recipe.hardware.device))
        make_act = partial(explorer, start, weights, workers, device)
        crew = Crew(make_act, again, config, workers=workers)
        try:
            yield crew.run
        finally:
            crew.close()
        return
    inside, files = policy_files(start)
    device = "cuda" if cluster.gpus else "cpu"
    load = partial(_load_copy, explorer, inside, cluster.cpus, device)
    cargo = {**files, WEIGHTS: weights}
    yield lambda episodes, finish: evaluate_on_cluster(
        load, cargo, again, episodes, config, cluster, on_result=finish
    )


def load_explorer(
    config: OnlineConfig, seed: int, folder: Path, weights: Path, threads: int, device: str
) -> Explorer:
    """Return the policy that explores, as the simulator's workers call it."""
    limit_threads(threads)
    return Explorer(HeadPolicy.load(folder, device), weights, config.noise, seed)


def _load_copy(
    explorer: "partial[Explorer]", inside: str, threads: int, device: str, folder: Path
) -> Explorer:
    """Call `load_explorer` on the policy and weights whose copies are in `folder`."""
    found = explorer(folder / inside, folder / WEIGHTS, threads, device)
    found.refresh()  # the copies are on the machine's disk only now
    return found
