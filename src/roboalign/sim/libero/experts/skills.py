"""What the experts can do: pick, place, pull or turn a joint, push. Every skill is a motion and returns its success."""

import numpy as np
from scipy.spatial.transform import Rotation

from roboalign.sim.libero.experts.grasps import Grasp, plan_grasps
from roboalign.sim.libero.experts.motion import (
    CLOSED,
    OPEN,
    Motion,
    Point,
    grip,
    move,
    pointing_down,
    resting_height,
    rise,
    travel,
    yaw_of,
)
from roboalign.sim.libero.experts.scene import Scene

ATTEMPTS = 4


def grasp_from_above(scene: Scene, geoms: list[int], avoid: list[Grasp]) -> Motion:
    """Close the hand on boxes with the best grasp that is not one of those in `avoid`, to which it is added."""
    grasps = plan_grasps(scene.points(geoms), scene.around(geoms), scene.ground, scene.base())
    fresh = [g for g in grasps if all(np.linalg.norm(g.point - old.point) > 0.012 or g.yaw != old.yaw for old in avoid)]
    if not fresh:
        avoid.clear()
        yield from grip(scene, OPEN, 5)
        return False
    grasp, orientation = fresh[0], pointing_down(fresh[0].yaw)
    avoid.append(grasp)
    above = grasp.point + np.array([0.0, 0.0, 0.05])
    yield from travel(scene, lambda: above, orientation, OPEN, [])
    yield from move(scene, lambda: above, orientation, OPEN)
    yield from move(scene, lambda: grasp.point, orientation, OPEN, tolerance=0.005, speed=0.5, limit=40)
    yield from grip(scene, CLOSED)
    return True


def pick(scene: Scene, name: str) -> Motion:
    """Grasp an object from above and lift it; where it does not follow, try another grasp."""
    geoms, tried = scene.geoms(name), list[Grasp]()
    for _ in range(ATTEMPTS):
        before = scene.position(name)
        yield from grasp_from_above(scene, geoms, tried)
        yield from rise(scene, CLOSED, 0.06, speed=0.6)
        if scene.position(name)[2] > before[2] + 0.03:
            return True
        yield from grip(scene, OPEN, 5)
        yield from rise(scene, OPEN, 0.06)
    return False


def place(scene: Scene, name: str, target: Point) -> Motion:
    """Carry the held object until its origin is over `target` [3], put it down, let go and retreat."""
    geoms = scene.geoms(name)
    orientation = pointing_down(yaw_of(scene.hand()[1]))

    def over() -> np.ndarray:
        hand = scene.hand()[0]
        return np.array([*(target() + hand - scene.position(name))[:2], hand[2]])

    yield from travel(scene, over, orientation, CLOSED, geoms)
    height = resting_height(scene, geoms, over()[:2], yaw_of(orientation))
    down = lambda: np.array([*over()[:2], height])  # noqa: E731
    yield from move(scene, down, orientation, CLOSED, tolerance=0.006, speed=0.4, limit=60)
    yield from grip(scene, OPEN, 8)
    return (yield from rise(scene, OPEN, 0.1))


def drive_joint(scene: Scene, joint: str, amount: float, steps: int) -> Motion:
    """With the hand closed on a fixture's part, carry it along its joint by `amount` (metres or rad)."""
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
        yield from move(scene, lambda: goal, facing, CLOSED, tolerance=0.01, limit=3)  # noqa: B023
    return True


def turn_knob(scene: Scene, fixture: str, body: str, amount: float) -> Motion:
    """Grasp a knob from above and turn it."""
    yield from grasp_from_above(scene, scene.geoms(body), [])
    yield from drive_joint(scene, scene.joint_of(fixture), amount, 12)
    yield from grip(scene, OPEN, 8)
    return (yield from rise(scene, OPEN, 0.12))
