"""Describe CALVIN as recipes name it: tasks, seeds and the record of a measurement."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.sim.calvin.chains import COUNT, LENGTH, PUBLISHED, chains_hash, measured_chains
from roboalign.sim.calvin.checkout import open_checkout
from roboalign.sim.calvin.config import CalvinConfig
from roboalign.sim.calvin.demonstrations import TASK_PREFIX, DemonstratedCalvin
from roboalign.sim.calvin.environment import CHAINS, MEASURED_SCENE, Calvin
from roboalign.sim.calvin.experts.catalog import expert_tasks
from roboalign.sim.calvin.library import INSTALL_PACKAGES, PACKAGES, SHIMS, load_simulator, renderer
from roboalign.sim.registry import FIRST_EVALUATION_SEED, BenchmarkSpec
from roboalign.sim.rollout import RolloutConfig

_DEMONSTRATED = tuple(TASK_PREFIX + task for task in expert_tasks())
_USUAL = {"render": "egl", "fresh": True, "subtask_steps": 360}
"""What a measurement like the published ones has. They reuse the simulation, which makes results
depend on the order of the chains; `fresh` does not."""


class CalvinSpec(BenchmarkSpec):
    """`calvin`. The seeds 0 to 999 are the published chains, in their order."""

    title = "CALVIN"
    section = "calvin"
    config = CalvinConfig
    packages = PACKAGES
    install = INSTALL_PACKAGES
    places = ("checkout",)
    notes = (
        "Everything here is simulated: Bullet's physics and a renderer, no camera noise, no real robot.",
    )
    evaluation_seeds = range(COUNT)
    demonstration_seeds = range(COUNT, FIRST_EVALUATION_SEED)
    default_downstream = "experts"

    def task_names(self) -> tuple[str, ...]:
        """Return the one measured task, then those that have an expert."""
        return (CHAINS, *_DEMONSTRATED)

    def task_sets(self) -> Mapping[str, tuple[str, ...]]:
        """Return `experts`: the demonstrated tasks."""
        return {"experts": _DEMONSTRATED}

    def cameras(self, settings: CalvinConfig) -> tuple[str, ...]:
        """Return the cameras of the configuration."""
        return settings.cameras

    def moving_cameras(self) -> frozenset[str]:
        """Return the hand's camera."""
        return frozenset({"gripper"})

    def image_size(self, settings: CalvinConfig) -> int:
        """Return the width and height that a policy sees, pixels."""
        return settings.image_size

    def measured_tasks(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """Return the chains, whatever a policy was trained on."""
        return (CHAINS,)

    def examine(self, settings: CalvinConfig) -> tuple[str, ...]:
        """Return the checkout's commits, the hash of its chains, and the renderer."""
        checkout = open_checkout(settings.checkout)
        load_simulator(checkout)
        chains = measured_chains(checkout)
        digest = chains_hash(chains)
        if digest != PUBLISHED:
            raise RoboAlignError(
                f"its tasks give other chains than the published ones: sha256 {digest}",
                where=str(checkout.root),
                fix="check out the main branch of mees/calvin, unchanged",
            )
        commits = ", ".join(f"{name} {commit}" for name, commit in checkout.commits().items())
        return (
            commits,
            f"{len(chains)} chains, sha256 {digest}, as published",
            f"drawn by {renderer(settings.render)}",
        )

    def make(self, settings: CalvinConfig) -> Calvin:
        """Return the chains as a `Benchmark`. Draws them once, before workers start.

        Raises RoboAlignError without a checkout, or if one of its packages is missing.
        """
        checkout = open_checkout(settings.checkout)
        load_simulator(checkout)
        measured_chains(checkout)
        return Calvin(settings)

    def demonstrated(self, settings: CalvinConfig) -> DemonstratedCalvin:
        """Return the tasks with their scripted experts. Raises what `make` raises."""
        load_simulator(open_checkout(settings.checkout))
        return DemonstratedCalvin(settings)

    def check(
        self, settings: CalvinConfig, rollout: RolloutConfig, defaults: RolloutConfig, horizon: int
    ) -> None:
        """Refuse `rollout.max_steps`, which says nothing here, and what every benchmark refuses."""
        super().check(settings, rollout, defaults, horizon)
        if rollout.max_steps != defaults.max_steps:
            raise ValueError(
                "rollout.max_steps says nothing on calvin: collect.calvin.subtask_steps does"
            )

    def rollout(self, settings: CalvinConfig, rollout: RolloutConfig) -> RolloutConfig:
        """Return the recipe's replanning with a chain's longest run."""
        return rollout.model_copy(update={"max_steps": LENGTH * settings.subtask_steps})

    def departures(self, settings: CalvinConfig) -> dict[str, Any]:
        """Return the settings that differ from those of published results."""
        values = settings.model_dump(mode="json")
        return {name: values[name] for name, usual in _USUAL.items() if values[name] != usual}

    def protocol(self, settings: CalvinConfig) -> dict[str, Any]:
        """Return commits, chains, shims, renderer, versions and settings. Needs the checkout."""
        checkout = open_checkout(settings.checkout)
        chains = measured_chains(checkout)
        digest = chains_hash(chains)
        return {
            "first_seed": self.evaluation_seeds.start,
            "protocol": settings.model_dump(mode="json", exclude={"checkout"}),
            "departs_from_published_in": self.departures(settings),
            "commits": checkout.commits(),
            "chains": {"sha256": digest, "count": len(chains), "published": digest == PUBLISHED},
            "sentences_sha256": checkout.sentences_hash(),
            "scene": MEASURED_SCENE,
            "renderer": renderer(settings.render),
            "shims": list(SHIMS),
            "resize": "bilinear",
            "actions": "calvin_relative, clipped to [-1, 1]; the gripper opens above 0",
            "end_of_a_subtask": "the rest of the chunk is dropped, the robot is not moved",
            "versions": {name: _version(name) for name in PACKAGES},
        }

    def protocol_line(self, settings: CalvinConfig, cameras: tuple[str, ...]) -> str:
        """Return how the images are drawn, and how chains are run."""
        fresh = "a fresh simulation a chain" if settings.fresh else "one simulation for all chains"
        return (
            f"scene {MEASURED_SCENE}, {settings.render}, {settings.image_size} px, camera "
            f"{', '.join(cameras)}; at most {settings.subtask_steps} steps a subtask, {fresh}"
        )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
