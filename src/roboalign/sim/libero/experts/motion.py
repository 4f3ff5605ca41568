"""Move the hand by proportional control from the current state to a pose, one action at a time.

A motion is a generator. It yields actions [7] (OSC_POSE displacement in [-1, 1], gripper -1 opens
and 1 closes), each computed from the state at that moment, and returns whether it arrived.
"""

from collections.abc import Callable, Generator

import numpy as np
from scipy.spatial.transform import Rotation

from roboalign.sim.libero.experts.grasps import (
    FINGER_OUTER,
    PALM,
    PALM_ABOVE,
    TIP_BELOW,
    lowest_hand,
)
from roboalign.sim.libero.experts.scene import Floats, LiberoScene

ExpertMotion = Generator[np.ndarray, None, bool]
Point = Callable[[], Floats]

OPEN_GRIPPER, CLOSE_GRIPPER = -1.0, 1.0
POSITION_UNIT, ROTATION_UNIT = 0.05, 0.5
"""What an action of 1 asks of the controller: meters, rad."""
GAIN = 1.6
_PATIENCE = 12
"""Steps without progress after which a motion is given up."""
RETREAT = 0.1
"""Distance that the hand moves out from under something, meters."""
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""The hand's orientation at rest: it points down, and the fingers close along world y."""


def pointing_down(yaw: float) -> Floats:
    """Return the orientation [3, 3] of a hand that points down, turned about the vertical."""
    return np.asarray(Rotation.from_euler("z", yaw).as_matrix() @ DOWN)


def yaw_of(orientation: Floats) -> float:
    """Return the yaw of a hand that points roughly down, rad."""
    return float(np.arctan2(-orientation[0, 0], orientation[1, 0]))


def action_towards(
    scene: LiberoScene, point: Floats, orientation: Floats, gripper: float, speed: float = 1.0
) -> np.ndarray:
    """Return the action float32 [7] that drives the hand to a pose, slower than `speed` (1 is about
    0.3 m/s)."""
    position, current = scene.hand()
    move = GAIN * (point - position) / POSITION_UNIT
    turn = GAIN * Rotation.from_matrix(orientation @ current.T).as_rotvec() / ROTATION_UNIT
    move *= min(1.0, speed / max(np.abs(move).max(), 1e-9))
    turn *= min(1.0, 1.0 / max(np.abs(turn).max(), 1e-9))
    return np.array([*move, *turn, gripper], np.float32)


def move(
    scene: LiberoScene,
    point: Point,
    orientation: Floats,
    gripper: float,
    *,
    tolerance: float = 0.008,
    speed: float = 1.0,
    limit: int = 80,
) -> ExpertMotion:
    """Drive to `point`, which may itself move, until within `tolerance` meters and 0.08 rad.

    Given up after `limit` steps, or after _PATIENCE steps that brought the hand no nearer, because
    it is blocked or out of reach.
    """
    best, since = np.inf, 0
    for _ in range(limit):
        position, current = scene.hand()
        distance = float(np.linalg.norm(point() - position))
        turn = Rotation.from_matrix(orientation @ current.T).magnitude()
        if distance < tolerance and turn < 0.08:
            return True
        error = distance + 0.1 * turn
        best, since = (error, 0) if error < best - 0.001 else (best, since + 1)
        if since > _PATIENCE:
            return False
        yield action_towards(scene, point(), orientation, gripper, speed)
    return False


def rise(scene: LiberoScene, gripper: float, height: float, speed: float = 1.0) -> ExpertMotion:
    """Move straight up by `height` meters."""
    start, orientation = scene.hand()
    point = start + np.array([0.0, 0.0, height])
    return (
        yield from move(
            scene, lambda: point, orientation, gripper, tolerance=0.01, speed=speed, limit=30
        )
    )


def grip(scene: LiberoScene, gripper: float, steps: int = 10) -> ExpertMotion:
    """Hold the pose while the fingers move."""
    point, orientation = scene.hand()
    for _ in range(steps):
        yield action_towards(scene, point, orientation, gripper)
    return True


def travel(
    scene: LiberoScene, point: Point, orientation: Floats, gripper: float, carried: list[int]
) -> ExpertMotion:
    """Move above `point` at a height that clears everything on the way, including what is carried;
    do not descend."""
    obstacles = scene.around(carried)
    start, facing = scene.hand()
    over = obstacles[:, 2] > start[2] + 0.02
    if carried and (np.linalg.norm(obstacles[over, :2] - start[:2], axis=1) < PALM[0]).any():
        # Something, such as an open drawer, hangs over the hand. Move away from it first, toward
        # the robot.
        back = start + RETREAT * (scene.base() - start) * [1, 1, 0] / np.linalg.norm(
            (scene.base() - start)[:2]
        )
        yield from move(scene, lambda: back, facing, gripper, tolerance=0.02, limit=40)
        start, facing = scene.hand()
    goal = point()
    held = scene.points(carried) if carried else np.add(start, [[0.0, FINGER_OUTER, -TIP_BELOW]])
    hang, radius = (
        start[2] - held[:, 2].min(),
        np.linalg.norm(held[:, :2] - start[:2], axis=1).max() + 0.02,
    )
    beside = _beside(obstacles[:, :2], start[:2], goal[:2])
    low = obstacles[beside < radius, 2].max(initial=scene.ground) + hang + 0.03
    high = obstacles[beside < PALM[0] + 0.015, 2].max(initial=scene.ground) - PALM_ABOVE + 0.02
    height = float(max(low, high, goal[2]))
    yield from move(scene, lambda: np.array([*start[:2], height]), facing, gripper, tolerance=0.025)
    return (
        yield from move(
            scene,
            lambda: np.array([*point()[:2], height]),
            orientation,
            gripper,
            tolerance=0.015,
            limit=120,
        )
    )


def _beside(points: Floats, start: Floats, end: Floats) -> Floats:
    """Return the distances [N] of points [N, 2] from the segment between two points."""
    way = end - start
    share = np.clip((points - start) @ way / max(float(way @ way), 1e-9), 0.0, 1.0)
    return np.asarray(np.linalg.norm(points - start - share[:, None] * way, axis=1))


def resting_height(scene: LiberoScene, carried: list[int], xy: Floats, yaw: float) -> float:
    """Return the height of the hand over `xy` [2] at which its load is just above its support and
    the hand is free."""
    position, _ = scene.hand()
    held = scene.points(carried)
    bottom = held[:, 2].min()
    foot = held[held[:, 2] < bottom + 0.015, :2] + xy - position[:2]
    obstacles = scene.around(carried)
    inside = ((obstacles[:, :2] > foot.min(axis=0)) & (obstacles[:, :2] < foot.max(axis=0))).all(
        axis=1
    )
    support = obstacles[inside, 2].max(initial=scene.ground)
    return float(
        max(support + position[2] - bottom + 0.004, lowest_hand(obstacles, xy, yaw, opened=False))
    )
