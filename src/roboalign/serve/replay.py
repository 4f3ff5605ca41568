"""Serve recorded actions without a model, to test keys, units and gripper signs separately."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.robot_data import RobotData
from roboalign.serve.contract import Contract
from roboalign.serve.describe import facts_of


class Replay:
    """`act_batch` that returns the recorded chunk of the nearest state, among episodes with the
    same instruction.

    Distances are in standard deviations of each dimension. A state outside the recorded range by
    more than the width of this range is refused: its unit or order, or the robot, differs.
    """

    def __init__(self, data: RobotData, horizon: int) -> None:
        """Read the states and actions of every episode.

        Raises RoboAlignError if there is no episode, if one has no states, or if episodes differ in
        cameras, rate or shapes.
        """
        self.horizon = horizon
        states: dict[str, list[np.ndarray]] = {}
        chunks: dict[str, list[np.ndarray]] = {}
        facts: dict[str, Any] = {}
        for episode in data:
            if not episode.state.shape[1]:
                raise RoboAlignError(
                    "it has no states, by which a recorded step is found", where=data.name
                )
            told = facts_of(episode) | {
                "cameras": {name: (c.height, c.width) for name, c in episode.cameras.items()},
                "action_dim": episode.actions.shape[1],
            }
            facts = facts or told
            if told != facts:
                raise RoboAlignError(
                    "its episodes differ in cameras, rate, state or action", where=data.name
                )
            states.setdefault(episode.instruction, []).append(episode.state)
            chunks.setdefault(episode.instruction, []).append(episode.chunks(horizon))
        if not states:
            raise RoboAlignError("the data set has no episode", where=data.name)
        self.states = {prompt: np.concatenate(parts) for prompt, parts in states.items()}
        self.chunks = {prompt: np.concatenate(parts) for prompt, parts in chunks.items()}
        every = np.concatenate(list(self.states.values()))
        self.low, self.high = every.min(axis=0), every.max(axis=0)
        self.spread = np.maximum(every.std(axis=0), 1e-6)
        self.contract = Contract(
            model=f"replay of {data.name}",
            horizon=horizon,
            needs_state=True,
            action_names=data.action_names,
            state_names=data.state_names,
            **facts,
        )

    def act_batch(self, observations: Sequence[Any], noise_keys: object) -> np.ndarray:
        """Return float32 [B, horizon, A], raw units.

        Raises RoboAlignError for an instruction that no episode has or a state far outside the
        recorded range.
        """
        return np.stack(
            [self._chunk(seen.instruction, np.asarray(seen.state)) for seen in observations]
        )

    def _chunk(self, instruction: str, state: np.ndarray) -> np.ndarray:
        if instruction == "warm up":
            return next(iter(self.chunks.values()))[0]
        if instruction not in self.states:
            some = "; ".join(sorted(self.states)[:5])
            raise RoboAlignError(
                f"no episode has the instruction {instruction[:80]!r}",
                where="prompt",
                fix=f"send one of its {len(self.states)}: {some}",
            )
        width = self.high - self.low
        outside = np.maximum(self.low - state, state - self.high)
        if (far := np.flatnonzero(outside > np.maximum(width, 1e-3))).size:
            self._refuse(int(far[0]), state)
        distance = (((self.states[instruction] - state) / self.spread) ** 2).sum(axis=1)
        return self.chunks[instruction][int(distance.argmin())]

    def _refuse(self, number: int, state: np.ndarray) -> None:
        names = self.contract.state_names
        name = names[number] if names else f"dimension {number}"
        raise RoboAlignError(
            f"{name} is {state[number]:.6g}, recorded are {self.low[number]:.6g} to {self.high[number]:.6g}",
            where="observation/state",
            fix="check the unit and the order of the state",
        )
