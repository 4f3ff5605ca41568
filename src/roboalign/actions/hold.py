"""Say what holds a robot still: the actions to send when a policy has no chunk to give."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num
from pydantic import model_validator

from roboalign.actions.spaces import GRIPPER_VALUES, ActionSpace
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError

_UNTURNED = {
    "quaternion_xyzw": (0.0, 0.0, 0.0, 1.0),
    "quaternion_wxyz": (1.0, 0.0, 0.0, 0.0),
    "rot6d": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
}
"""The rotation by nothing; of every other form it is zeros."""


class HoldRule(Config):
    """The action that holds: for deltas and velocities no motion and the last gripper command, for
    absolute targets the last target.

    Before an episode's first command the gripper is told to open, and an absolute target is read
    from the state.
    """

    space: ActionSpace
    state_columns: tuple[int, ...] = ()
    """Of an absolute space: the state's dimension that holds each of the arm's numbers."""
    state_dim: int | None = None
    """Of an absolute space: the number of dimensions of the state."""

    @model_validator(mode="after")
    def _consistent(self) -> "HoldRule":
        wanted = self.space.gripper_part.start if self.space.mode == "absolute" else 0
        if len(self.state_columns) != wanted or (self.state_dim is None) != (wanted == 0):
            raise ValueError(f"`state_columns` and `state_dim` of {wanted} numbers are needed")
        if any(not 0 <= column < (self.state_dim or 0) for column in self.state_columns):
            raise ValueError("`state_columns` are outside the state")
        return self

    def action(
        self,
        last: Num[np.ndarray, " action"] | None,
        state: Num[np.ndarray, " state"],
    ) -> Float[np.ndarray, " action"]:
        """Return the action that holds, float32 [A] in raw units.

        `last` is the episode's last command, None before the first. `state` is the proprioception,
        which only an absolute space reads, and only before the first command.
        """
        space = self.space
        if space.mode == "absolute":
            if last is not None:
                return np.asarray(last, np.float32)
            return self._opened(np.asarray(state, np.float32)[list(self.state_columns)])
        arm = np.zeros(space.gripper_part.start, np.float32)
        if space.mode == "delta" and space.rotation in _UNTURNED:
            arm[space.rotation_part] = _UNTURNED[space.rotation]
        if last is None:
            return self._opened(arm)
        return np.concatenate([arm, np.asarray(last, np.float32)[space.gripper_part]])

    def _opened(self, arm: np.ndarray) -> np.ndarray:
        if self.space.gripper == "none":
            return arm
        _, opened = GRIPPER_VALUES[self.space.gripper]
        return np.append(arm, np.float32(opened))


def hold_rule(
    space: ActionSpace, action_names: Sequence[str], state_names: Sequence[str], *, where: str
) -> HoldRule:
    """Return the rule of a data set's actions.

    Raises RoboAlignError for an absolute space whose numbers are not in the state by the same
    names: before the first command nothing would say where the robot is.
    """
    if space.mode != "absolute":
        return HoldRule(space=space)
    arm = list(action_names)[: space.gripper_part.start]
    missing = [name for name in arm if name not in state_names]
    if missing or len(arm) != space.gripper_part.start:
        raise RoboAlignError(
            f"its actions are absolute targets, and the state has no {', '.join(missing) or 'names'}:"
            " nothing says what holds the robot still",
            where=where,
            fix="name the state's numbers as the action's, or use delta actions",
        )
    columns = tuple(list(state_names).index(name) for name in arm)
    return HoldRule(space=space, state_columns=columns, state_dim=len(state_names))
