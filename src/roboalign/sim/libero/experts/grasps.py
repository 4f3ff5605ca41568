"""Find grasps from above, from the collision geometry alone.

A hand that points down is tried at many yaws, places and heights. A piece of the object must fit
between the open fingers, and nothing may be where the fingers and the palm go.
"""

from dataclasses import dataclass

import numpy as np

from roboalign.sim.libero.experts.scene import Floats

FINGER_INNER, FINGER_OUTER = 0.038, 0.056
"""Distances from the middle of the open hand to a finger's inner and outer side, meters."""
FINGER_HALF_WIDTH = 0.013
TIP_BELOW = 0.008
"""How far the fingertips reach below the grasp point, meters, with a margin."""
PALM_ABOVE = 0.028
"""The palm's height above the grasp point, meters."""
PALM = (0.106, 0.036)
"""Half the palm's size along the closing axis and across it, meters."""
WIDEST = 0.068
"""The widest piece taken between the fingers, meters."""
YAWS = np.deg2rad([0, 15, -15, 30, -30, 45, -45, 60, -60, 75, -75, 90])


@dataclass(frozen=True)
class Grasp:
    """A grasp: the grasp point [3] in the world and the yaw from the arm's rest orientation,
    rad."""

    point: Floats
    yaw: float
    cost: float


def closing_axis(yaw: float) -> Floats:
    """Return the unit vector [2] along which the fingers close: world y at yaw 0."""
    return np.array([-np.sin(yaw), np.cos(yaw)])


def in_hand_frame(points: Floats, yaw: float) -> Floats:
    """Return world points [N, 3] as (along the closing axis, across it, height)."""
    along = closing_axis(yaw)
    across = np.array([along[1], -along[0]])
    return np.column_stack([points[:, :2] @ along, points[:, :2] @ across, points[:, 2]])


def plan_grasps(points: Floats, obstacles: Floats, ground: float, base: Floats) -> list[Grasp]:
    """Plan grasps of the object with surface `points` [N, 3] among `obstacles` [M, 3] above
    `ground`, the best first.

    The side toward the robot's `base` [3] is preferred, so that the hand stays within reach when it
    carries the object far. Empty if the hand fits nowhere.
    """
    centre = points.mean(axis=0)
    near = obstacles[np.linalg.norm(obstacles[:, :2] - centre[:2], axis=1) < 0.25]
    bottom, top = points[:, 2].min(), points[:, 2].max()
    lowest = max(bottom + 0.008, ground + TIP_BELOW + 0.002)
    heights = np.arange(max(lowest, top - 0.045), max(top - 0.003, lowest + 0.001), 0.006)
    outwards = (centre - base)[:2] / np.linalg.norm((centre - base)[:2])
    grasps: list[Grasp] = []
    for yaw in YAWS:
        turned, blocked, middle = (in_hand_frame(p, yaw) for p in (points, near, centre[None]))
        everything = np.concatenate([turned, blocked])
        for across in np.arange(turned[:, 1].min() + 0.004, turned[:, 1].max(), 0.008):
            slab = turned[np.abs(turned[:, 1] - across) < 0.009]
            hand = everything[np.abs(everything[:, 1] - across) < PALM[1]]
            for height in heights:
                for low, high in _pieces(slab[np.abs(slab[:, 2] - height) < 0.008, 0]):
                    along = (low + high) / 2
                    if high - low > WIDEST or not _is_free(hand, along, across, height):
                        continue
                    beside = np.hypot(along - middle[0, 0], across - middle[0, 1])
                    cost = _cost(beside, high - low, float(top - height), float(yaw))
                    axis = closing_axis(yaw)
                    xy = along * axis + across * np.array([axis[1], -axis[0]])
                    cost += 0.4 * float((xy - centre[:2]) @ outwards)
                    grasps.append(Grasp(np.array([*xy, height]), float(yaw), cost))
    return sorted(grasps, key=lambda grasp: grasp.cost)


def _cost(beside: float, width: float, depth: float, yaw: float) -> float:
    """Return a cost on the scale of meters: grasps far from the middle, wide, shallow or turned
    cost more."""
    return float(beside + 0.2 * width + 0.8 * abs(depth - 0.02) + 0.008 * abs(yaw))


def _pieces(along: Floats) -> list[tuple[float, float]]:
    """Return intervals of positions closer than 12 mm to each other."""
    if not len(along):
        return []
    ordered = np.sort(along)
    cuts = np.flatnonzero(np.diff(ordered) > 0.012)
    starts, ends = np.r_[0, cuts + 1], np.r_[cuts, len(ordered) - 1]
    return [(float(ordered[a]), float(ordered[b])) for a, b in zip(starts, ends, strict=True)]


def _is_free(hand: Floats, along: float, across: float, height: float) -> bool:
    distance = np.abs(hand[:, 0] - along)
    palm = (distance < PALM[0]) & (hand[:, 2] > height + PALM_ABOVE)
    if palm.any():
        return False
    fingers = (
        (distance > FINGER_INNER) & (distance < FINGER_OUTER) & (hand[:, 2] > height - TIP_BELOW)
    )
    return not (fingers & (np.abs(hand[:, 1] - across) < FINGER_HALF_WIDTH)).any()


def lowest_hand(obstacles: Floats, xy: Floats, yaw: float, opened: bool = True) -> float:
    """Return the lowest height of the grasp point over `xy` [2] at which palm and fingers touch
    none of `obstacles` [N, 3]."""
    points = in_hand_frame(obstacles - [*xy, 0.0], yaw)
    reach = FINGER_OUTER if opened else 0.03
    under_palm = (np.abs(points[:, :2]) < PALM).all(axis=1)
    under_fingers = (np.abs(points[:, :2]) < (reach, FINGER_HALF_WIDTH)).all(axis=1)
    palm = points[under_palm, 2].max(initial=-np.inf) - PALM_ABOVE + 0.01
    return float(max(palm, points[under_fingers, 2].max(initial=-np.inf) + TIP_BELOW + 0.004))
