"""What MuJoCo says about a simulation that broke."""

import mujoco

_STATE_BROKEN = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


def diverged(data: mujoco.MjData) -> list[str]:
    """What broke in the state, by MuJoCo's names: it answers a diverged one with a silent reset and a warning count."""
    return [warning.name for warning in _STATE_BROKEN if data.warning[warning].number]
