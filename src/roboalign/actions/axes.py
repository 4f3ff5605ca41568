"""Say which way the axes of a base frame point, seen from the robot.

This turns numbers into words such as `right`. An `ActionSpace` gives the frame of a movement, but
not how that frame is oriented relative to the robot. For the data sets below the orientation is
known from their own definitions; for any other the user states it, and it is never guessed.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from roboalign.core.errors import RoboAlignError

Direction = Literal["right", "left", "forward", "back", "up", "down"]
Axes = tuple[Direction, Direction, Direction]
"""Where +x, +y and +z point."""
SEEN_DIRECTIONS = {
    "right": (0, 1),
    "left": (0, -1),
    "forward": (1, 1),
    "back": (1, -1),
    "up": (2, 1),
    "down": (2, -1),
}
"""direction -> (which of right, forward, up it is on, its sign there)."""
ROS: Axes = ("forward", "left", "up")

KNOWN_AXES: dict[str, Axes] = {
    # WidowX 250: interbotix_xsarm_descriptions, arm reaches along +x of base_link, z up (REP 103)
    "bridge": ROS,
    "bridge_relabelled": ROS,
    # Franka: franka_description, the arm reaches along +x of link0, z up; droid gives poses in that frame
    "droid_cartesian_position": ROS,
    "droid_cartesian_velocity": ROS,
    "droid_oxe": ROS,
    # robosuite and LIBERO: base_xpos_offset of their Panda puts the base behind the table on x, unturned
    "libero": ROS,
    "robomimic_osc_pose": ROS,
    # Metaworld: the Sawyer is behind the table on y, looking along +y, x to its right (scene.py)
    "metaworld": ("right", "forward", "up"),
}
"""Action space in known_spaces.py -> axes.

CALVIN is missing: which way its robot faces the desk was not confirmed.
"""


def parse_axes(text: str) -> Axes:
    """Parse axes such as `forward,left,up`.

    Raises RoboAlignError if these are not three directions of a right-handed frame.
    """
    names = tuple(part.strip() for part in text.split(","))
    fix = "name where +x, +y, +z point, for example --axes forward,left,up"
    if len(names) != 3 or not set(names) <= set(SEEN_DIRECTIONS):
        raise RoboAlignError(
            f"{text!r} is not three of {', '.join(SEEN_DIRECTIONS)}", where="axes", fix=fix
        )
    turn = matrix_of(names)  # type: ignore[arg-type]
    if round(np.linalg.det(turn)) != 1:
        problem = f"{text!r} names a direction twice or makes a left-handed frame"
        raise RoboAlignError(problem, where="axes", fix=fix)
    return names  # type: ignore[return-value]


def matrix_of(axes: Axes) -> Float[np.ndarray, "3 3"]:
    """Return the matrix [3, 3] from (x, y, z) of the frame to (right, forward, up)."""
    matrix = np.zeros((3, 3))
    for column, direction in enumerate(axes):
        row, sign = SEEN_DIRECTIONS[direction]
        matrix[row, column] = sign
    return matrix
