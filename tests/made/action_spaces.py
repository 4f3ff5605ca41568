"""What several tests of action spaces begin with."""

import numpy as np

from roboalign.actions.spaces import ActionSpace

IDENTITY = np.array([[0.0, 0, 0, 0, 0, 0, 1]])


def space(mode="delta", rotation="axis_angle", **fields) -> ActionSpace:
    return ActionSpace(control="end-effector", mode=mode, rotation=rotation, **fields)
