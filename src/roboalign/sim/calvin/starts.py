"""Draw where a demonstration of a task begins: a symbolic state, and tasks that are done first.

The measured chains begin in the same 192 symbolic states, but never in these physical ones: places
and rotations of blocks are drawn anew from the seed.
"""

import zlib
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.sim.calvin.chains import (
    BLOCK_COLORS,
    Start,
    Symbols,
    chain_start,
    initial_states,
    next_states,
)
from roboalign.sim.calvin.checkout import InitialPoses, Rule

_MOVED = 0.015
"""How far a block on the table may be from its measured place along x and y, meters."""
_TURNED = np.pi / 8
_MOST_BEFORE = 2
_DEEPEST = 3
_UNSURE = "place_in_slider"
"""Its symbolic outcome names the shelf by the door's side, not where the block is put: it prepares
nothing."""


def draw_preparation(
    task: str, random: np.random.Generator, rules: Mapping[str, Sequence[Rule]]
) -> tuple[Symbols, tuple[str, ...]]:
    """Return a symbolic state and the tasks to do in it before `task` has exactly one outcome.

    Up to two tasks are done first for variety, then what the task needs. Raises RoboAlignError for a
    task that no state allows.
    """
    states = initial_states()
    for _ in range(200):
        state: Symbols = states[random.integers(len(states))]
        before: list[str] = []
        after = state
        for _ in range(random.integers(_MOST_BEFORE + 1)):
            options = [name for name in rules if name != _UNSURE and _one(after, rules[name])]
            options = [name for name in options if not name.startswith(("lift", "stack"))]
            before.append(options[random.integers(len(options))])
            after = next_states(after, rules[before[-1]])[0]
        needed = _shortest(task, after, rules, random)
        if needed is not None:
            return state, (*before, *needed)
    raise RoboAlignError(f"no state allows {task!r}", where="calvin", fix="leave the task out")


def _one(state: Symbols, changes: Sequence[Rule]) -> bool:
    return len(next_states(state, changes)) == 1


def _shortest(
    task: str, state: Symbols, rules: Mapping[str, Sequence[Rule]], random: np.random.Generator
) -> tuple[str, ...] | None:
    """Return the fewest tasks that lead to a state in which `task` has one outcome; None beyond a
    depth."""
    names = [name for name in rules if name != _UNSURE]
    names = [names[index] for index in random.permutation(len(names))]
    queue: deque[tuple[Symbols, tuple[str, ...]]] = deque([(state, ())])
    seen = {tuple(state.values())}
    while queue:
        now, path = queue.popleft()
        if _one(now, rules[task]):
            return path
        if len(path) == _DEEPEST:
            continue
        for name in names:
            outcomes = next_states(now, rules[name])
            if len(outcomes) == 1 and (key := tuple(outcomes[0].values())) not in seen:
                seen.add(key)
                queue.append((outcomes[0], (*path, name)))
    return None


def drawn_start(state: Symbols, poses: InitialPoses, random: np.random.Generator) -> Start:
    """Return a physical state: the measured places of scene D, moved and turned at random."""
    start = chain_start(state, poses)
    blocks = {}
    for color in BLOCK_COLORS:
        x, y, z = start.blocks[color][:3]
        moved = random.uniform(-_MOVED, _MOVED, 2) * (state[f"{color}_block"] == "table")
        yaw = np.pi / 2 + random.uniform(-_TURNED, _TURNED)
        blocks[color] = (x + moved[0], y + moved[1], z, 0.0, 0.0, yaw)
    return Start(start.robot, start.things, blocks)


def generator_of(task: str, seed: int, attempt: int = 0) -> np.random.Generator:
    """Return the generator of a demonstration's start."""
    return np.random.default_rng([seed, attempt, zlib.crc32(task.encode())])
