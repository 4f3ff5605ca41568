"""Describe Meta-World as recipes name it: 50 tasks, of which ML45's training tasks align by
default."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from roboalign.core.errors import RoboAlignError
from roboalign.sim.metaworld.config import EPISODE_STEPS, MetaWorldConfig
from roboalign.sim.metaworld.instructions import HELD_OUT, TASKS, TRAIN
from roboalign.sim.registry import BenchmarkSpec
from roboalign.sim.rollout import RolloutConfig

if TYPE_CHECKING:
    from roboalign.sim.metaworld.environment import MetaWorld


class MetaWorldSpec(BenchmarkSpec):
    """`metaworld`. Evaluation starts at seed 1,000,000."""

    title = "Meta-World"
    section = "world"
    config = MetaWorldConfig
    packages = ("metaworld", "mujoco")
    install = "make setup"
    notes = (
        "Everything here is simulated: MuJoCo's physics and a renderer, no camera noise, no real robot.",
    )
    default_align = "ml45"
    default_downstream = HELD_OUT

    def task_names(self) -> tuple[str, ...]:
        """Return all 50 tasks, by name."""
        return tuple(sorted(TASKS))

    def task_sets(self) -> Mapping[str, tuple[str, ...]]:
        """Return `ml45`: ML45's 45 training tasks."""
        return {"ml45": TRAIN}

    def cameras(self, settings: MetaWorldConfig) -> tuple[str, ...]:
        """Return the cameras of the configuration."""
        return settings.cameras

    def image_size(self, settings: MetaWorldConfig) -> int:
        """Return the width and height of every image, pixels."""
        return settings.image_size

    def make(self, settings: MetaWorldConfig) -> "MetaWorld":
        """Return the 50 tasks as a `Benchmark`."""
        from roboalign.sim.metaworld.environment import MetaWorld

        return MetaWorld(settings)

    demonstrated = make

    def rollout(self, settings: MetaWorldConfig, rollout: RolloutConfig) -> RolloutConfig:
        """Return how a policy is run. Raises RoboAlignError for more steps than Meta-World has: the
        record would say more than were done."""
        if rollout.max_steps > EPISODE_STEPS:
            raise RoboAlignError(
                f"an episode of Meta-World has {EPISODE_STEPS} steps, not {rollout.max_steps}",
                where="max_steps",
                fix=f"give at most {EPISODE_STEPS}",
            )
        return rollout

    def protocol_line(self, settings: MetaWorldConfig, cameras: tuple[str, ...]) -> str:
        """Return how the images are drawn."""
        return f"{settings.render}, {settings.image_size} px, camera {', '.join(cameras)}"
