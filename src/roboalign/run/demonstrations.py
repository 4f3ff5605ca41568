"""The recipe's section on demonstrations: which benchmarks, which tasks align, which measure, and with which seeds."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import model_validator

from roboalign.core.config import Config
from roboalign.sim.collect import CollectConfig
from roboalign.sim.libero.protocol import LiberoConfig
from roboalign.sim.libero.suites import FIRST_PLACEMENT, STORED_STATES, suite_tasks
from roboalign.sim.metaworld.environment import MetaWorldConfig
from roboalign.sim.metaworld.instructions import HELD_OUT, TASKS, TRAIN

ROLLOUT_SEEDS = 1_000_000
"""Evaluation uses this seed and those above, demonstrations those below: they never meet."""


def require_distinct(field: str, values: Sequence[Any]) -> None:
    """A value named twice would be measured once and counted twice."""
    if not values:
        raise ValueError(f"{field} is empty")
    if len(set(values)) < len(values):
        raise ValueError(f"{field} names something twice: {list(values)}")


BenchmarkName = Literal[
    "metaworld", "libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"
]


class DemonstrationsConfig(Config):
    """Demonstrations by scripted experts. Alignment and downstream tasks are disjoint."""

    benchmark: BenchmarkName = "metaworld"
    """Where the head is trained and the policy measured: Meta-World or a suite of LIBERO."""
    align_benchmark: BenchmarkName = "metaworld"
    """Where the alignment demonstrations come from (where no mixture gives them): questions, action tokens and their
    FAST tokenizer are of its robot, and `mix.camera` is one of its cameras."""
    align_tasks: tuple[str, ...] | Literal["ml45"] = "ml45"
    """Tasks of `align_benchmark` whose demonstrations align the MLLM; `ml45` is ML45's 45 training tasks."""
    downstream_tasks: tuple[str, ...] | Literal["all"] = HELD_OUT
    """Tasks of `benchmark` on which the head is trained and the policy measured, none of them an alignment task; `all`
    is every task of a LIBERO suite, whose tasks are called like `libero_object/pick_up_the_milk_and_...`."""
    align: CollectConfig = CollectConfig()
    """How the alignment tasks are collected."""
    downstream: CollectConfig = CollectConfig()
    """How the downstream tasks are collected."""
    world: MetaWorldConfig = MetaWorldConfig()
    """Meta-World's cameras and rendering, the same for demonstrations and rollouts."""
    libero: LiberoConfig = LiberoConfig()
    """LIBERO's protocol, the same for demonstrations and rollouts; it also limits a rollout's steps and says when the
    policy looks again."""
    head_cameras: tuple[str, ...] = ()
    """Cameras of `benchmark` that the head is shown, laid side by side; none given: `mix.camera` on Meta-World,
    the first of `libero.cameras` on LIBERO."""

    def align_names(self) -> tuple[str, ...]:
        """The alignment tasks by name."""
        return TRAIN if self.align_tasks == "ml45" else self.align_tasks

    def align_cameras(self) -> tuple[str, ...]:
        """The cameras of the alignment demonstrations."""
        return self.world.cameras if self.align_benchmark == "metaworld" else self.libero.cameras

    def align_image_size(self) -> int:
        """Width and height of their images, pixels."""
        return (
            self.world.image_size if self.align_benchmark == "metaworld" else self.libero.image_size
        )

    def downstream_names(self) -> tuple[str, ...]:
        """The downstream tasks by name. Raises RoboAlignError where `all` asks for LIBERO and it is not installed."""
        if self.downstream_tasks == "all":
            return tuple(task.name for task in suite_tasks(self.benchmark))
        return self.downstream_tasks

    @model_validator(mode="after")
    def _consistent(self) -> "DemonstrationsConfig":
        require_distinct("align_tasks", self.align_names())
        if self.benchmark == "metaworld":
            self._require_metaworld()
        else:
            self._require_libero()
        if self.align_benchmark != "metaworld":
            self._require_libero_to_align()
        elif unknown := sorted({*self.align_names()} - set(TASKS)):
            raise ValueError(f"unknown tasks {unknown}; tasks are called like {sorted(TASKS)[0]}")
        named = () if self.downstream_tasks == "all" else self.downstream_tasks
        if both := sorted({*self.align_names()} & {*named}):
            raise ValueError(
                f"tasks {both} are in align_tasks and in downstream_tasks; remove them from one"
            )
        for settings in (self.align, self.downstream):
            after_last = settings.first_seed + settings.episodes_per_task * settings.attempts
            if settings.first_seed < 0 or after_last > ROLLOUT_SEEDS:
                raise ValueError(
                    f"demonstrations may use seeds from 0 to below {ROLLOUT_SEEDS}; those above are for "
                    "evaluation"
                )
        return self

    def _require_metaworld(self) -> None:
        if self.downstream_tasks == "all":
            raise ValueError(
                "downstream_tasks `all` is for LIBERO's suites; name Meta-World's: the others may align"
            )
        require_distinct("downstream_tasks", self.downstream_tasks)
        if unknown := sorted({*self.downstream_tasks} - set(TASKS)):
            raise ValueError(f"unknown tasks {unknown}; tasks are called like {sorted(TASKS)[0]}")
        if unknown := sorted({*self.head_cameras} - {*self.world.cameras}):
            raise ValueError(
                f"head_cameras {unknown} are not among world.cameras {list(self.world.cameras)}"
            )

    def _require_libero(self) -> None:
        if self.downstream_tasks != "all":
            require_distinct("downstream_tasks", self.downstream_tasks)
            if other := [
                task for task in self.downstream_tasks if not task.startswith(f"{self.benchmark}/")
            ]:
                raise ValueError(
                    f"downstream_tasks {other[:3]} are not of {self.benchmark}; give `all`, or tasks that "
                    f"are called {self.benchmark}/..."
                )
        if self.downstream.first_seed < FIRST_PLACEMENT:
            raise ValueError(
                f"downstream.first_seed is {self.downstream.first_seed}, and LIBERO's demonstrations use "
                f"seeds from {FIRST_PLACEMENT} on (0 to {STORED_STATES - 1} are the states that measure)"
            )
        if unknown := sorted({*self.head_cameras} - {*self.libero.cameras}):
            raise ValueError(
                f"head_cameras {unknown} are not among libero.cameras {list(self.libero.cameras)}"
            )

    def _require_libero_to_align(self) -> None:
        suite = self.align_benchmark
        if other := [task for task in self.align_names() if not task.startswith(f"{suite}/")]:
            raise ValueError(
                f"align_tasks {other[:3]} are not of {suite}; name tasks that are called {suite}/..."
            )
        if suite == self.benchmark and self.downstream_tasks == "all":
            raise ValueError(
                f"downstream_tasks `all` are also align_tasks of {suite}; name those that do not align"
            )
        if self.align.first_seed < FIRST_PLACEMENT:
            raise ValueError(
                f"align.first_seed is {self.align.first_seed}, and LIBERO's demonstrations use seeds from "
                f"{FIRST_PLACEMENT} on (0 to {STORED_STATES - 1} are the states that measure)"
            )
