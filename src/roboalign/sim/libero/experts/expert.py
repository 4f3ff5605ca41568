"""The expert of a task: the goal's predicates, one after the other, each by the skill that makes it true."""

from collections.abc import Generator
from typing import Any

import numpy as np

from roboalign.sim.libero.experts.motion import Motion, grip
from roboalign.sim.libero.experts.scene import Scene
from roboalign.sim.libero.experts.skills import pick, place, turn_knob

ROUNDS = 3
"""How often the whole goal is gone through again where a predicate does not hold."""


class Expert:
    """Yields the scripted expert's actions from the current state of the simulation. For one episode."""

    def __init__(self, scene: Scene) -> None:
        self._motion = _solve(scene)

    def action(self) -> np.ndarray:
        """The next action float32 [7] in [-1, 1]; the hand at rest where the expert has stopped."""
        return next(self._motion)


def make_expert(environment: Any) -> Expert:
    """The expert of an environment's current episode: call it after the reset."""
    return Expert(Scene(environment.simulation))


def _solve(scene: Scene) -> Generator[np.ndarray, None, None]:
    for _ in range(ROUNDS):
        for goal in sorted(scene.goals(), key=lambda goal: goal[0] == "close"):
            if not scene.holds(goal):
                yield from _achieve(scene, goal)
    while True:
        yield from grip(scene, -1.0, 1)


def _achieve(scene: Scene, goal: list[str]) -> Motion:
    """Make one predicate true."""
    predicate, name, *target = goal
    if predicate in ("on", "in"):
        if not (yield from pick(scene, name)):
            return False
        return (yield from place(scene, name, lambda: scene.position(target[0])))
    if predicate == "turnon":
        return (yield from turn_knob(scene, name, f"{name}_button", 1.2))
    return (yield from grip(scene, -1.0, 1))
