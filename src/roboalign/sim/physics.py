"""Detect whether MuJoCo reports that a simulation broke."""

import mujoco

_STATE_BROKEN = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


def diverged(data: mujoco.MjData) -> list[str]:
    """Return MuJoCo's names of what broke in the state, empty if nothing did.

    MuJoCo handles a diverged state with a silent reset and a warning count, which is read here.
    """
    return [warning.name for warning in _STATE_BROKEN if data.warning[warning].number]
