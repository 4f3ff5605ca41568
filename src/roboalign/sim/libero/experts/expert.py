"""Run the expert of a task: take the goal's predicates in order, each with the skill that makes it
true."""

from collections.abc import Generator
from functools import partial

import numpy as np

from roboalign.sim.libero.environment import LiberoEnvironment
from roboalign.sim.libero.experts.doors import close_door, insert
from roboalign.sim.libero.experts.fixtures import close_drawer, open_drawer, turn_knob
from roboalign.sim.libero.experts.motion import OPEN_GRIPPER, ExpertMotion, grip
from roboalign.sim.libero.experts.scene import LiberoScene
from roboalign.sim.libero.experts.skills import pick, place, push

ROUNDS = 3
"""Maximum number of passes over all predicates while one does not hold."""
SHUT, AJAR, _WIDE = 0.08, 0.13, 0.18
"""Openings of a drawer, in meters: below SHUT it counts as shut; AJAR is how far it is pulled to
put something in; _WIDE is the goal for opening it (beyond its stop). A wide-open drawer covers what
is in front of the cabinet."""
SIDE_BY_SIDE = 0.045
"""Distance before and behind the middle of a shared target at which its two objects are placed,
meters."""


class Expert:
    """Yield the scripted expert's actions from the current state of the simulation, for one
    episode."""

    def __init__(self, scene: LiberoScene) -> None:
        self._motion = _solve(scene)

    def action(self) -> np.ndarray:
        """Return the next action, float32 [7] in [-1, 1]; the hand rests once the expert has
        stopped."""
        return next(self._motion)


def make_expert(environment: LiberoEnvironment) -> Expert:
    """Return the expert of an environment's current episode; call it after the reset."""
    return Expert(LiberoScene(environment.simulation))


def _solve(scene: LiberoScene) -> Generator[np.ndarray, None, None]:
    for _ in range(ROUNDS):
        for goal in sorted(scene.goals(), key=lambda goal: goal[0] == "close"):
            if not scene.holds(goal):
                yield from _achieve(scene, goal)
    while True:
        yield from grip(scene, OPEN_GRIPPER, 1)


def _achieve(scene: LiberoScene, goal: list[str]) -> ExpertMotion:
    """Make one predicate true."""
    predicate, name, *target = goal
    if predicate == "in" and scene.is_behind_door(target[0]):
        return (yield from insert(scene, name, target[0]))
    if predicate in ("on", "in"):
        return (yield from _bring(scene, name, target[0]))
    if predicate == "turnon":
        return (yield from turn_knob(scene, name))
    if predicate == "open":
        return (yield from open_drawer(scene, name, _WIDE))
    if predicate == "close" and scene.is_drawer(name):
        return (yield from close_drawer(scene, name))
    if predicate == "close":
        return (yield from close_door(scene, name))
    return (yield from grip(scene, OPEN_GRIPPER, 1))


def _bring(scene: LiberoScene, name: str, target: str) -> ExpertMotion:
    """Bring an object to its target; a plate is pushed over the table, a shut drawer is opened first."""
    if scene.is_drawer(target) and abs(scene.joint(scene.joint_of(target)).value) < SHUT:
        yield from open_drawer(scene, target, AJAR)
    spot = partial(scene.position, target)
    if name.startswith("plate"):
        return (yield from push(scene, name, spot))
    sharing = [goal[1] for goal in scene.goals() if goal[0] == "on" and goal[-1] == target]
    side = (
        np.array([SIDE_BY_SIDE * (2 * sharing.index(name) - 1), 0.0, 0.0])
        if len(sharing) == 2
        else np.zeros(3)
    )
    if not (yield from pick(scene, name)):
        return False
    return (yield from place(scene, name, lambda: spot() + side))
