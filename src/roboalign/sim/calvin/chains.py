"""Draw the chains that CALVIN measures: an initial symbolic state and five tasks in a row.

The published list comes from numpy's legacy generator under fixed seeds; the sampler here makes the
same list, and its hash proves it. Protocol: mees/calvin, calvin_agent/evaluation.
"""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, write_json
from roboalign.sim.calvin.checkout import Checkout, InitialPoses, Rule

PUBLISHED = "604957a8a2d3102941b278df07df4950bc41f340ed959077b20467d5f692318a"
"""sha256 of the published 1,000 chains, as `chains_hash` writes them."""
COUNT = 1000
LENGTH = 5
BLOCK_COLORS = ("red", "blue", "pink")
Symbols = Mapping[str, int | str]
_ON_TABLE, _LEFT, _RIGHT = "table", "slider_left", "slider_right"
SLIDER_OPEN, DRAWER_OPEN, SWITCH_ON = 0.28, 0.22, 0.088
"""Joint values of the slider at left, the open drawer, and the switch of a lit bulb."""
_YAWS = (np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)


@dataclass(frozen=True)
class Chain:
    """One measured chain."""

    state: tuple[tuple[str, int | str], ...]
    """Symbolic initial state, in CALVIN's order of things."""
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """The physical state that begins an episode."""

    robot: tuple[float, ...]
    """15 numbers, `robot_obs`."""
    things: tuple[float, ...]
    """Slider, drawer, button, switch, bulb, LED: the first six of `scene_obs`."""
    blocks: Mapping[str, tuple[float, ...]]
    """Color -> x, y, z, and Euler angles, meters and radians."""


def initial_states() -> list[dict[str, int | str]]:
    """Return the 192 symbolic states: one or two blocks on the table, none sharing a shelf."""
    places = (_ON_TABLE, _RIGHT, _LEFT)
    options: dict[str, tuple[int | str, ...]] = {
        "led": (0, 1),
        "lightbulb": (0, 1),
        "slider": ("right", "left"),
        "drawer": ("closed", "open"),
        **{f"{color}_block": places for color in BLOCK_COLORS},
        "grasped": (0,),
    }
    states = []
    for values in itertools.product(*options.values()):
        shelves_shared = max(values.count(_RIGHT), values.count(_LEFT)) > 1
        if values.count(_ON_TABLE) in (1, 2) and not shelves_shared:
            states.append(dict(zip(options, values, strict=True)))
    return states


def next_states(state: Symbols, changes: Sequence[Rule]) -> list[dict[str, int | str]]:
    """Return each state that a task with these changes can lead to."""
    return [
        {**state, **change["effect"]}
        for change in changes
        if all(_holds(state[thing], wanted) for thing, wanted in change["condition"].items())
    ]


def _holds(value: int | str, wanted: int | str | list[str]) -> bool:
    return value in wanted if isinstance(wanted, list) else value == wanted


def is_chain(state: Symbols, tasks: Sequence[str], rules: Mapping[str, Sequence[Rule]]) -> bool:
    """Return whether each task has exactly one outcome in the state that the ones before it leave."""
    for task in tasks:
        outcomes = next_states(state, rules[task])
        if len(outcomes) != 1:
            return False
        state = outcomes[0]
    return True


def draw_chains(
    rules: Mapping[str, Sequence[Rule]], categories: Mapping[str, int], count: int = COUNT
) -> list[Chain]:
    """Draw `count` chains, as CALVIN does: by rejection from five tasks without repetition, under
    the seed of their initial state, then shuffled under seed 0."""
    names, states = list(rules), initial_states()
    kinds = [categories[name] for name in names]
    shares = [len(part) for part in np.array_split(np.arange(count), len(states))]
    chains = []
    for seed, (state, share) in enumerate(zip(states, shares, strict=True)):
        random, found = np.random.RandomState(seed), 0
        while found < share:
            # RandomState.choice without replacement is the head of a permutation.
            drawn = random.permutation(len(names))[:LENGTH].tolist()
            if len({kinds[index] for index in drawn}) < LENGTH:
                continue
            tasks = tuple(names[index] for index in drawn)
            if is_chain(state, tasks, rules):
                chains.append(Chain(tuple(state.items()), tasks))
                found += 1
    np.random.RandomState(0).shuffle(chains)  # type: ignore[arg-type]
    return chains


def chains_hash(chains: Sequence[Chain]) -> str:
    """Return the sha256 of the chains as compact JSON: [[state, tasks], ...]."""
    return hashlib.sha256(_text(chains).encode()).hexdigest()


def _text(chains: Sequence[Chain]) -> str:
    rows = [[dict(chain.state), list(chain.tasks)] for chain in chains]
    return json.dumps(rows, separators=(",", ":"))


@functools.cache
def measured_chains(checkout: Checkout) -> tuple[Chain, ...]:
    """Return the 1,000 chains of a checkout's tasks. They are kept in the user's cache folder, and
    drawn again if what is there has not the published hash."""
    path = _cache() / f"calvin-chains-{PUBLISHED[:12]}.json"
    rules = checkout.rules()
    if path.exists():
        kept = _read(path)
        if chains_hash(kept) == PUBLISHED and {t for c in kept for t in c.tasks} <= set(rules):
            return tuple(kept)
    chains = draw_chains(rules, checkout.categories())
    if chains_hash(chains) == PUBLISHED:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, [[dict(chain.state), list(chain.tasks)] for chain in chains])
    return tuple(chains)


def _read(path: Path) -> list[Chain]:
    try:
        return [Chain(tuple(state.items()), tuple(tasks)) for state, tasks in read_json(path)]
    except (RoboAlignError, ValueError, TypeError, AttributeError):
        return []  # a damaged file is drawn again


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "roboalign"


def fnv1_32(text: str) -> int:
    """Return the 32-bit FNV-1 hash, from basis 0, of a text in UTF-16-LE. CALVIN seeds with it."""
    value = 0
    for byte in text.encode("utf-16-le"):
        value = (value * 0x01000193) % 2**32 ^ byte
    return value


def start_seed(state: Mapping[str, Any]) -> int:
    """Return the seed of a symbolic state's poses: the hash of how Python writes its values."""
    return fnv1_32(str(state.values()))


def chain_start(state: Symbols, poses: InitialPoses) -> Start:
    """Return the physical state of a measured chain, as CALVIN draws it from its symbolic state."""
    random = np.random.RandomState(start_seed(state))
    table = [np.array(place) for place in poses.table]
    random.shuffle(table)
    blocks = {}
    for color in BLOCK_COLORS:
        blocks[color] = (*_place(color, state, poses, table), 0.0, 0.0, random.uniform(*_YAWS))
    return Start(poses.robot, joint_values(state), blocks)


def joint_values(state: Symbols) -> tuple[float, ...]:
    """Return slider, drawer, button, switch, bulb and LED of a symbolic state."""
    bulb, led = float(state["lightbulb"]), float(state["led"])
    slider = SLIDER_OPEN if state["slider"] == "left" else 0.0
    drawer = DRAWER_OPEN if state["drawer"] == "open" else 0.0
    return (slider, drawer, 0.0, SWITCH_ON * bulb, bulb, led)


def _place(
    color: str, state: Symbols, poses: InitialPoses, table: Sequence[np.ndarray]
) -> tuple[float, ...]:
    """Return where a block begins. The first place on the table is red's, or blue's without red;
    pink has the second."""
    where = state[f"{color}_block"]
    if where == _RIGHT:
        return poses.slider_right
    if where == _LEFT:
        return poses.slider_left
    second = color == "pink" or (color == "blue" and state["red_block"] == _ON_TABLE)
    return tuple(float(value) for value in table[second])
