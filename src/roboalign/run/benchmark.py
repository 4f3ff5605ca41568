"""The benchmark that a recipe names: its demonstrations, its episodes, and what a policy is shown and allowed there."""

import importlib.metadata
from typing import Any

from roboalign.actions.known_spaces import known_space
from roboalign.actions.spaces import ActionSpace
from roboalign.questions.scene import require_readable_actions
from roboalign.run.recipe import Recipe
from roboalign.sim.base import Benchmark, DemonstratedBenchmark
from roboalign.sim.rollout import RolloutConfig


def measured_benchmark(recipe: Recipe) -> Benchmark:
    """Where policies are run."""
    return recipe.collect.spec.make(recipe.collect.settings)


def demonstrated_benchmark(recipe: Recipe) -> DemonstratedBenchmark:
    """Where the downstream demonstrations come from: the same benchmark, with its experts."""
    return recipe.collect.spec.demonstrated(recipe.collect.settings)


def alignment_benchmark(recipe: Recipe) -> DemonstratedBenchmark:
    """Where the alignment demonstrations come from.

    Raises RoboAlignError where questions about one of its tasks would have no one right answer, or none can be made of
    its actions.
    """
    spec = recipe.collect.align_spec
    benchmark = spec.demonstrated(recipe.collect.align_settings)
    for task in recipe.collect.align_names():
        spec.require_alignable(task)
    require_readable_actions(action_space_of(benchmark), f"benchmark {spec.name}")
    return benchmark


def action_space_of(benchmark: DemonstratedBenchmark) -> ActionSpace:
    """What its actions mean. Raises RoboAlignError where it names a space that is not known."""
    space = benchmark.action_space
    return known_space(space) if isinstance(space, str) else space


def evaluation_episodes(recipe: Recipe) -> list[tuple[str, int]]:
    """(task, seed) of every evaluation episode: the same for all arms and training seeds.

    On LIBERO the seed is the number of the stored initial state.
    """
    seeds = recipe.collect.spec.evaluation_seeds[: recipe.rollout.episodes]
    return [(task, seed) for task in recipe.collect.downstream_names() for seed in seeds]


def rollout_config(recipe: Recipe) -> RolloutConfig:
    """How a policy is run there. A benchmark's protocol may have its own step limits and replanning."""
    return recipe.collect.spec.rollout(recipe.collect.settings, recipe.rollout)


def head_cameras(recipe: Recipe) -> tuple[str, ...]:
    """The cameras that the head is shown, in their order."""
    return recipe.collect.shown_cameras(recipe.mix.camera)


def protocol_record(recipe: Recipe) -> dict[str, Any]:
    """Everything besides the policy that moves a success rate, to be stored with the episodes."""
    rollout = rollout_config(recipe)
    return {
        "benchmark": recipe.collect.benchmark,
        "episodes_per_task": recipe.rollout.episodes,
        "max_steps": rollout.max_steps,
        "replan_every": rollout.replan_every,
        "cameras": list(head_cameras(recipe)),
        **recipe.collect.spec.protocol(recipe.collect.settings),
    }


def protocol_line(recipe: Recipe) -> str:
    """The same in a line for the report."""
    return recipe.collect.spec.protocol_line(recipe.collect.settings, head_cameras(recipe))


def benchmark_notes(recipe: Recipe) -> tuple[str, ...]:
    """What the benchmark says about itself in a report: which physics, and what is simulated."""
    return recipe.collect.spec.notes


def simulator_packages(recipe: Recipe) -> tuple[str, ...]:
    """Packages whose version may change what an episode is."""
    return recipe.collect.spec.packages


def installed_versions(packages: tuple[str, ...]) -> str:
    """`torch 2.13.0, mujoco 3.3.0`; a package that is missing here is named as such."""
    return ", ".join(f"{name} {_version(name)}" for name in packages)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
