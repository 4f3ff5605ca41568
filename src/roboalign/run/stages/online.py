"""Stage `online`: an arm's policy after RL in the simulator, on the tasks that it is measured on but
from other initial states."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from roboalign.align.grpo.config import RlConfig
from roboalign.core.errors import RoboAlignError
from roboalign.core.machine import cores, device_of, side_by_side
from roboalign.online.explorer import Explorer, Published, load_explorer, repeated
from roboalign.online.groups import Roll
from roboalign.online.improve import HeadLearner
from roboalign.online.token_explorer import TokenExplorer
from roboalign.online.token_learner import TokenLearner
from roboalign.online.train import WEIGHTS, Learner, train_online
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
from roboalign.vla.token_policy import TokenPolicy


def online(context: Context) -> dict[str, Any]:
    """Train the head, or the MLLM whose tokens act, of the arm without `-online`; write policy/ and
    metrics.jsonl, and such an MLLM to model/."""
    recipe, tasks = context.recipe, context.recipe.collect.downstream_names()
    benchmark = measured_benchmark(recipe)
    refuse_measured(recipe, benchmark)
    start = policy_folder(context.run_dir, context.seed, ARMS[context.arm].online)
    device = str(device_of(recipe.hardware.device))
    learner: Learner
    if ARMS[context.arm].tokens:
        learner = TokenLearner.of(TokenPolicy.load(start, device), recipe.online, _tuned(context))
    else:
        learner = HeadLearner.of(HeadPolicy.load(start, device), recipe.online, context.seed)
    with _rolling(context, benchmark, start) as roll:
        return train_online(
            learner,
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
    explorer: Any = partial(load_explorer, recipe.online, context.seed)
    if ARMS[context.arm].tokens:
        explorer = partial(load_token_explorer, _tuned(context), context.seed)
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


def load_token_explorer(
    tuned: RlConfig, seed: int, folder: Path, weights: Path, threads: int, device: str
) -> TokenExplorer:
    """Return the token policy that explores, with the same trained weights as the learner's."""
    limit_threads(threads)
    policy = TokenPolicy.load(folder, device)
    drawn = {"temperature": tuned.temperature, "answers": 1}
    policy.config = policy.config.model_copy(update=drawn)
    tuned.choose_trained(policy.mllm)
    return TokenExplorer(policy, Published(weights), seed)


def _tuned(context: Context) -> RlConfig:
    """Return `rl` under the stage's seed, from which adapters begin."""
    return context.recipe.rl.model_copy(update={"seed": context.seed})


def _load_copy(
    explorer: "partial[Explorer] | partial[TokenExplorer]",
    inside: str,
    threads: int,
    device: str,
    folder: Path,
) -> Explorer | TokenExplorer:
    """Load the policy and weights whose copies are in `folder`."""
    found = explorer(folder / inside, folder / WEIGHTS, threads, device)
    found.refresh()  # the copies are on the machine's disk only now
    return found
