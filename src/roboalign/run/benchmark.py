"""Resolve the benchmark that a recipe names: its demonstrations, its episodes, and what a policy
sees and may do there."""

import importlib.metadata
from typing import Any

from roboalign.actions.known_spaces import known_space
from roboalign.actions.spaces import ActionSpace
from roboalign.questions.facts.scene import require_readable_actions
from roboalign.run.recipe import Recipe
from roboalign.sim.base import Benchmark, DemonstratedBenchmark
from roboalign.sim.registry import measured_protocol
from roboalign.sim.rollout import RolloutConfig
from roboalign.vla.features import View

OFFLINE_NOTE = (
    "Nothing was measured in closed loop: no policy of this run has moved a robot. Open-loop errors on "
    "held-out episodes do not predict success."
)


def measured_benchmark(recipe: Recipe) -> Benchmark:
    """Return the benchmark on which policies are run."""
    return recipe.collect.spec.make(recipe.collect.settings)


def demonstrated_benchmark(recipe: Recipe) -> DemonstratedBenchmark:
    """Return the benchmark of the downstream demonstrations: the same benchmark, with its
    experts."""
    return recipe.collect.spec.demonstrated(recipe.collect.settings)


def alignment_benchmark(recipe: Recipe) -> DemonstratedBenchmark:
    """Return the benchmark of the alignment demonstrations.

    Raises RoboAlignError if questions about one of its tasks would not have a unique right answer,
    or none can be made from its actions.
    """
    spec = recipe.collect.align_spec
    benchmark = spec.demonstrated(recipe.collect.align_settings)
    for task in recipe.collect.align_names():
        spec.require_alignable(task)
    require_readable_actions(action_space_of(benchmark), f"benchmark {spec.name}")
    return benchmark


def action_space_of(benchmark: DemonstratedBenchmark) -> ActionSpace:
    """Return what its actions mean. Raises RoboAlignError if it names an unknown space."""
    space = benchmark.action_space
    return known_space(space) if isinstance(space, str) else space


def evaluation_episodes(recipe: Recipe) -> list[tuple[str, int]]:
    """Return (task, seed) of every evaluation episode: the same for all arms and training seeds.

    On LIBERO the seed is the index of the stored initial state, on CALVIN that of the chain.
    """
    spec = recipe.collect.spec
    seeds = spec.evaluation_seeds[: recipe.rollout.episodes]
    tasks = spec.measured_tasks(recipe.collect.downstream_names())
    return [(task, seed) for task in tasks for seed in seeds]


def rollout_config(recipe: Recipe) -> RolloutConfig:
    """Return how a policy is run there. A benchmark's protocol may have its own step limits and
    replanning."""
    return recipe.collect.spec.rollout(recipe.collect.settings, recipe.rollout)


def head_cameras(recipe: Recipe) -> tuple[str, ...]:
    """Return the cameras that the head sees, in order."""
    if recipe.demos.of("downstream"):
        return recipe.demos.shown_cameras()
    return recipe.collect.shown_cameras(recipe.mix.camera)


def head_view(recipe: Recipe, *, blind: bool = False) -> View:
    """Return what the heads read."""
    backbone = recipe.backbone
    return View(
        layer=backbone.layer,
        cameras=head_cameras(recipe),
        blind=blind,
        final_norm=backbone.final_norm,
        dtype=backbone.layer_dtype,
        prompts=recipe.prompts,
        cameras_as=backbone.cameras_as,
        reading=backbone.reading,
        max_reasoning_tokens=backbone.max_reasoning_tokens,
    )


def protocol_record(recipe: Recipe) -> dict[str, Any]:
    """Return everything besides the policy that affects a success rate, to be stored with the
    episodes."""
    return measured_protocol(
        recipe.collect.spec,
        recipe.collect.settings,
        rollout_config(recipe),
        recipe.rollout.episodes,
        head_cameras(recipe),
    )


def protocol_line(recipe: Recipe) -> str:
    """Return the protocol as one line for the report."""
    if recipe.measure == "offline":
        return "none: nothing was measured in closed loop"
    return recipe.collect.spec.protocol_line(recipe.collect.settings, head_cameras(recipe))


def benchmark_notes(recipe: Recipe) -> tuple[str, ...]:
    """Return what the benchmark says about itself in a report: which physics, and what is
    simulated."""
    if recipe.measure == "offline":
        return (OFFLINE_NOTE,)
    return recipe.collect.spec.notes


def simulator_packages(recipe: Recipe) -> tuple[str, ...]:
    """Return the packages whose version may change an episode."""
    return () if recipe.measure == "offline" else recipe.collect.spec.packages


def installed_versions(packages: tuple[str, ...]) -> str:
    """Return `torch 2.13.0, mujoco 3.3.0`; a missing package is named as missing."""
    return ", ".join(f"{name} {_version(name)}" for name in packages)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
