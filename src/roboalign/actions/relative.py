"""Count an absolute action from the state at the start of its chunk, and undo that.

Learned like this, a chunk does not depend on where the robot is. Per dimension, with the state p, R
at the chunk's start and a target p', R' (the convention of a delta in the base frame, see
`spaces.py`):

    position, joint      p' - p
    rotation             R' R^-1, composed, never subtracted
    gripper              as recorded
"""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Num
from pydantic import model_validator

from roboalign.actions.spaces import (
    ROTATION_NAMES,
    SCALABLE,
    ActionSpace,
    RotationForm,
    from_rotation,
    to_rotation,
)
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError

JOINTS, SAME = "joints", "same"
STATE_FORMS: tuple[RotationForm, ...] = (
    "euler_xyz",
    "axis_angle",
    "quaternion_xyzw",
    "quaternion_wxyz",
    "rot6d",
)
"""Forms that an orientation of the state can have."""


class Relative(Config):
    """Which numbers of the state the dimensions of an absolute action are counted from."""

    space: ActionSpace
    """The space of the absolute actions."""
    pairs: tuple[tuple[int, int], ...]
    """(action dimension, state number): subtracted. Both have the same unit."""
    rotation: tuple[int, ...] = ()
    """State numbers of the end effector's orientation; () leaves the rotation absolute."""
    form: RotationForm = "none"
    """What they are. Angles have the unit of the action's."""

    @model_validator(mode="after")
    def _consistent(self) -> "Relative":
        arm = self.space.gripper_part.start
        turned = self.space.rotation_part if self.space.control == "end-effector" else slice(0, 0)
        dimensions = [action for action, _ in self.pairs]
        numbers = [*(number for _, number in self.pairs), *self.rotation]
        if self.space.mode != "absolute":
            raise ValueError("the space is not absolute")
        if len(set(dimensions)) < len(dimensions) or not set(dimensions) <= {*range(arm)} - {
            *range(arm)[turned]
        }:
            raise ValueError("pairs name a dimension twice, a rotation, a gripper or none")
        if len(self.rotation) != len(ROTATION_NAMES[self.form]) or min(numbers, default=0) < 0:
            raise ValueError(f"{len(self.rotation)} numbers are no {self.form}")
        if self.rotation and turned.start == turned.stop:
            raise ValueError("the action has no rotation")
        return self

    def relative(
        self,
        chunks: Num[np.ndarray, "*batch horizon action"],
        state: Num[np.ndarray, "*batch state"],
    ) -> Float[np.ndarray, "*batch horizon action"]:
        """Return absolute chunks counted from the state at their start, float32."""
        return self._moved(chunks, state, -1)

    def absolute(
        self,
        chunks: Num[np.ndarray, "*batch horizon action"],
        state: Num[np.ndarray, "*batch state"],
    ) -> Float[np.ndarray, "*batch horizon action"]:
        """Invert `relative`; `state` is the one that the chunk was predicted from."""
        return self._moved(chunks, state, 1)

    def _moved(self, chunks: np.ndarray, state: np.ndarray, sign: int) -> np.ndarray:
        values = np.array(chunks, np.float64)
        base = np.asarray(state, np.float64)[..., None, :]
        for action, number in self.pairs:
            values[..., action] += sign * base[..., number]
        if self.rotation:
            part = self.space.rotation_part
            values[..., part] = self._turned(values[..., part], base[..., self.rotation], sign)
        return values.astype(np.float32)

    def _turned(self, turns: np.ndarray, base: np.ndarray, sign: int) -> np.ndarray:
        scale, form = self.space.rotation_scale, self.space.rotation
        flat = turns.reshape(-1, turns.shape[-1])
        start = np.broadcast_to(base, (*turns.shape[:-1], base.shape[-1])).reshape(len(flat), -1)
        if not len(flat):
            return turns
        unit = scale if self.form in SCALABLE else 1.0
        from_state = to_rotation(start * unit, self.form)
        turned = to_rotation(flat * scale, form) * (from_state if sign > 0 else from_state.inv())
        return (from_rotation(turned, form) / scale).reshape(turns.shape)


def resolve_relative(
    chosen: Mapping[str, str | Sequence[str]],
    space: ActionSpace,
    action_names: Sequence[str],
    state_names: Sequence[str],
    state_dim: int,
    where: str,
) -> Relative:
    """Return what a user's map from action dimensions to state numbers means.

    A key is an action dimension, `joints` for all joints, or a form of rotation for the
    orientation; a value is the state's name or number, of `joints` and a rotation a list of them,
    or `same` for equal names. Raises RoboAlignError that names the entry if the actions are not
    absolute, a name is unknown, or a gripper or a single angle of an orientation is named.
    """
    if space.mode != "absolute":
        raise RoboAlignError(
            f"the actions are {space}: subtracting the state from them would be a double delta",
            where=where,
            fix="leave out `relative`, or correct the data set's `space`",
        )
    pairs: dict[int, int] = {}
    rotation: tuple[int, ...] = ()
    form: RotationForm = "none"
    for key, value in chosen.items():
        at = f"{where}.{key}"
        dimensions = _dimensions(key, space, action_names, at)
        names = [action_names[d] for d in dimensions] if value == SAME else _listed(value)
        wanted = len(ROTATION_NAMES[key]) if key in STATE_FORMS else len(dimensions)
        if len(names) != wanted:
            raise RoboAlignError(
                f"{len(names)} state numbers, {key} needs {wanted}", where=at, fix="name each"
            )
        numbers = tuple(_number(name, state_names, state_dim, at) for name in names)
        if key in STATE_FORMS:
            if rotation:
                raise RoboAlignError("the orientation is named twice", where=at, fix="keep one")
            rotation, form = numbers, STATE_FORMS[STATE_FORMS.index(key)]
        else:
            pairs |= dict(zip(dimensions, numbers, strict=True))
    return Relative(space=space, pairs=tuple(sorted(pairs.items())), rotation=rotation, form=form)


def _dimensions(key: str, space: ActionSpace, names: Sequence[str], where: str) -> tuple[int, ...]:
    """Return the action dimensions that a key names."""
    arm = range(space.dim)[: space.gripper_part.start]
    if key in STATE_FORMS and space.control == "end-effector" and space.rotation != "none":
        return tuple(arm[space.rotation_part])
    if key == JOINTS and space.control == "joint":
        return tuple(arm)
    found = [d for d in range(space.dim) if key in (names[d], space.names[d])]
    if found and found[0] in range(space.dim)[space.gripper_part]:
        raise RoboAlignError(
            "a gripper stays as recorded", where=where, fix="leave out this dimension"
        )
    single_angle = space.control == "end-effector" and found and found[0] >= 3
    if single_angle:
        raise RoboAlignError(
            "rotations are composed, not subtracted angle by angle",
            where=where,
            fix="name the form of the state's orientation instead, for example "
            "quaternion_xyzw: [qx, qy, qz, qw]",
        )
    if not found:
        known = [JOINTS] if space.control == "joint" else list(STATE_FORMS)
        raise RoboAlignError(
            f"no dimension of the action is called {key!r}",
            where=where,
            fix=f"name one of {', '.join([*[names[d] for d in arm][:12], *known])}",
        )
    return (found[0],)


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _number(name: str, names: Sequence[str], count: int, where: str) -> int:
    if name in names:
        return list(names).index(name)
    if name.isdecimal() and int(name) < count:
        return int(name)
    near = difflib.get_close_matches(name, names, 1, 0.4)
    known = ", ".join(list(names)[:12]) if names else f"0 to {count - 1}"
    raise RoboAlignError(
        f"the state has no number {name!r}",
        where=where,
        fix=f"did you mean {near[0]}?" if near else f"the state has {known}",
    )
