"""Run CALVIN's chains: five instructions in a row, each judged by CALVIN's oracle.

A subtask is solved when the oracle finds it between the state at its start and now. Then the next
one begins at once: the robot is not moved, and what is left of the policy's chunk is dropped. A
chain ends unsolved where a subtask has used up its steps.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import Observation, StepOutcome, Task
from roboalign.sim.calvin.chains import COUNT, LENGTH, Chain, chain_start, measured_chains
from roboalign.sim.calvin.checkout import open_checkout
from roboalign.sim.calvin.config import CalvinConfig
from roboalign.sim.calvin.world import Simulation

CHAINS = "calvin/chains"
MEASURED_SCENE = "D"
HAND_POSE = 7
STATE_SIZE = {"pose": HAND_POSE, "all": 15}


@dataclass(frozen=True)
class Calvin:
    """CALVIN's 1,000 chains as a `Benchmark` of one task. The seed is the number of the chain."""

    config: CalvinConfig = field(default_factory=CalvinConfig)
    action_dim: int = 7
    action_space: str = "calvin_relative"
    fps: float = 30.0

    @property
    def state_dim(self) -> int:
        """Return the length of the proprioception."""
        return STATE_SIZE[self.config.state]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Return the cameras of the configuration."""
        return self.config.cameras

    def tasks(self) -> list[Task]:
        """Return the one task; its instruction is each subtask's in turn."""
        return [Task(CHAINS, "five instructions in a row", {})]

    def make(self, task: str) -> "ChainEnvironment":
        """Return the environment of the chains. Raises RoboAlignError for another task, or without
        a checkout."""
        if task != CHAINS:
            raise RoboAlignError(
                f"CALVIN measures `{CHAINS}` alone, not {task!r}", where="task", fix=f"use {CHAINS}"
            )
        return ChainEnvironment(self.config)

    def episode_id(self, task: str, seed: int) -> str:
        """Return `calvin/chains:number`."""
        return f"{task}:{seed}"


class ChainEnvironment:
    """One chain at a time in scene D."""

    def __init__(self, config: CalvinConfig) -> None:
        self.config = config
        self.checkout = open_checkout(config.checkout)
        self.chains = measured_chains(self.checkout)
        self.sentences = self.checkout.sentences()
        self.world = Simulation(self.checkout, MEASURED_SCENE, config)
        self.max_steps = LENGTH * config.subtask_steps
        self.chain: Chain | None = None

    def reset(self, seed: int) -> None:
        """Start chain number `seed`. Raises RoboAlignError if there is none."""
        if not 0 <= seed < len(self.chains):
            raise RoboAlignError(
                f"no chain has number {seed}", where=CHAINS, fix=f"use 0 to {COUNT - 1}"
            )
        self.chain = self.chains[seed]
        self.world.begin(chain_start(dict(self.chain.state), self.checkout.initial_poses()))
        self.steps = [0]
        self._start = self.world.info()

    @property
    def task(self) -> str:
        """Return the subtask under way, the last one after the end."""
        assert self.chain is not None
        return self.chain.tasks[min(len(self.steps), LENGTH) - 1]

    def observe(self) -> Observation:
        """Draw the cameras and return what the policy sees, with the subtask's sentence."""
        state = self.world.robot()[: STATE_SIZE[self.config.state]].astype(np.float32)
        return Observation(self.world.images(), state, self.sentences[self.task])

    def step(self, action: np.ndarray) -> StepOutcome:
        """Execute one action and ask the oracle about the subtask under way."""
        self.world.step(action)
        self.steps[-1] += 1
        now = self.world.info()
        if self.world.solved(self.task, self._start, now):
            outcome = self._outcome(len(self.steps))
            self._start = now
            self.steps.append(0)
            return dataclasses.replace(outcome, replan=True)
        ended = self.steps[-1] >= self.config.subtask_steps
        return dataclasses.replace(self._outcome(len(self.steps) - 1), ended=ended)

    def _outcome(self, solved: int) -> StepOutcome:
        assert self.chain is not None
        details: dict[str, Any] = {"tasks": list(self.chain.tasks), "subtask_steps": [*self.steps]}
        return StepOutcome(solved=solved == LENGTH, progress=solved, details=details)

    def close(self) -> None:
        """Free the simulation."""
        self.world.close()
