"""Experts for blocks: lift, place, stack, push, turn."""

import numpy as np

from roboalign.sim.calvin.experts.hand import (
    FINGERS_SHUT,
    OPEN,
    Facing,
    Hand,
    Moves,
    by,
    fingers,
    nearest_grasp,
    reach,
)

UPWARD = np.array([0.0, 0.0, 1.0])
_OVER = 0.12
"""How high above a block the hand comes from, meters."""
_CARRIED = 0.60
"""Height at which a held block passes over the table, meters."""
_REST_YAW = 1.5
INTO_SHELF = np.array([np.pi, -0.4, np.pi / 2])
"""Along the wall, fingers leaning to it: upright, the wrist would touch the wall's top."""


def lift(hand: Hand, color: str) -> Moves:
    """Close on a block from above and take it up."""
    yield from _close_on(hand, color)
    place, yaw = hand.position, hand.yaw
    yield from reach(hand, place + 0.12 * UPWARD, yaw, FINGERS_SHUT, most=40)


def lift_from_shelf(hand: Hand, color: str) -> Moves:
    """Take a block off the shelf, with the hand along the wall behind it."""
    facing = INTO_SHELF
    yield from clear(hand)
    block = hand.block(color) + by(0.0, -0.004, 0.006)
    yield from reach(hand, block + by(0.0, -0.09, 0.13), facing, OPEN, within=0.015)
    yield from reach(hand, block + by(0.0, -0.02, 0.06), facing, OPEN, within=0.012)
    yield from reach(hand, block, facing, OPEN, within=0.008, most=40, speed=0.6)
    yield from fingers(hand, FINGERS_SHUT, facing=facing)
    yield from reach(
        hand, hand.position + by(0.0, -0.03, 0.08), facing, FINGERS_SHUT, most=40, speed=0.7
    )


def _close_on(hand: Hand, color: str) -> Moves:
    yaw = nearest_grasp(_REST_YAW, hand.block_yaw(color))
    yield from clear(hand)
    yield from reach(hand, lambda: hand.block(color) + _OVER * UPWARD, yaw, OPEN, within=0.015)
    yield from reach(hand, lambda: hand.block(color), yaw, OPEN, within=0.008, most=50)
    yield from fingers(hand, FINGERS_SHUT)


def clear(hand: Hand) -> Moves:
    """Let go, and come out to the front and above the table before the first move."""
    place, value = hand.position, FINGERS_SHUT
    if hand.held():
        value = OPEN  # closing again here would take the block along
        yield from fingers(hand, OPEN, 12)
    if place[1] > -0.06:
        place = np.array([place[0], -0.08, max(place[2], 0.50)])
        yield from reach(hand, place, hand.yaw, value, within=0.02, turned=9, most=30)
    if place[2] < _CARRIED - 0.05:
        place = np.array([place[0], place[1], _CARRIED])
        yield from reach(hand, place, hand.yaw, value, within=0.02, turned=9, most=30)


def put_down(hand: Hand, goal: np.ndarray, facing: Facing | None = None) -> Moves:
    """Put down the held block at `goal`, where its middle shall be, and leave."""
    color = hand.held()
    offset = hand.position - hand.block(color) if color else np.zeros(3)
    yaw: Facing = hand.yaw if facing is None else facing
    high = max(_CARRIED, hand.position[2])
    yield from reach(
        hand, np.array([*hand.position[:2], high]), yaw, FINGERS_SHUT, within=0.02, most=40
    )
    yield from reach(
        hand, np.array([*goal[:2], high]) + offset * [1, 1, 0], yaw, FINGERS_SHUT, within=0.012
    )
    yield from reach(hand, goal + offset, yaw, FINGERS_SHUT, within=0.008, most=50, speed=0.6)
    yield from fingers(hand, OPEN, facing=yaw)
    yield from reach(hand, hand.position + 0.12 * UPWARD, yaw, OPEN, most=40)


def stack(hand: Hand, onto: str) -> Moves:
    """Put the held block on another one."""
    goal = hand.block(onto) + 0.042 * UPWARD
    yield from put_down(hand, goal)


def shove(hand: Hand, color: str, way: np.ndarray) -> Moves:
    """Push a block along the table by `way` [2], meters, with closed fingers beside it."""
    along = way / np.linalg.norm(way)
    across = along[0] != 0
    yaw = _REST_YAW if across else _REST_YAW + np.pi / 2
    beside = np.array([*(-0.075 * along), 0.0])
    start = hand.block(color).copy()
    yield from clear(hand)
    yield from fingers(hand, FINGERS_SHUT, 3)
    yield from reach(hand, start + beside + _OVER * UPWARD, yaw, FINGERS_SHUT, within=0.015)
    yield from reach(hand, start + beside - 0.005 * UPWARD, yaw, FINGERS_SHUT, within=0.01)
    goal = start + np.array([*way, 0.0]) - np.array([*(0.03 * along), 0.005])
    yield from reach(hand, goal, yaw, FINGERS_SHUT, speed=0.6, most=80)
    yield from reach(hand, hand.position + _OVER * UPWARD, yaw, FINGERS_SHUT, most=40)


def turn(hand: Hand, color: str, angle: float) -> Moves:
    """Close on a block and turn it about the vertical by `angle`, left where positive."""
    yield from _close_on(hand, color)
    place, start = hand.position, hand.yaw
    for share in np.linspace(0.1, 1.0, 30):
        yield hand.action(place, start + share * angle, FINGERS_SHUT)
    yield from reach(hand, place, start + angle, FINGERS_SHUT, turned=0.05, most=40)
    yield from fingers(hand, OPEN, 6)
    yield from reach(hand, place + _OVER * UPWARD, start + angle, OPEN, most=40)
