"""Find the expert of a task by its name."""

import re
from collections.abc import Callable

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.sim.calvin.chains import BLOCK_COLORS, SLIDER_OPEN
from roboalign.sim.calvin.experts import blocks, fixtures
from roboalign.sim.calvin.experts.hand import Hand, Moves

_ON_TABLE_Z = (0.44, 0.50)
_TABLE_FRONT = -0.18
_SIDES = {"left": -1.0, "right": 1.0}
LIFTED_FROM = ("table", "slider", "drawer")
_COLORS = "|".join(BLOCK_COLORS)


def _lift(hand: Hand, color: str, place: str) -> Moves:
    return blocks.lift_from_shelf(hand, color) if place == "slider" else blocks.lift(hand, color)


def _push(hand: Hand, color: str, side: str) -> Moves:
    return blocks.shove(hand, color, np.array([_SIDES[side] * 0.135, 0.0]))


def _rotate(hand: Hand, color: str, side: str) -> Moves:
    return blocks.turn(hand, color, -_SIDES[side] * np.deg2rad(78))


def _slide(hand: Hand, side: str) -> Moves:
    return fixtures.slide(hand, SLIDER_OPEN if side == "left" else 0.0)


def _place_in_slider(hand: Hand) -> Moves:
    spots = (-0.31, -0.24, -0.17) if hand.joint("slide") < SLIDER_OPEN / 2 else (0.0, 0.06, 0.12)
    held = hand.held()
    others = [hand.block(color)[0] for color in BLOCK_COLORS if color != held]
    x = max(spots, key=lambda spot: min(abs(spot - other) for other in others))
    return blocks.put_down(hand, np.array([x, 0.078, 0.475]), blocks.INTO_SHELF)


def _place_in_drawer(hand: Hand) -> Moves:
    low, high = hand.box("drawer")
    return blocks.put_down(hand, np.array([(low[0] + high[0]) / 2 - 0.05, low[1] + 0.17, 0.37]))


def _stack(hand: Hand) -> Moves:
    held = hand.held()
    return blocks.stack(hand, _on_table(hand, [c for c in BLOCK_COLORS if c != held]))


def _unstack(hand: Hand) -> Moves:
    return blocks.lift(hand, max(BLOCK_COLORS, key=lambda color: hand.block(color)[2]))


def _push_into_drawer(hand: Hand) -> Moves:
    return blocks.shove(hand, _on_table(hand, BLOCK_COLORS), np.array([0.0, -0.13]))


def _on_table(hand: Hand, colors: tuple[str, ...] | list[str]) -> str:
    """Return the first of these blocks that is on the table, the one nearest to it otherwise."""

    def away(color: str) -> float:
        _, y, z = hand.block(color)
        return float(max(0, y + 0.02) + max(0, _TABLE_FRONT - y) + abs(z - 0.46))

    return min(colors, key=away)


_EXPERTS: dict[str, Callable[..., Moves]] = {
    rf"lift_({_COLORS})_block_(table|slider|drawer)": _lift,
    rf"push_({_COLORS})_block_(left|right)": _push,
    rf"rotate_({_COLORS})_block_(left|right)": _rotate,
    r"move_slider_(left|right)": _slide,
    r"open_drawer": fixtures.pull_drawer,
    r"close_drawer": fixtures.shut_drawer,
    r"turn_(?:on|off)_led": fixtures.press,
    r"turn_(on|off)_lightbulb": lambda hand, to: fixtures.switch(hand, up=to == "on"),
    r"place_in_slider": _place_in_slider,
    r"place_in_drawer": _place_in_drawer,
    r"stack_block": _stack,
    r"unstack_block": _unstack,
    r"push_into_drawer": _push_into_drawer,
}


def expert_tasks() -> tuple[str, ...]:
    """Return the names of the tasks that have an expert."""
    sides = ("left", "right")
    return (
        *(f"rotate_{color}_block_{side}" for color in BLOCK_COLORS for side in sides),
        *(f"push_{color}_block_{side}" for color in BLOCK_COLORS for side in sides),
        *(f"move_slider_{side}" for side in sides),
        *("open_drawer", "close_drawer"),
        *(f"lift_{color}_block_{place}" for color in BLOCK_COLORS for place in LIFTED_FROM),
        *("place_in_slider", "place_in_drawer", "stack_block", "unstack_block"),
        *(f"turn_{to}_{light}" for light in ("led", "lightbulb") for to in ("on", "off")),
        "push_into_drawer",
    )


def expert_moves(task: str, hand: Hand) -> Moves:
    """Return the moves that do a task from where the hand is. Raises RoboAlignError for a task
    without an expert."""
    for pattern, expert in _EXPERTS.items():
        if found := re.fullmatch(pattern, task):
            return expert(hand, *found.groups())
    raise RoboAlignError(f"no expert does {task!r}", where="calvin", fix="leave the task out")
