"""Define what a simulator offers: observations and steps. Nothing here knows models or training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from roboalign.actions.axes import Axes
from roboalign.actions.spaces import ActionSpace
from roboalign.sim.cameras import CameraGeometry


class EnvironmentCrash(RuntimeError):
    """The simulation itself broke: a simulator error, a diverged state, a NaN; or the server of a policy gave no
    usable answer. Never counted as a failed episode."""


@dataclass(frozen=True)
class Task:
    """One task of a benchmark."""

    name: str
    instruction: str
    """The instruction that the policy reads, in English."""
    nouns: Mapping[str, str]
    """Words for the privileged points: {"object": "drawer handle", "goal": ...}; "object2" if the task has one."""


@dataclass(frozen=True)
class Observation:
    """What a policy sees at one step."""

    images: dict[str, np.ndarray]
    """Camera name -> uint8 [H, W, 3], RGB, upright."""
    state: np.ndarray
    """float32 [S], proprioception; the benchmark says the units (`state_names`)."""
    instruction: str
    """`Task.instruction`, or what it has become."""


@dataclass(frozen=True)
class StepOutcome:
    """What one step led to, where an episode is more than one task that is solved or not.

    It is true where the episode is solved, so that it reads like the bool of other environments.
    """

    solved: bool = False
    """Whether the whole episode is solved, which ends it."""
    ended: bool = False
    """Whether it ends without success, before its step limit."""
    replan: bool = False
    """Whether the instruction has changed. The rest of the chunk was for the old one and is dropped."""
    progress: int = 0
    """Parts of the episode that are solved so far."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the episode's record keeps besides, as JSON values."""

    def __bool__(self) -> bool:
        """Return `solved`."""
        return self.solved


class Environment(Protocol):
    """One running task. Results depend only on the seed and the actions, not on earlier
    episodes."""

    max_steps: int
    """The task's own episode limit, in steps. A rollout has one too; the lower one ends an episode."""

    def reset(self, seed: int) -> None:
        """Start the episode of `seed`. The initial state is the same for every policy, in every process."""

    def observe(self) -> Observation:
        """Render the current state and return what the policy sees."""

    def step(self, action: np.ndarray) -> bool | StepOutcome:
        """Execute one raw action [A] without rendering. Return True if the task is solved after it.

        An environment whose instruction changes, or whose episode can end unsolved, returns an
        StepOutcome.
        Raises EnvironmentCrash if the simulation breaks.
        """

    def close(self) -> None:
        """Free what the environment holds."""


class Benchmark(Protocol):
    """A set of tasks with one action and one observation space. Picklable: workers build their own environments."""

    @property
    def action_dim(self) -> int:
        """Return A, the length of an action."""
        ...

    @property
    def state_dim(self) -> int:
        """Return S, the length of the proprioception."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """Return the names of the cameras, in the order of `Observation.images`."""
        ...

    @property
    def fps(self) -> float:
        """Return the policy steps per second."""
        ...

    def tasks(self) -> list[Task]:
        """Return all tasks, in a fixed order."""

    def make(self, task: str) -> Environment:
        """Build the environment of one task. Raises RoboAlignError for an unknown name."""

    def episode_id(self, task: str, seed: int) -> str:
        """Return the stable name of an episode. Data sets use it, and so does the check that they
        contain no measured episode."""


class DemonstratedEnvironment(Environment, Protocol):
    """An environment with a scripted expert and the privileged state that it reads."""

    task: Task

    @property
    def privileged_names(self) -> tuple[str, ...]:
        """Return the names of `privileged`: gripper.x, gripper.y, gripper.z, gripper.opening,
        object.x, ..."""
        ...

    def expert(self) -> Callable[[], np.ndarray]:
        """Return the expert of the episode that was just reset. Each call returns its action,
        float32 [A], in the current state."""

    def privileged(self) -> np.ndarray:
        """Return float32 [P], world coordinates in meters."""

    def state(self) -> np.ndarray:
        """Return proprioception float32 [S], as `observe` gives it."""

    def render(self) -> dict[str, np.ndarray]:
        """Return camera name -> uint8 [H, W, 3], as `observe` gives them."""

    def camera_geometry(self) -> dict[str, CameraGeometry]:
        """Return camera name -> image size in pixels and projection."""


@runtime_checkable
class NamingEnvironment(Protocol):
    """An environment whose own judge names what was done, whatever the expert was asked to do."""

    def name_episode(self) -> Task | str:
        """Return the one task that was done between the reset and now, or the reason why the
        episode cannot be named. Nouns stay those of the privileged points."""


class DemonstratedBenchmark(Benchmark, Protocol):
    """A benchmark whose tasks have scripted experts. Demonstrations are written with these
    names."""

    @property
    def robot_type(self) -> str:
        """Return the robot's name in a data set, for example `sawyer`."""
        ...

    @property
    def action_space(self) -> str | ActionSpace:
        """Return what the actions mean: a name of `actions.known_spaces.KNOWN`, or the space
        itself."""
        ...

    @property
    def axes(self) -> Axes:
        """Return where +x, +y and +z of actions and privileged points are, as seen by the robot."""
        ...

    @property
    def action_names(self) -> tuple[str, ...]:
        """Return A names, one for each number of an action."""
        ...

    @property
    def state_names(self) -> tuple[str, ...]:
        """Return S names, one for each number of the proprioception."""
        ...

    @property
    def image_size(self) -> int:
        """Return the width and height of every camera's image, in pixels."""
        ...

    def prepare(self) -> None:
        """Prepare once, before worker processes start, what each would otherwise find by itself
        (such as a renderer)."""

    def privileged_names(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Return every name of these tasks' environments, without building one."""

    def make(self, task: str) -> DemonstratedEnvironment:
        """Build the environment of one task, with its expert. Raises RoboAlignError for an unknown name."""
