"""Say what the names, ranges and states of a data set suggest that its actions mean.

It suggests and never decides: a frame, a unit or a gripper's sign that numbers cannot tell must be
said by whoever recorded them.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from roboalign.actions.known_spaces import KNOWN
from roboalign.episodes.episode import Episode

RelationKind = Literal["target", "step", "minus-state", "second-difference", "none"]
MOST_LAG = 5
"""Steps by which a robot may follow its commands late."""
MOST_COMPARED = 400
"""Pairs of an action and a state dimension that are compared where no name says which belong
together."""
STRONG, WEAK = 0.9, 0.6
"""Correlations from which an action is taken for a target, and for a step: measured steps are small
and noisy."""
GRIPPER = re.compile(r"grip|finger|jaw|claw", re.IGNORECASE)
JOINT = re.compile(
    r"joint|motor|qpos|shoulder|elbow|wrist|waist|_arm|arm[._]|hand[._]|leg[._]|neck", re.IGNORECASE
)
POSE = re.compile(
    r"^(x|y|z|roll|pitch|yaw|rx|ry|rz|ax|ay|az|qx|qy|qz|qw)$|eef|tcp|pos", re.IGNORECASE
)
RELATION_WORDS: dict[str, str] = {
    "target": "is the state {lag} later (absolute targets)",
    "step": "is proportional to the change of the state {lag} later (deltas or velocities)",
    "minus-state": "is a small number minus the state: somebody subtracted the state from actions that "
    "were deltas already (double delta)",
    "second-difference": "adds up to the change of the state: it is the difference of two deltas "
    "(double delta)",
    "none": "follows the state in no way that was looked for",
}


@dataclass(frozen=True)
class Relation:
    """How one action dimension is related to the states of its episode."""

    kind: RelationKind
    lag: int
    """Steps from the action to the state that it fits best."""
    correlation: float


@dataclass(frozen=True)
class Meaning:
    """What the numbers suggest."""

    names: tuple[str, ...]
    relations: tuple[Relation | None, ...]
    """By dimension; None for one that hardly moves, or looks like a gripper."""
    gripper: tuple[int, ...]
    """Dimensions that look like a gripper."""
    gripper_range: tuple[float, float] | None
    suggestions: tuple[tuple[str, str], ...]
    """(value for --action-space, why)."""

    @property
    def kind(self) -> RelationKind:
        """Return the relation that most dimensions have."""
        kinds = Counter(one.kind for one in self.relations if one is not None)
        return kinds.most_common(1)[0][0] if kinds else "none"

    @property
    def double(self) -> bool:
        """Return whether the actions look like deltas from which something was subtracted again."""
        return self.kind in ("minus-state", "second-difference")

    def fault(self, mode: str | None) -> str:
        """Return in one sentence why the actions are not what `mode` says, or a double delta; "" if
        nothing speaks against it. None: the mode is not stated."""
        seen = self.sentences()[0]
        if self.double:
            return (
                f"The actions look like a double delta. {seen} No robot can execute them: add what was "
                "subtracted last, or take the original actions"
            )
        if self.kind == "target" and mode not in (None, "absolute"):
            return (
                f"The actions are stated as {mode}, and look absolute. {seen} Executed as {mode}, they "
                "would be added to the state once more: state the space with mode=absolute"
            )
        if self.kind == "step" and mode == "absolute":
            return (
                f"The actions are stated as absolute, and look like deltas. {seen} The state subtracted "
                "from them would make a double delta: state the space with mode=delta"
            )
        return ""

    def sentences(self) -> list[str]:
        """Return the evidence, one sentence each."""
        seen = [one for one in self.relations if one is not None]
        if not seen:
            return [
                "No action dimension but a gripper's moves, so nothing can be compared with the state."
            ]
        mine = [one for one in seen if one.kind == self.kind]
        lag = round(float(np.median([one.lag for one in mine])))
        correlation = float(np.median([abs(one.correlation) for one in mine]))
        words = RELATION_WORDS[self.kind].format(lag=f"{lag} step{'s' * (lag != 1)}")
        strength = "" if self.kind == "none" else f", correlation {correlation:.2f}"
        said = [f"{len(mine)} of {len(seen)} action dimensions that move: each {words}{strength}."]
        if self.gripper:
            low, high = self.gripper_range or (0.0, 0.0)
            named = ", ".join(self.names[d] for d in self.gripper[:4])
            said.append(f"Like a gripper: {named}, from {low:.3g} to {high:.3g}.")
        return said


def read_meaning(
    actions: Sequence[np.ndarray],
    states: Sequence[np.ndarray],
    names: Sequence[str],
    state_names: Sequence[str],
    *,
    known: str = "",
    data_set: str = "",
) -> Meaning:
    """Return what the actions [T, A] and states [T, S] of some episodes suggest.

    `names` and `state_names` may be empty. `known` is a known space of the format, `data_set` the
    name of the data set.
    """
    width = actions[0].shape[1]
    labels = tuple(names) if len(names) == width else tuple(f"action {d}" for d in range(width))
    whole = np.concatenate(actions)
    grips = gripper_dimensions(whole, labels)
    moves = np.ptp(whole, axis=0) > 1e-6
    partners = _Partners(width, states[0].shape[1], list(labels), list(state_names))
    free = width * states[0].shape[1] <= MOST_COMPARED
    relations = tuple(
        _found_relation(actions, states, d, partners, free) if moves[d] and d not in grips else None
        for d in range(width)
    )
    reach = (float(whole[:, grips].min()), float(whole[:, grips].max())) if grips else None
    found = Meaning(labels, relations, grips, reach, ())
    suggested = _suggestions(found, len(names) == width, known or _named_like(data_set))
    return Meaning(labels, relations, grips, reach, tuple(suggested))


def gripper_dimensions(whole: np.ndarray, names: Sequence[str]) -> tuple[int, ...]:
    """Return the dimensions that are called like a gripper; without such names, a last one that has
    few values within [-1, 1]."""
    named = tuple(d for d, name in enumerate(names) if GRIPPER.search(name))
    if named:
        return named
    last = whole[:, -1]
    reach = np.ptp(last)
    ends = np.minimum(last - last.min(), last.max() - last) < 0.05 * reach
    few = reach > 0.5 and ends.mean() > 0.9
    return (len(names) - 1,) if few and np.abs(last).max() <= 1.01 and len(names) > 1 else ()


@dataclass
class Samples:
    """The actions and states of the first episodes of a data set, for `read_meaning`."""

    most: int = 20
    actions: list[np.ndarray] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    modes: set[str | None] = field(default_factory=set)
    """What all episodes state; None: nothing."""

    def add(self, episode: Episode) -> None:
        """Keep the numbers of this episode if it is among the first."""
        self.modes.add(None if episode.action_space is None else episode.action_space.mode)
        if len(self.actions) < self.most:
            self.actions.append(episode.actions)
            self.states.append(episode.state)

    def fault(self, names: Sequence[str], state_names: Sequence[str]) -> str:
        """Return `Meaning.fault` of the episodes; "" if they have no state, or too many pairs of
        dimensions that could belong together."""
        width, state_width = self.actions[0].shape[1], self.states[0].shape[1]
        if not state_width or (width != state_width and width * state_width > MOST_COMPARED):
            return ""
        mode = next(iter(self.modes)) if len(self.modes) == 1 else None
        return read_meaning(self.actions, self.states, names, state_names).fault(mode)


@dataclass(frozen=True)
class _Partners:
    """Which state dimensions an action dimension may be of: the one of its name, else of its place,
    else all."""

    width: int
    state_width: int
    names: list[str]
    state_names: list[str]

    def named(self, d: int) -> bool:
        """Return whether a state dimension has the name of this action dimension."""
        return self.names[d] in self.state_names

    def __call__(self, d: int) -> list[int]:
        if self.named(d):
            return [self.state_names.index(self.names[d])]
        if self.width == self.state_width:
            return [d]
        return list(range(self.state_width))


def _found_relation(
    actions: Sequence[np.ndarray],
    states: Sequence[np.ndarray],
    d: int,
    partners: "_Partners",
    free: bool,
) -> Relation:
    """Return the relation with the state's dimension of the same name or place; if there is none
    and `free`, with any: another robot's state may have another order."""
    found = relation_of(actions, states, d, partners(d))
    if found.kind != "none" or not free or partners.named(d):
        return found
    return relation_of(actions, states, d, range(partners.state_width))


def relation_of(
    actions: Sequence[np.ndarray], states: Sequence[np.ndarray], d: int, partners: Sequence[int]
) -> Relation:
    """Return the strongest relation of action dimension `d` with one of the state dimensions
    `partners`."""
    best = Relation("none", 0, 0.0)
    for s in partners:
        for found in _relations([one[:, d] for one in actions], [one[:, s] for one in states]):
            enough = STRONG if found.kind in ("target", "minus-state") else WEAK
            margin = 0.0 if found.kind == best.kind else 1e-3
            if abs(found.correlation) > max(enough, abs(best.correlation) + margin):
                best = found
    return best


def _relations(actions: list[np.ndarray], states: list[np.ndarray]) -> list[Relation]:
    found = []
    for lag in range(MOST_LAG + 1):
        later = [(a[: max(0, len(s) - lag)], s[lag:]) for a, s in zip(actions, states)]
        value = _correlation(later)
        double = lag == 0 and value < 0 and _is_minus_state(actions, states)
        found.append(Relation("minus-state" if double else "target", lag, value))
        steps = [(a[: max(0, len(s) - lag - 1)], np.diff(s)[lag:]) for a, s in zip(actions, states)]
        step = _correlation(steps)
        found.append(Relation("step", lag, step))
        sums = [
            (np.cumsum(a)[: max(0, len(s) - lag - 1)], np.diff(s)[lag:])
            for a, s in zip(actions, states)
        ]
        total = _correlation([(a - a.mean() if len(a) else a, s) for a, s in sums])
        # A smooth delta and its sum both follow the motion: the sum must explain clearly more.
        if abs(total) > abs(step) + 0.2:
            found.append(Relation("second-difference", lag, total))
    return found


def _is_minus_state(actions: list[np.ndarray], states: list[np.ndarray]) -> bool:
    """Return whether what is left of action + state moves with the state.

    Of a delta minus the state it does; of a target with the other sign, it moves against it.
    """
    left = _correlation([((a + s)[:-1], np.diff(s)) for a, s in zip(actions, states)])
    return left > 0


def _correlation(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the correlation over all episodes; 0 if one of the two does not move."""
    a = np.concatenate([pair[0] for pair in pairs]).astype(np.float64)
    b = np.concatenate([pair[1] for pair in pairs]).astype(np.float64)
    if len(a) < 8 or a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


# Suggestions ----------------------------------------------------------------------------------------------------------


def _named_like(data_set: str) -> str:
    """Return the known space of a data set with such a name; "" if there is none."""
    return next(
        (k for k in ("bridge", "libero", "metaworld") if data_set.lower().startswith(k)), ""
    )


def _suggestions(found: Meaning, named: bool, known: str) -> list[tuple[str, str]]:
    width, hands = len(found.names), len(found.gripper)
    last = found.gripper == (width - 1,)
    said = []
    if known and KNOWN[known].dim == width:
        said.append((known, "the space that data sets of this name or format have"))
    joints = [name for name in found.names if JOINT.search(name)]
    poses = [name for name in found.names if POSE.search(name)]
    # Where the states tell nothing, both are named: neither is more likely.
    modes = {"target": ("absolute",), "step": ("delta",)}.get(found.kind, ("absolute", "delta"))
    codes = _codes(found) if last else ["none"]
    why = f"each {RELATION_WORDS[found.kind].format(lag='a few steps')}"
    if not named or len(joints) >= len(poses):
        for mode, code in itertools.product(modes, codes):
            text = f"control=joint,mode={mode},joints={width - (code != 'none')},gripper={code}"
            said.append((text, f"{len(joints)} names are like joints'; {why}" if named else why))
    rotations = {3: "none", 6: "euler_xyz", 7: "quaternion_xyzw", 9: "rot6d"}
    rotation = rotations.get(width - (hands if last else 0))
    if rotation and (not named or poses):
        for mode, code in itertools.product(modes, codes):
            text = f"control=end-effector,mode={mode},rotation={rotation},gripper={code}"
            said.append(
                (text, f"names like x, y, z; {why}" if named else f"{width} numbers; {why}")
            )
    return said


def _codes(found: Meaning) -> list[str]:
    """Return the two codes that the gripper's range allows; numbers cannot tell which value is
    open."""
    low = found.gripper_range[0] if found.gripper_range else 0.0
    return ["closed_positive", "open_positive"] if low < -0.01 else ["closed_one", "open_one"]
