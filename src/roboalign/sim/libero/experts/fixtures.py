"""Expert motions for fixtures: turn a knob, open and close a drawer. See `skills`."""

import numpy as np
from scipy.spatial.transform import Rotation

from roboalign.sim.libero.experts.motion import (
    CLOSE_GRIPPER,
    OPEN_GRIPPER,
    ExpertMotion,
    grip,
    move,
    rise,
)
from roboalign.sim.libero.experts.scene import Floats, LiberoScene
from roboalign.sim.libero.experts.skills import grasp_from_above

UP = np.array([0.0, 0.0, 1.0])
PUSH = 0.19
"""How far the hand moves to push a drawer shut, meters: slightly beyond its stop."""
TURN = 1.2
"""How far a knob is turned, rad."""
PULL_TILT, PUSH_TILT = np.deg2rad(25), np.deg2rad(45)
"""The hand's angle below the horizontal when it pulls and when it pushes a drawer."""


def drive_joint(scene: LiberoScene, joint: str, amount: float, steps: int) -> ExpertMotion:
    """Move the hand, closed on a fixture's part, along the part's joint by `amount` (meters or
    rad)."""
    start = scene.joint(joint)
    point, orientation = scene.hand()
    for step in range(1, steps + 1):
        ahead = amount * step / steps
        if start.hinge:
            turn = Rotation.from_rotvec(ahead * start.axis)
            goal = start.anchor + turn.apply(point - start.anchor)
            facing = turn.as_matrix() @ orientation
        else:
            goal, facing = point + ahead * start.axis, orientation
        yield from move(scene, lambda: goal, facing, CLOSE_GRIPPER, tolerance=0.01, limit=3)  # noqa: B023
    return True


def turn_knob(scene: LiberoScene, fixture: str) -> ExpertMotion:
    """Grasp a knob from above and turn it."""
    joint = scene.joint_of(fixture)
    yield from grasp_from_above(scene, scene.moved_by(joint), [])
    yield from drive_joint(scene, joint, TURN, 12)
    yield from grip(scene, OPEN_GRIPPER, 8)
    return (yield from rise(scene, OPEN_GRIPPER, 0.12))


def open_drawer(scene: LiberoScene, region: str, distance: float) -> ExpertMotion:
    """Grasp a drawer's handle from the front, the fingers above and below the bar, and pull it by `distance` meters."""
    joint = scene.joint_of(region)
    inwards, grip_at = scene.joint(joint).axis, handle(scene, joint)
    approach = np.cos(PULL_TILT) * inwards - np.sin(PULL_TILT) * UP
    across = np.cross(UP, inwards) * (np.sign(inwards[1]) or 1.0) * -1.0
    orientation = np.column_stack([np.cross(across, approach), across, approach])
    front = grip_at - 0.1 * approach
    above = np.array([*front[:2], max(front[2], scene.hand()[0][2])])
    yield from move(scene, lambda: above, orientation, OPEN_GRIPPER, tolerance=0.03, limit=120)
    yield from move(scene, lambda: front, orientation, OPEN_GRIPPER, tolerance=0.015, limit=60)
    yield from move(scene, lambda: grip_at, orientation, OPEN_GRIPPER, speed=0.4, limit=60)
    yield from grip(scene, CLOSE_GRIPPER)
    yield from drive_joint(scene, joint, -distance, 18)
    yield from grip(scene, OPEN_GRIPPER, 8)
    back = scene.hand()[0] - 0.08 * inwards
    yield from move(scene, lambda: back, orientation, OPEN_GRIPPER, tolerance=0.02, limit=30)
    return (yield from rise(scene, OPEN_GRIPPER, 0.15))


def close_drawer(scene: LiberoScene, region: str) -> ExpertMotion:
    """Push a drawer shut by its handle with the closed fingers, the hand leaning away from the cabinet."""
    joint = scene.joint_of(region)
    inwards, grip_at = scene.joint(joint).axis, handle(scene, joint)
    approach = np.cos(PUSH_TILT) * inwards - np.sin(PUSH_TILT) * UP
    closing = np.cross(UP, inwards)
    orientation = np.column_stack([closing, np.cross(approach, closing), approach])
    front = grip_at - 0.06 * inwards
    yield from move(
        scene,
        lambda: front + np.array([0, 0, 0.15]),
        orientation,
        CLOSE_GRIPPER,
        tolerance=0.02,
        limit=120,
    )
    yield from move(scene, lambda: front, orientation, CLOSE_GRIPPER, tolerance=0.015, limit=60)
    yield from move(
        scene, lambda: front + PUSH * inwards, orientation, CLOSE_GRIPPER, speed=0.5, limit=60
    )
    back = front - 0.04 * inwards
    yield from move(scene, lambda: back, orientation, CLOSE_GRIPPER, tolerance=0.02, limit=40)
    return (yield from rise(scene, OPEN_GRIPPER, 0.15))


def handle(scene: LiberoScene, joint: str) -> Floats:
    """Return the center [3] of the handle: the box of the drawer that protrudes farthest."""
    boxes = scene.moved_by(joint)
    centres = np.array([scene.data.geom_xpos[box] for box in boxes])
    return np.asarray(centres[np.argmin(centres @ scene.joint(joint).axis)])
