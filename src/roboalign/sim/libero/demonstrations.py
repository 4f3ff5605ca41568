"""Provide LIBERO's suites with their scripted experts and the privileged state, for collecting
demonstrations."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign.actions.axes import KNOWN_AXES, Axes
from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import Task
from roboalign.sim.libero.environment import FIRST_PLACEMENT, Libero, LiberoEnvironment
from roboalign.sim.libero.experts import make_expert
from roboalign.sim.libero.experts.fixtures import handle
from roboalign.sim.libero.experts.scene import Floats, LiberoScene
from roboalign.sim.libero.nouns import Goal, instances, point_noun, scene_nouns
from roboalign.sim.libero.protocol import LiberoConfig
from roboalign.sim.libero.suites import find_task, suites_in
from roboalign.sim.rendering import gl_backend

_POINTS = ("object", "object2", "goal")


@dataclass(frozen=True)
class DemonstratedLibero(Libero):
    """A suite as a `DemonstratedBenchmark`. Its episodes are placements: stored initial states are refused."""

    robot_type: str = "panda"
    action_space: str = "libero"
    axes: Axes = KNOWN_AXES["libero"]
    action_names: tuple[str, ...] = (
        "x",
        "y",
        "z",
        "rotation.x",
        "rotation.y",
        "rotation.z",
        "gripper",
    )
    state_names: tuple[str, ...] = (
        "hand.x",
        "hand.y",
        "hand.z",
        "rotation.x",
        "rotation.y",
        "rotation.z",
        "finger.left",
        "finger.right",
    )

    @property
    def image_size(self) -> int:
        return self.config.image_size

    def prepare(self) -> None:
        """Find the OpenGL backend once for all worker processes."""
        gl_backend()

    def privileged_names(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Return the names of all points. Which of them a task has is known only after its file is
        read."""
        return _names(_POINTS)

    def make(self, task: str) -> "DemonstratedLiberoEnvironment":
        """Build one task, `suite/task`, with its expert. Raises RoboAlignError if it is unknown."""
        if task.partition("/")[0] not in suites_in(self.suite):
            raise RoboAlignError(
                f"{task!r} is no task of {self.suite}", where="task", fix=f"use {self.suite}/..."
            )
        return DemonstratedLiberoEnvironment(find_task(task, self.config.instruction), self.config)


class DemonstratedLiberoEnvironment(LiberoEnvironment):
    """One task (see `DemonstratedEnvironment`)."""

    def __init__(self, task: Task, config: LiberoConfig) -> None:
        super().__init__(task, config)
        self.points = goal_points(self._scene.goals())
        kinds = instances(self.simulation.parsed_problem)
        nouns = {
            point: point_noun(name, predicate, kinds)
            for point, (predicate, name) in self.points.items()
        }
        self.task = Task(task.name, task.instruction, {**nouns, "scene": scene_nouns(kinds)})

    def reset(self, seed: int) -> None:
        """Start the placement of `seed`. Raises RoboAlignError for a stored initial state."""
        if seed < FIRST_PLACEMENT:
            raise RoboAlignError(
                f"seed {seed} is no demonstration: LIBERO's stored initial states only measure",
                where=self.task.name,
                fix=f"use seeds from {FIRST_PLACEMENT} on for demonstrations",
            )
        super().reset(seed)
        # The lowest object is on the table, whose surface LIBERO's workspace_offset misses by up to 4 cm.
        geoms = [geom for name in self.simulation.objects_dict for geom in self._scene.geoms(name)]
        self._table = float(self._scene.points(geoms)[:, 2].min())

    def expert(self) -> Callable[[], np.ndarray]:
        """Return the scripted expert of the current episode; its actions are float32 [7] in [-1,
        1]."""
        return make_expert(self).action

    @property
    def privileged_names(self) -> tuple[str, ...]:
        """Return gripper.x, .y, .z, .opening, .holding, table.z, then x, y and z of each of
        `points`."""
        return _names(self.points)

    def privileged(self) -> np.ndarray:
        """Return float32 [P], world coordinates in meters; the opening is from 0 (closed) to 1 (8
        cm between the fingertips).

        `gripper.holding` is 1 if both fingers touch the same thing. The point of an object, or of a
        target that is an object, is the middle of its collision boxes. The point of a drawer to
        open or close is its handle; that of a knob or a door is the middle of the part that turns.
        `table.z` is the height of the table's surface.
        """
        scene = self._scene
        gripper = [*scene.hand()[0], scene.opening() / 0.08, scene.held() is not None, self._table]
        return np.hstack(
            [gripper, *(position(scene, *point) for point in self.points.values())]
        ).astype(np.float32)

    @functools.cached_property
    def _scene(self) -> LiberoScene:
        return LiberoScene(self.simulation)


def _names(points: Iterable[str]) -> tuple[str, ...]:
    axes = tuple(f"{point}.{axis}" for point in points for axis in "xyz")
    return (
        "gripper.x",
        "gripper.y",
        "gripper.z",
        "gripper.opening",
        "gripper.holding",
        "table.z",
        *axes,
    )


def goal_points(goals: Iterable[Goal]) -> dict[str, tuple[str, str]]:
    """Return `object`, `object2` and `goal`, as questions call the task's points -> (predicate,
    body or region).

    These are the first two bodies in the goal, each with its first predicate, and the target of the
    last predicate that has one. Nothing is asked about the target (predicate "").
    """
    goals = list(goals)
    bodies = {goal[1]: goal[0] for goal in reversed(goals)}
    first = list(dict.fromkeys(goal[1] for goal in goals))[:2]
    targets = [goal[2] for goal in goals if len(goal) > 2]
    points = {point: (bodies[name], name) for point, name in zip(_POINTS, first, strict=False)}
    return points | ({"goal": ("", targets[-1])} if targets else {})


def position(scene: LiberoScene, predicate: str, name: str) -> Floats:
    """Return the point of a goal, [3] world, meters: see
    `DemonstratedLiberoEnvironment.privileged`."""
    if predicate in ("open", "close", "turnon", "turnoff"):
        joint = scene.joint_of(name)
        return (
            handle(scene, joint) if scene.is_drawer(name) else scene.middle(scene.moved_by(joint))
        )
    return (
        scene.middle(scene.geoms(name))
        if name in scene.simulation.objects_dict
        else scene.position(name)
    )
