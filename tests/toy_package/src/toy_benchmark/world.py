"""The simulator: a hand that moves above a table, a camera that looks down, and an expert.

World frame: meters, x to the robot's right, y forward, z up; the table is z = 0 and reaches 0.25 m to each side.
An action is 4 numbers in [-1, 1]: the hand's displacement (1 is 3 cm a step) and the gripper (1 closes, -1 opens).
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from roboalign.actions.axes import Axes
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import EnvironmentCrash, Observation, Task
from roboalign.sim.cameras import CameraGeometry
from toy_benchmark.spec import COLORS, ToyConfig

STEP = 0.03  # meters of one unit of an action
TABLE = 0.25  # meters from the middle of the table to its edges
SPACE = ActionSpace(
    control="end-effector", mode="delta", gripper="closed_positive", position_scale=STEP
)
NAMES = (
    "gripper.x",
    "gripper.y",
    "gripper.z",
    "gripper.opening",
    "object.x",
    "object.y",
    "object.z",
)
TASKS = {
    f"toy/touch-{color}": Task(
        f"toy/touch-{color}", f"Touch the {color} square.", {"object": f"{color} square"}
    )
    for color in COLORS
}


@dataclass(frozen=True)
class Toy:
    """Three tasks as a `DemonstratedBenchmark`. Picklable: worker processes build their own environments."""

    config: ToyConfig = field(default_factory=ToyConfig)
    action_dim: int = 4
    state_dim: int = 4
    fps: float = 10.0
    cameras: tuple[str, ...] = ("top",)
    robot_type: str = "toy"
    action_space: ActionSpace = SPACE
    axes: Axes = ("right", "forward", "up")
    action_names: tuple[str, ...] = ("x", "y", "z", "gripper")
    state_names: tuple[str, ...] = NAMES[:4]

    @property
    def image_size(self) -> int:
        """Width and height of the image, pixels."""
        return self.config.image_size

    def prepare(self) -> None:
        """Nothing to find out before workers start."""

    def tasks(self) -> list[Task]:
        """All tasks."""
        return list(TASKS.values())

    def make(self, task: str) -> "ToyEnvironment":
        """One task. Raises RoboAlignError where the name is unknown."""
        if task not in TASKS:
            raise RoboAlignError(
                f"unknown task {task!r}", where="task", fix=f"use one of {list(TASKS)}"
            )
        return ToyEnvironment(TASKS[task], self.config)

    def episode_id(self, task: str, seed: int) -> str:
        """For example `toy/touch-red/seed-17`."""
        return f"{task}/seed-{seed}"

    def privileged_names(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """The same of every task."""
        return NAMES


class ToyEnvironment:
    """One task. An episode depends on its seed and its actions alone."""

    max_steps = 100
    privileged_names = NAMES
    expert_starts_anywhere = True  # it reads the state at every step, and remembers nothing

    def __init__(self, task: Task, config: ToyConfig) -> None:
        self.task, self.config = task, config
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Draw where the hand and the square are, and open the gripper."""
        rng = np.random.default_rng([seed, zlib.crc32(self.task.name.encode())])
        self.hand = np.append(rng.uniform(-0.2, 0.2, size=2), 0.15)
        self.square = np.append(rng.uniform(-0.2, 0.2, size=2), 0.0)
        self.opening = 1.0

    def step(self, action: np.ndarray) -> bool:
        """Move by an action [4]; True where the hand touches the square. Raises EnvironmentCrash for NaN."""
        if np.shape(action) != (4,) or not np.isfinite(action).all():
            raise EnvironmentCrash(f"{self.task.name}: an action is 4 finite numbers, not {action}")
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        bounds = np.array([TABLE, TABLE, 0.3])
        self.hand = np.clip(self.hand + STEP * action[:3], [-TABLE, -TABLE, 0.0], bounds)
        self.opening = float(np.clip(self.opening - 0.5 * action[3], 0.0, 1.0))
        return bool(np.linalg.norm(self.hand - self.square) < self.config.radius)

    def expert(self) -> Callable[[], np.ndarray]:
        """Straight to the square with an open gripper."""

        def action() -> np.ndarray:
            move = np.clip((self.square - self.hand) / STEP, -1.0, 1.0)
            return np.append(move, -1.0).astype(np.float32)

        return action

    def state(self) -> np.ndarray:
        """Proprioception float32 [4]: the hand's position (meters) and opening (0 closed, 1 open)."""
        return np.append(self.hand, self.opening).astype(np.float32)

    def privileged(self) -> np.ndarray:
        """float32 [7], as `privileged_names` says. Questions are made of it; no policy sees it."""
        return np.hstack([self.hand, self.opening, self.square]).astype(np.float32)

    def observe(self) -> Observation:
        """What a policy sees."""
        return Observation(self.render(), self.state(), self.task.instruction)

    def render(self) -> dict[str, np.ndarray]:
        """`top` -> uint8 [size, size, 3]: table, square, and the hand, drawn larger the higher it is."""
        size = self.config.image_size
        image = np.full((size, size, 3), (225, 215, 195), np.uint8)
        color = COLORS[self.task.name.removeprefix("toy/touch-")]
        for point, half, rgb in (
            (self.square, 0.03, color),
            (self.hand, 0.01 + 0.1 * self.hand[2], (60, 60, 60)),
        ):
            left, right = np.clip((point[0] + np.array([-half, half]) + TABLE) / (2 * TABLE), 0, 1)
            top, bottom = np.clip((TABLE - point[1] + np.array([-half, half])) / (2 * TABLE), 0, 1)
            rows = slice(round(top * size), round(bottom * size))
            image[rows, round(left * size) : round(right * size)] = rgb
        return {"top": image}

    def camera_geometry(self) -> dict[str, CameraGeometry]:
        """The parallel projection of `render`: u = (x + TABLE) * scale, v = (TABLE - y) * scale."""
        size = self.config.image_size
        scale = size / (2 * TABLE)
        projection = np.array([[scale, 0, 0, size / 2], [0, -scale, 0, size / 2], [0, 0, 0, 1.0]])
        return {"top": CameraGeometry(size, size, projection)}

    def close(self) -> None:
        """Nothing to free."""
