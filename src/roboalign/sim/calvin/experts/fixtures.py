"""Experts for the table's parts: slider, drawer, button, switch."""

import numpy as np

from roboalign.sim.calvin.experts.blocks import UPWARD, clear
from roboalign.sim.calvin.experts.hand import FINGERS_SHUT, Hand, Moves, by, fingers, reach

_YAW = 1.5
_REACHING = np.array([np.pi - 0.5, -0.4, _YAW])
"""Fingers that point right and forward: pointing down, the arm does not reach above the switch."""


def _ready(hand: Hand) -> Moves:
    """Come free with closed fingers. Places are read after it: what was moved has come to rest."""
    yield from clear(hand)
    yield from fingers(hand, FINGERS_SHUT, 3)


def slide(hand: Hand, to: float) -> Moves:
    """Push the sliding door by its handle until its joint is at `to`; left is larger."""
    yield from _ready(hand)
    low, high = hand.box("slide")
    middle, side = (low[0] + high[0]) / 2, 1.0 if to > hand.joint("slide") else -1.0
    beside = np.array([middle + side * 0.075, -0.005, 0.52])
    yield from reach(hand, beside + by(0, -0.06, 0.08), _YAW, FINGERS_SHUT, within=0.015)
    yield from reach(hand, beside + by(0, -0.06, 0), _YAW, FINGERS_SHUT)
    yield from reach(hand, beside, _YAW, FINGERS_SHUT, most=40)
    way = hand.joint("slide") - to
    yield from reach(hand, beside + by(way * 1.1, 0, 0), _YAW, FINGERS_SHUT, most=90)
    yield from reach(
        hand, hand.position + by(side * 0.02, -0.08, 0.02), _YAW, FINGERS_SHUT, most=30
    )


def pull_drawer(hand: Hand) -> Moves:
    """Hook behind the handle and pull."""
    yield from _ready(hand)
    x, y, z = _drawer_handle(hand)
    behind = np.array([x, y + 0.03, z])
    yield from reach(hand, np.array([x, y - 0.06, 0.52]), _YAW, FINGERS_SHUT, within=0.015)
    yield from reach(hand, np.array([x, y + 0.03, 0.48]), _YAW, FINGERS_SHUT)
    yield from reach(hand, behind, _YAW, FINGERS_SHUT, most=60)
    yield from reach(hand, behind - by(0, 0.26, 0), _YAW, FINGERS_SHUT, most=120)
    yield from reach(hand, hand.position + by(0, 0.02, 0.15), _YAW, FINGERS_SHUT, most=40)


def shut_drawer(hand: Hand) -> Moves:
    """Push the handle from the front."""
    yield from _ready(hand)
    x, y, z = _drawer_handle(hand)
    front = np.array([x, y - 0.07, z])
    yield from reach(hand, front + 0.2 * UPWARD, _YAW, FINGERS_SHUT, within=0.015)
    yield from reach(hand, front, _YAW, FINGERS_SHUT)
    yield from reach(hand, front + by(0, 0.28, 0), _YAW, FINGERS_SHUT, most=120)
    yield from reach(hand, hand.position - by(0, 0.06, 0), _YAW, FINGERS_SHUT, most=30)


def _drawer_handle(hand: Hand) -> tuple[float, float, float]:
    low, high = hand.box("drawer")
    return float((low[0] + high[0]) / 2), float(low[1]) + 0.012, 0.365


def press(hand: Hand) -> Moves:
    """Press the button, which toggles the LED, and let go."""
    yield from _ready(hand)
    low, high = hand.box("button")
    top = np.array([*((low + high) / 2)[:2], high[2]])
    yield from reach(hand, top + 0.08 * UPWARD, _YAW, FINGERS_SHUT, within=0.015)
    yield from reach(hand, top - 0.03 * UPWARD, _YAW, FINGERS_SHUT, most=60)
    yield from reach(hand, top + 0.08 * UPWARD, _YAW, FINGERS_SHUT, most=40)


def switch(hand: Hand, *, up: bool) -> Moves:
    """Push the switch up, which lights the bulb, or down."""
    yield from _ready(hand)
    low, high = hand.box("switch")
    x = float((low[0] + high[0]) / 2)
    facing = _YAW if up else _REACHING
    if up:
        before = np.array([x, low[1] + 0.01, low[2] - 0.02])
        through = before + by(0.0, 0.10, 0.14)
    else:
        before = np.array([x, high[1] - 0.035, high[2] + 0.025])
        through = before + by(0.0, -0.05, -0.14)
    yield from reach(
        hand, np.array([x - 0.03, -0.10, before[2]]), facing, FINGERS_SHUT, within=0.02
    )
    yield from reach(hand, before - by(0, 0.06, 0), facing, FINGERS_SHUT, within=0.015, most=40)
    yield from reach(hand, before, facing, FINGERS_SHUT, most=40)
    yield from reach(hand, through, facing, FINGERS_SHUT, most=60)
    yield from reach(hand, hand.position - by(0, 0.08, 0), facing, FINGERS_SHUT, most=30)
