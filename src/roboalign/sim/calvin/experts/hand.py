"""Move the hand: what every expert is written with.

An expert is a generator of actions. Before each it reads the state of the simulation again, so that
noise on the executed action is corrected.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from roboalign.sim.calvin.world import Simulation

OPEN, FINGERS_SHUT = 1.0, -1.0
Moves = Iterator[np.ndarray]
Place = Callable[[], np.ndarray]
Facing = float | np.ndarray
"""The yaw of a hand that points down, or its three Euler angles, radians."""
_STEP, _TURN = 0.02, 0.05
"""Meters and radians of an action of 1."""
_LEAD, _TWIST = 0.06, 0.3
"""How far the commanded pose may be ahead of the hand, meters and radians."""
_GAIN = 0.6
"""Share of the distance that one action covers at most: the arm follows with a lag."""


class Hand:
    """The robot's hand and what is around it, read from the simulation at each call."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation

    @property
    def position(self) -> np.ndarray:
        """Return the point between the fingertips, meters."""
        return self.simulation.robot()[:3]

    @property
    def yaw(self) -> float:
        """Return the rotation about the vertical, radians."""
        return float(self.simulation.robot()[5])

    def block(self, color: str) -> np.ndarray:
        """Return where a block's middle is, meters."""
        return np.asarray(self._thing(color)["current_pos"], np.float64)

    def block_yaw(self, color: str) -> float:
        """Return a block's rotation about the vertical, radians."""
        x, y, z, w = self._thing(color)["current_orn"]
        return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))

    def joint(self, name: str) -> float:
        """Return the position of `slide` or `drawer`."""
        door = self.simulation.info()["scene_info"]["doors"][f"base__{name}"]
        return float(door["current_state"])

    def box(self, link: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and the highest corner of a part of the table, such as `button`."""
        return self.simulation.box(link)

    def held(self) -> str | None:
        """Return the color of the block that the robot touches; None if it touches no block."""
        info = self.simulation.info()
        touched = {contact[2] for contact in info["robot_info"]["contacts"]}
        for name, thing in info["scene_info"]["movable_objects"].items():
            if thing["uid"] in touched:
                return str(name).removeprefix("block_")
        return None

    def _thing(self, color: str) -> dict[str, Any]:
        things: dict[str, Any] = self.simulation.info()["scene_info"]["movable_objects"]
        thing: dict[str, Any] = things[f"block_{color}"]
        return thing

    def action(
        self, goal: np.ndarray, facing: Facing, grip: float, speed: float = 1.0
    ) -> np.ndarray:
        """Return the action that moves toward a position and angles, float32 [7].

        An action moves the commanded pose, which may be ahead of the hand's own by a bounded lead:
        a hand that is blocked would otherwise jump when it comes free.
        """
        pose, (place, turned) = self.simulation.robot(), self.simulation.commanded()
        move = _GAIN * (goal - pose[:3]) / _STEP
        longest = float(np.abs(move).max())
        move *= min(1.0, speed / longest) if longest else 1.0  # straight, also where it is far
        ahead = place - pose[:3]
        move = np.clip(ahead + _STEP * move, -_LEAD, _LEAD) - ahead
        turn = _GAIN * wrapped(_angles(facing) - pose[3:6])
        twisted = wrapped(turned - pose[3:6])
        turn = np.clip(twisted + turn, -_TWIST, _TWIST) - twisted
        action = np.concatenate([move / _STEP, np.clip(turn / _TURN, -speed, speed), [grip]])
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def _angles(facing: Facing) -> np.ndarray:
    return np.array([np.pi, 0.0, facing]) if isinstance(facing, float) else facing


def by(x: float, y: float, z: float) -> np.ndarray:
    """Return a displacement, meters."""
    return np.array([x, y, z], np.float64)


def wrapped(angle: Any) -> Any:
    """Return the same angles between -pi and pi."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def nearest_grasp(hand_yaw: float, block_yaw: float) -> float:
    """Return the yaw next to the hand's at which the fingers close on two sides of a block."""
    turns = np.round((hand_yaw - block_yaw) / (np.pi / 2))
    return float(block_yaw + turns * np.pi / 2)


def reach(
    hand: Hand,
    goal: Place | np.ndarray,
    facing: Facing,
    grip: float,
    *,
    within: float = 0.008,
    turned: float = 0.15,
    speed: float = 1.0,
    most: int = 80,
) -> Moves:
    """Move until the hand is `within` meters and `turned` radians of the goal, at most `most`
    steps."""
    for _ in range(most):
        place = goal() if callable(goal) else goal
        near = np.linalg.norm(place - hand.position) < within
        if near and abs(wrapped(_angles(facing)[2] - hand.yaw)) < turned:
            return
        yield hand.action(place, facing, grip, speed)


def fingers(hand: Hand, value: float, steps: int = 8, facing: Facing | None = None) -> Moves:
    """Open or close the fingers where the hand is."""
    place = hand.position
    angles: Facing = hand.yaw if facing is None else facing
    for _ in range(steps):
        yield hand.action(place, angles, value)
