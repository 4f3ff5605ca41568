"""Expert motions for a microwave: put an object with a handle through its open door, and shut the
door."""

import numpy as np
from scipy.spatial.transform import Rotation

from roboalign.sim.libero.experts.fixtures import UP
from roboalign.sim.libero.experts.motion import (
    CLOSE_GRIPPER,
    OPEN_GRIPPER,
    ExpertMotion,
    action_towards,
    grip,
    move,
    pointing_down,
    rise,
)
from roboalign.sim.libero.experts.scene import Floats, LiberoScene

TILT = np.deg2rad(70)
"""The hand's angle from the vertical when it reaches through a door: the palm stays behind the
fingertips."""
CLEARANCE = 0.022
"""Height above the floor behind the door at which an object is carried, meters."""
SHORT, STRIDE = 0.02, 0.03
"""SHORT: distance before the middle of the region at which an object is let go. STRIDE: length of
the steps that bring it there. Both in meters. On a long move the control follows only the largest
component, and the carried object would sink."""
LEVER, BESIDE = 0.19, 0.03
"""Where the hand pushes a door, meters: distance from the hinge, and from the middle of the
panel."""
OVERLAP = 0.02
"""Distance of the grasp point below the door's upper edge, meters: the palm passes over the
edge."""
AHEAD, PUSHING_STEPS = 0.5, 150
"""How far ahead of the door a pushing hand aims, rad, and for how many steps it pushes."""


def inwards_through(scene: LiberoScene, door: str) -> Floats:
    """Return the horizontal unit vector [3] into the fixture, across the plane of its shut door
    (the joint's zero)."""
    joint = scene.joint(door)
    panel = scene.points(scene.moved_by(door)).mean(axis=0) - joint.anchor
    shut = Rotation.from_rotvec(-joint.value * joint.axis).apply(panel) * [1, 1, 0]
    return np.asarray(np.cross(joint.axis, shut / np.linalg.norm(shut)))


def insert(scene: LiberoScene, name: str, region: str) -> ExpertMotion:
    """Carry an object by its handle through the open door of a fixture into its region, and let go."""
    inwards, geoms = inwards_through(scene, scene.joint_of(scene.parent(region))), scene.geoms(name)
    middle, aside = scene.position(region), np.cross(inwards, UP)
    if not (yield from _take_by_handle(scene, name, inwards)):
        return False
    orientation, floor = scene.hand()[1], _floor(scene, region)

    def at(distance: float, clearance: float) -> Floats:
        """Return the pose at which the held object is `distance` before the middle and `clearance`
        above the floor, meters."""
        way = middle - scene.position(name)
        point = scene.hand()[0] + (way @ aside) * aside + (way @ inwards - distance) * inwards
        up = floor + clearance - scene.points(geoms)[:, 2].min()
        return np.array([*point[:2], point[2] + up])

    start = float((middle - scene.position(name)) @ inwards)
    yield from move(
        scene, lambda: at(start, CLEARANCE), orientation, CLOSE_GRIPPER, tolerance=0.01, speed=0.6
    )
    for distance in np.linspace(start, SHORT, int(np.ceil((start - SHORT) / STRIDE)) + 1):
        yield from move(
            scene,
            lambda: at(distance, CLEARANCE),  # noqa: B023
            orientation,
            CLOSE_GRIPPER,
            tolerance=0.012,
            limit=15,
        )
    yield from move(
        scene,
        lambda: at(SHORT, 0.002),
        orientation,
        CLOSE_GRIPPER,
        tolerance=0.006,
        speed=0.3,
        limit=40,
    )
    yield from grip(scene, OPEN_GRIPPER, 8)
    back = scene.hand()[0] - 0.12 * inwards
    yield from move(scene, lambda: back, orientation, OPEN_GRIPPER, tolerance=0.02, limit=40)
    return (yield from rise(scene, OPEN_GRIPPER, 0.2))


def _take_by_handle(scene: LiberoScene, name: str, inwards: Floats) -> ExpertMotion:
    """Close the tilted hand on the part of an object that protrudes farthest against `inwards` [3],
    and lift it."""
    approach, aside = np.sin(TILT) * inwards - np.cos(TILT) * UP, np.cross(inwards, UP)
    orientation = np.column_stack([aside, np.cross(approach, aside), approach])
    centres = np.array([scene.data.geom_xpos[geom] for geom in scene.geoms(name)])
    handle = centres[np.argmin(centres @ inwards)]
    front, start = handle - 0.1 * approach, scene.position(name)
    high = np.array([*front[:2], max(front[2], scene.hand()[0][2])])
    yield from move(scene, lambda: high, orientation, OPEN_GRIPPER, tolerance=0.02, limit=150)
    yield from move(scene, lambda: front, orientation, OPEN_GRIPPER, tolerance=0.01, limit=60)
    yield from move(
        scene, lambda: handle, orientation, OPEN_GRIPPER, tolerance=0.006, speed=0.4, limit=60
    )
    yield from grip(scene, CLOSE_GRIPPER)
    yield from rise(scene, CLOSE_GRIPPER, 0.03, speed=0.5)
    if scene.position(name)[2] > start[2] + 0.01:
        return True
    yield from grip(scene, OPEN_GRIPPER, 5)
    yield from rise(scene, OPEN_GRIPPER, 0.1)
    return False


def _floor(scene: LiberoScene, region: str) -> float:
    """Return the height of what is under the middle of a region of a fixture."""
    points, middle = scene.points(scene.geoms(scene.parent(region))), scene.position(region)
    under = (np.abs(points[:, :2] - middle[:2]) < 0.03).all(axis=1) & (points[:, 2] < middle[2])
    return float(points[under, 2].max(initial=scene.ground))


def close_door(scene: LiberoScene, fixture: str) -> ExpertMotion:
    """Push an open door shut with the fingertips outside its upper edge and the palm over it."""
    door = scene.joint_of(fixture)
    inwards, orientation = inwards_through(scene, door), pointing_down(0.0)
    shut = np.cross(inwards, scene.joint(door).axis)
    height = scene.points(scene.moved_by(door))[:, 2].max() - OVERLAP

    def outside(ahead: float, distance: float, up: float) -> Floats:
        joint = scene.joint(door)
        turn = Rotation.from_rotvec((joint.value + ahead) * joint.axis)
        point = joint.anchor + turn.apply(LEVER * shut - distance * inwards)
        return np.array([*point[:2], up])

    yield from move(
        scene,
        lambda: outside(0, 0.1, height + 0.12),
        orientation,
        CLOSE_GRIPPER,
        tolerance=0.02,
        limit=150,
    )
    yield from move(
        scene,
        lambda: outside(0, 0.1, height),
        orientation,
        CLOSE_GRIPPER,
        tolerance=0.015,
        limit=60,
    )
    for _ in range(PUSHING_STEPS):
        if scene.holds(["close", fixture]):
            break
        yield action_towards(scene, outside(AHEAD, BESIDE, height), orientation, CLOSE_GRIPPER, 0.5)
    return (yield from rise(scene, CLOSE_GRIPPER, 0.1))
