"""What a simulator offers to the rest: observations and steps, nothing of models or training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class EnvironmentCrash(RuntimeError):
    """The simulation itself broke (a MuJoCo error, a diverged state, a NaN). Never counted as a failed episode."""


@dataclass(frozen=True)
class Task:
    """One task of a benchmark."""

    name: str
    instruction: str
    """What the robot is told, in English."""
    nouns: Mapping[str, str]
    """What the privileged points are: {"object": "drawer handle", "goal": ...}; "object2" where the task has one."""


@dataclass(frozen=True)
class Observation:
    """What a policy sees at one step."""

    images: dict[str, np.ndarray]
    """Camera name -> uint8 [H, W, 3], RGB, upright."""
    state: np.ndarray
    """float32 [S], proprioception."""
    instruction: str


class Environment(Protocol):
    """One running task. Results depend on the seed and the actions alone, not on earlier episodes."""

    max_steps: int

    def reset(self, seed: int) -> None:
        """Start the episode of `seed`: the same initial state for every policy, in every process."""

    def observe(self) -> Observation:
        """Render now and return what the policy sees."""

    def step(self, action: np.ndarray) -> bool:
        """Execute one raw action [A] without rendering; True where the task is solved after it.

        Raises EnvironmentCrash where the simulation breaks.
        """

    def close(self) -> None:
        """Free what the environment holds."""


class Benchmark(Protocol):
    """A set of tasks with one action and one observation space. Picklable: workers build their own environments."""

    @property
    def action_dim(self) -> int: ...

    @property
    def state_dim(self) -> int: ...

    @property
    def cameras(self) -> tuple[str, ...]: ...

    @property
    def fps(self) -> float:
        """Policy steps a second."""
        ...

    def tasks(self) -> list[Task]:
        """All tasks, in a fixed order."""

    def make(self, task: str) -> Environment:
        """Build the environment of one task. Raises RoboAlignError for an unknown name."""
