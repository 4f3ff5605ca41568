"""Expert motions for objects: pick, place, push. Each skill is a motion and returns whether it
succeeded."""

import numpy as np

from roboalign.sim.libero.experts.grasps import Grasp, plan_grasps
from roboalign.sim.libero.experts.motion import (
    CLOSE_GRIPPER,
    OPEN_GRIPPER,
    ExpertMotion,
    Point,
    action_towards,
    grip,
    move,
    pointing_down,
    resting_height,
    rise,
    travel,
    yaw_of,
)
from roboalign.sim.libero.experts.scene import LiberoScene

ATTEMPTS = 4
EDGE, PRESS, PRESSING_STEP = 0.045, 0.0, 0.08
"""How a plate is pushed, meters: EDGE is the distance from its edge to the fingers; PRESS and
PRESSING_STEP are how far below its middle and how far ahead the fingers aim."""
SLIPPED, ENGAGEMENTS = 0.025, 4
"""SLIPPED: how far the fingers may slide over a plate, meters, before they are put down again.
ENGAGEMENTS: how often they are put down."""


def grasp_from_above(scene: LiberoScene, geoms: list[int], avoid: list[Grasp]) -> ExpertMotion:
    """Close the hand on boxes with the best grasp that is not yet in `avoid`, and add it to
    `avoid`."""
    grasps = plan_grasps(scene.points(geoms), scene.around(geoms), scene.ground, scene.base())
    fresh = [
        g
        for g in grasps
        if all(np.linalg.norm(g.point - old.point) > 0.012 or g.yaw != old.yaw for old in avoid)
    ]
    if not fresh:
        avoid.clear()
        yield from grip(scene, OPEN_GRIPPER, 5)
        return False
    grasp, orientation = fresh[0], pointing_down(fresh[0].yaw)
    avoid.append(grasp)
    above = grasp.point + np.array([0.0, 0.0, 0.05])
    yield from travel(scene, lambda: above, orientation, OPEN_GRIPPER, [])
    yield from move(scene, lambda: above, orientation, OPEN_GRIPPER)
    yield from move(
        scene, lambda: grasp.point, orientation, OPEN_GRIPPER, tolerance=0.005, speed=0.5, limit=40
    )
    yield from grip(scene, CLOSE_GRIPPER)
    return True


def pick(scene: LiberoScene, name: str) -> ExpertMotion:
    """Grasp an object from above and lift it. If it does not follow, try another grasp."""
    geoms, tried = scene.geoms(name), list[Grasp]()
    for _ in range(ATTEMPTS):
        before = scene.position(name)
        if not (yield from grasp_from_above(scene, geoms, tried)):
            continue
        yield from rise(scene, CLOSE_GRIPPER, 0.06, speed=0.6)
        if scene.position(name)[2] > before[2] + 0.02:
            return True
        yield from grip(scene, OPEN_GRIPPER, 5)
        yield from rise(scene, OPEN_GRIPPER, 0.06)
    return False


def place(scene: LiberoScene, name: str, target: Point) -> ExpertMotion:
    """Carry the held object until its origin is over `target` [3], put it down, let go and retreat."""
    geoms = scene.geoms(name)
    orientation = pointing_down(yaw_of(scene.hand()[1]))

    def over() -> np.ndarray:
        hand = scene.hand()[0]
        return np.array([*(target() + hand - scene.position(name))[:2], hand[2]])

    yield from travel(scene, over, orientation, CLOSE_GRIPPER, geoms)
    height = resting_height(scene, geoms, over()[:2], yaw_of(orientation))
    down = lambda: np.array([*over()[:2], height])  # noqa: E731
    yield from move(scene, down, orientation, CLOSE_GRIPPER, tolerance=0.006, speed=0.4, limit=60)
    yield from grip(scene, OPEN_GRIPPER, 8)
    return (yield from rise(scene, OPEN_GRIPPER, 0.1))


def push(scene: LiberoScene, name: str, target: Point) -> ExpertMotion:
    """Pull a flat object over the table until it is over `target` [3]. If the fingers slip off,
    press again."""
    for _ in range(ENGAGEMENTS):
        yield from _drag(scene, name, target)
        yield from rise(scene, CLOSE_GRIPPER, 0.06)
        if _is_over(scene, name, target):
            return True
    return False


def _is_over(scene: LiberoScene, name: str, target: Point) -> bool:
    return bool(np.linalg.norm((target() - scene.position(name))[:2]) < 0.01)


def _drag(scene: LiberoScene, name: str, target: Point) -> ExpertMotion:
    """Press the closed fingers on a flat object, before its middle, and pull it until they slip or
    it has arrived."""
    orientation = pointing_down(0.0)
    points, start = scene.points(scene.geoms(name)), scene.position(name)
    before = float(np.linalg.norm((points - start)[:, :2], axis=1).max()) - EDGE

    def fingers(ahead: float) -> np.ndarray:
        """Return the point that the fingers aim at: on the object, on the side of the target, and
        `ahead` of that place."""
        way = (target() - scene.position(name))[:2]
        distance = max(float(np.linalg.norm(way)), 1e-9)
        reach = scene.position(name)[:2] + way / distance * (before + min(ahead, distance))
        return np.array([*reach, start[2] - PRESS])

    yield from travel(
        scene, lambda: fingers(0.0) + np.array([0, 0, 0.06]), orientation, CLOSE_GRIPPER, []
    )
    yield from move(
        scene, lambda: fingers(0.0), orientation, CLOSE_GRIPPER, tolerance=0.01, speed=0.4, limit=50
    )
    for _ in range(100):
        slip = np.linalg.norm((scene.hand()[0] - scene.position(name))[:2]) - before
        if _is_over(scene, name, target) or slip > SLIPPED:
            return True
        yield action_towards(scene, fingers(PRESSING_STEP), orientation, CLOSE_GRIPPER)
    return False
