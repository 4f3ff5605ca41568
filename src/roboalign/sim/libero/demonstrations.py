"""LIBERO's suites with their scripted experts and the privileged state: what demonstrations are collected from."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign.errors import RoboAlignError
from roboalign.sim.base import Task
from roboalign.sim.libero.environment import FIRST_PLACEMENT, Libero, LiberoEnvironment
from roboalign.sim.libero.experts import make_expert
from roboalign.sim.libero.experts.scene import Scene
from roboalign.sim.libero.protocol import LiberoConfig
from roboalign.sim.libero.suites import find_task

_POINTS = ("object", "object2", "goal")


@dataclass(frozen=True)
class DemonstratedLibero(Libero):
    """A suite as a `DemonstratedBenchmark`. Its episodes are placements: stored initial states are refused."""

    robot_type: str = "panda"
    action_space: str = "libero"
    action_names: tuple[str, ...] = ("x", "y", "z", "rotation.x", "rotation.y", "rotation.z", "gripper")
    state_names: tuple[str, ...] = (
        "hand.x", "hand.y", "hand.z", "rotation.x", "rotation.y", "rotation.z", "finger.left", "finger.right",
    )  # fmt: skip

    @property
    def image_size(self) -> int:
        return self.config.image_size

    def privileged_names(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """The names of all points: which of them a task has, its file tells when it is opened."""
        return _names(_POINTS)

    def make(self, task: str) -> "DemonstratedLiberoEnvironment":
        """Build one task, `suite/task`, with its expert. Raises RoboAlignError where the suite has no such task."""
        if task.partition("/")[0] != self.suite:
            raise RoboAlignError(f"{task!r} is no task of {self.suite}", where="task", fix=f"use {self.suite}/...")
        return DemonstratedLiberoEnvironment(find_task(task, self.config.instruction), self.config)


class DemonstratedLiberoEnvironment(LiberoEnvironment):
    """One task (see `DemonstratedEnvironment`)."""

    def __init__(self, task: Task, config: LiberoConfig) -> None:
        super().__init__(task, config)
        self.points = goal_points(self._scene.goals())
        self.task = Task(task.name, task.instruction, {point: _words(name) for point, name in self.points.items()})

    def reset(self, seed: int) -> None:
        """Start the placement of `seed`. Raises RoboAlignError for a stored initial state."""
        if seed < FIRST_PLACEMENT:
            raise RoboAlignError(
                f"seed {seed} is no demonstration: LIBERO's stored initial states only measure", where=self.task.name,
                fix=f"use seeds from {FIRST_PLACEMENT} on for demonstrations",
            )  # fmt: skip
        super().reset(seed)

    def expert(self) -> Callable[[], np.ndarray]:
        """The scripted expert of the current episode; float32 [7] in [-1, 1]."""
        return make_expert(self).action

    @property
    def privileged_names(self) -> tuple[str, ...]:
        """gripper.x, .y, .z, gripper.opening, then x, y and z of each of `points`."""
        return _names(self.points)

    def privileged(self) -> np.ndarray:
        """float32 [P], metres; the opening from 0 (closed) to 1 (8 cm between the fingertips)."""
        scene = self._scene
        positions = [scene.position(name) for name in self.points.values()]
        return np.hstack([scene.hand()[0], scene.opening() / 0.08, *positions]).astype(np.float32)

    @functools.cached_property
    def _scene(self) -> Scene:
        return Scene(self.simulation)


def _names(points: Iterable[str]) -> tuple[str, ...]:
    axes = tuple(f"{point}.{axis}" for point in points for axis in "xyz")
    return ("gripper.x", "gripper.y", "gripper.z", "gripper.opening", *axes)


def goal_points(goals: list[list[str]]) -> dict[str, str]:
    """The task's points by the names that questions use: `object`, `object2` and `goal` -> body or region.

    The first two bodies that the goal is about, and the target of the last predicate that has one.
    """
    bodies = list(dict.fromkeys(goal[1] for goal in goals))
    targets = [goal[2] for goal in goals if len(goal) > 2]
    points = dict(zip(_POINTS, bodies[:2], strict=False))
    return points | ({"goal": targets[-1]} if targets else {})


def _words(name: str) -> str:
    """`alphabet_soup_1` -> `alphabet soup`; `wooden_cabinet_1_top_region` -> `wooden cabinet top region`."""
    return " ".join(word for word in name.split("_") if not word.isdigit())
