"""Demonstrate CALVIN's tasks with scripted experts, judged by CALVIN's oracle.

A demonstration begins where a chain could: other tasks were done before it, by their experts and
without being recorded, so the hand is somewhere, open, or holding a block. It is not the public data
set: other robot motions, other sentences per task, and drawn by this machine's renderer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign.actions.axes import Axes
from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import EnvironmentCrash, Observation, Task
from roboalign.sim.calvin.chains import BLOCK_COLORS
from roboalign.sim.calvin.checkout import open_checkout
from roboalign.sim.calvin.config import CalvinConfig
from roboalign.sim.calvin.environment import MEASURED_SCENE, STATE_SIZE, Calvin
from roboalign.sim.calvin.experts.catalog import expert_moves, expert_tasks
from roboalign.sim.calvin.experts.hand import OPEN, Hand
from roboalign.sim.calvin.library import load_simulator
from roboalign.sim.calvin.starts import draw_preparation, drawn_start, generator_of
from roboalign.sim.calvin.world import Simulation
from roboalign.sim.cameras import CameraGeometry

TASK_PREFIX = "calvin/"
_STARTS_TRIED = 10
_SETTLE = 8
"""Steps without motion before a recording: things that move come to rest."""
_POINTS = (
    "gripper.x",
    "gripper.y",
    "gripper.z",
    "gripper.opening",
    "object.x",
    "object.y",
    "object.z",
)
_WIDEST = 0.08
_PARTS = {"slider": "slide", "drawer": "drawer", "led": "button", "lightbulb": "switch"}
_DOORS = ("drawer", "slider_left", "slider_right")
_JOINTS = tuple(f"joint.{number}" for number in range(1, 8))


@dataclass(frozen=True)
class DemonstratedCalvin(Calvin):
    """The tasks that have an expert, in scene D, as a `DemonstratedBenchmark`."""

    robot_type: str = "panda"
    axes: Axes = ("right", "forward", "up")
    action_names: tuple[str, ...] = (
        "x",
        "y",
        "z",
        "rotation.x",
        "rotation.y",
        "rotation.z",
        "gripper",
    )

    @property
    def state_names(self) -> tuple[str, ...]:
        """Return a name for each number of the proprioception."""
        pose = ("hand.x", "hand.y", "hand.z", "rotation.x", "rotation.y", "rotation.z", "opening")
        return (*pose, *_JOINTS, "gripper")[: self.state_dim]

    @property
    def image_size(self) -> int:
        """Return the width and height of every image, pixels."""
        return self.config.image_size

    def prepare(self) -> None:
        """Check the checkout once, before worker processes start."""
        load_simulator(open_checkout(self.config.checkout))

    def privileged_names(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the hand and the object."""
        return _POINTS

    def tasks(self) -> list[Task]:
        """Return the demonstrated tasks, with the sentences that measure."""
        sentences = open_checkout(self.config.checkout).sentences()
        return [_task(name, sentences) for name in expert_tasks() if name in sentences]

    def make(self, task: str) -> "DemonstratedCalvinEnvironment":  # type: ignore[override]
        """Return the environment of a task `calvin/NAME`. Raises RoboAlignError for another."""
        found = {one.name: one for one in self.tasks()}
        if task not in found:
            raise RoboAlignError(
                f"no expert does {task!r}", where="task", fix=f"use one of {', '.join(found)}"
            )
        return DemonstratedCalvinEnvironment(found[task], self.config)


def _task(name: str, sentences: dict[str, str]) -> Task:
    return Task(TASK_PREFIX + name, sentences[name], {"object": _noun(name)})


def _noun(name: str) -> str:
    for color in BLOCK_COLORS:
        if color in name:
            return f"{color} block"
    for word, part in (("slider", "sliding door"), ("led", "button"), ("lightbulb", "switch")):
        if name.endswith((word, f"{word}_left", f"{word}_right")) and not name.startswith("place"):
            return part
    return "drawer" if name in ("open_drawer", "close_drawer") else "block"


class DemonstratedCalvinEnvironment:
    """One task of scene D, or of another one (see `DemonstratedEnvironment`)."""

    def __init__(self, task: Task, config: CalvinConfig, scene: str = MEASURED_SCENE) -> None:
        self.task, self.config = task, config
        self.name = task.name.removeprefix(TASK_PREFIX)
        self.checkout = open_checkout(config.checkout)
        self.rules, self.poses = self.checkout.rules(), self.checkout.initial_poses()
        # Every demonstration is replayed from its seed, which only a fresh simulation allows.
        fresh = config.model_copy(update={"fresh": True})
        self.simulation = Simulation(self.checkout, scene, fresh)
        self.hand = Hand(self.simulation)
        self.max_steps = config.subtask_steps
        self.privileged_names = _POINTS

    def reset(self, seed: int) -> None:
        """Start the demonstration of `seed`: put the scene, and do what comes before the task.

        Where that fails, other draws of the seed are tried. Raises EnvironmentCrash if all fail.
        """
        for attempt in range(_STARTS_TRIED):
            random = generator_of(self.name, seed, attempt)
            state, before = draw_preparation(self.name, random, self.rules)
            self.simulation.begin(drawn_start(state, self.poses, random))
            if all(self._do(name) for name in before):
                break
        else:
            raise EnvironmentCrash(f"{self.task.name}: no start of seed {seed} could be prepared")
        self._settle()
        self.start = self.simulation.info()
        self.color = self._object_color()

    def _do(self, task: str) -> bool:
        """Let the expert do a task; return whether the oracle finds it done.

        It stops there, as in a chain, but finishes doors: half open, they hide what comes next.
        """
        start, done = self.simulation.info(), False
        for steps, action in enumerate(expert_moves(task, self.hand)):
            if steps == self.config.subtask_steps:
                break
            self.simulation.step(action)
            done = done or self.simulation.solved(task, start, self.simulation.info())
            if done and not task.endswith(_DOORS):
                break
        return done

    def _settle(self) -> None:
        last = self.simulation.robot()[14]
        for _ in range(_SETTLE):
            self.simulation.step(np.array([0.0] * 6 + [last]))

    def step(self, action: np.ndarray) -> bool:
        """Execute an action [7]; True once the oracle finds the task done since the start."""
        self.simulation.step(action)
        return self.simulation.solved(self.name, self.start, self.simulation.info())

    def name_episode(self) -> Task | str:
        """Return the task that the oracle names, of all that it knows, as the public data set is
        named; the reason where it finds several or none."""
        done = self.simulation.done(self.start, self.simulation.info())
        if len(done) != 1:
            return f"the oracle names {', '.join(done) or 'no task'}"
        sentences = self.checkout.sentences()
        return Task(TASK_PREFIX + done[0], sentences[done[0]], self.task.nouns)

    def expert(self) -> Callable[[], np.ndarray]:
        """Return the scripted expert, float32 [7]; at its end it holds still."""
        moves = expert_moves(self.name, self.hand)
        still = np.array([0.0] * 6 + [OPEN], np.float32)

        def action() -> np.ndarray:
            nonlocal still
            made = next(moves, None)
            if made is not None:
                still[6] = made[6]
            return still.copy() if made is None else made

        return action

    def observe(self) -> Observation:
        """Draw the cameras and return what a policy sees."""
        return Observation(self.render(), self.state(), self.task.instruction)

    def state(self) -> np.ndarray:
        """Return the proprioception, float32 [S]."""
        return self.simulation.robot()[: STATE_SIZE[self.config.state]].astype(np.float32)

    def render(self) -> dict[str, np.ndarray]:
        """Draw the cameras: name -> uint8 [size, size, 3]."""
        return self.simulation.images()

    def privileged(self) -> np.ndarray:
        """Return float32 [7]: the hand, its opening from 0 to 1, and the object; meters, world."""
        pose = self.simulation.robot()
        return np.hstack([pose[:3], pose[6] / _WIDEST, self._object()]).astype(np.float32)

    def _object_color(self) -> str | None:
        """Return the color of the block that the task is about, chosen at its start."""
        named = next((color for color in BLOCK_COLORS if color in self.name), None)
        if named or _noun(self.name) != "block":
            return named
        if self.name == "unstack_block":
            return max(BLOCK_COLORS, key=lambda color: self.hand.block(color)[2])
        if self.name == "push_into_drawer":
            return min(BLOCK_COLORS, key=lambda color: self.hand.block(color)[1])
        return self.hand.held() or BLOCK_COLORS[0]

    def _object(self) -> np.ndarray:
        if self.color is not None:
            return self.hand.block(self.color)
        part = next(part for word, part in _PARTS.items() if word in self.name)
        low, high = self.hand.box(part)
        return (low + high) / 2

    def camera_geometry(self) -> dict[str, CameraGeometry]:
        """Return camera name -> image size and projection; the hand's camera moves."""
        size = self.config.image_size
        fixed = self.simulation.projection("static", size)
        return {
            name: CameraGeometry(size, size, fixed if name == "static" else None)
            for name in self.config.cameras
        }

    def close(self) -> None:
        """Free the simulation."""
        self.simulation.close()
