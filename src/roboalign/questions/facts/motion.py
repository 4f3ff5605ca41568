"""Compute how an episode's gripper moves, turns and opens, per frame, from actions and state.

Every fact is exact about its source: measured positions if the config names them or a simulator
gave them, otherwise the movement that the actions command. If the meaning of the numbers is
unknown, or a value is near a threshold, the answer is `Refused` with the reason.

Directions are the robot's: (right, forward, up).
"""

import math
from typing import Literal, cast

import numpy as np
from scipy.spatial.transform import Rotation

from roboalign.actions.axes import matrix_of
from roboalign.actions.spaces import ActionSpace, recoded, to_rotation
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Refused
from roboalign.episodes.episode import Episode
from roboalign.questions.base import QuestionConfig, camera_of
from roboalign.questions.facts.scene import GridCell, Signs, grid_cells

Subtask = Literal["reach", "grasp", "move", "release", "retreat"]
Fingers = Literal["open", "closed"]
Command = Literal["open", "close", "keep"]

STILL_DISTANCE, CLEAR = (
    0.005,
    0.01,
)  # meters: no movement on an axis below the first, movement above the second; between, not asked
LEVEL, TURNED = np.radians(5), np.radians(10)  # the same for a rotation about an axis
DOMINANT = 1.5  # the largest component counts alone if it is this many times the second
CLOSED, OPENED = 0.4, 0.6  # openness at which a gripper counts as commanded to close, and to open
SETTLING = 0.5  # seconds after a command during which the fingers may still be moving
EVENT = 0.4  # seconds around a command of the fingers that belong to the grasp or the release
TRACE = 3  # points in a trace

NO_SPACE = Refused("what the actions mean is not known (no action space)")
NO_AXES = Refused("which way the axes of the base frame point is not known (no axes)")
NO_POSITION = Refused("the position of the gripper is not known")
NOT_WHOLE = Refused("whether the recording is the whole task is not known")
FEW_LEFT = Refused("fewer steps are left than the question looks ahead")
FIRST = Refused("nothing was commanded before the first frame")


class Motion:
    """The facts of one episode. Every method takes a frame t and returns a value or Refused."""

    def __init__(self, episode: Episode, config: QuestionConfig) -> None:
        """Compute the facts.

        Raises RoboAlignError if an action or position is not finite, or the camera is missing.
        """
        if not np.isfinite(episode.actions).all():
            raise RoboAlignError(
                "an action is not finite",
                where=f"episode {episode.episode_id}",
                fix="drop or repair this episode",
            )
        self.episode, self.config, self.space = episode, config, episode.action_space
        self.turn_axes = None if config.axes is None else matrix_of(config.axes)
        self.positions = measured_positions(episode, config)
        self.measured = self.positions is not None
        self.opening = commanded_opening(episode.actions, self.space)
        self.is_open = None if isinstance(self.opening, Refused) else hysteresis(self.opening)
        self.subtasks = self._subtasks()
        self.cells = self._cells()

    def ahead(self, t: int) -> bool:
        """Return whether the question's horizon is inside the episode."""
        last = len(self.episode) - 1 if self.measured else len(self.episode)
        return t + self.config.horizon <= last

    def displacement(self, t: int) -> np.ndarray | Refused:
        """Return [3] meters right, forward, up over the next `horizon` steps.

        They are measured, or as commanded.
        """
        if self.turn_axes is None:
            return NO_AXES
        if self.positions is None:
            return self.translation(t)
        if not self.ahead(t):
            return FEW_LEFT
        return self.turn_axes @ (self.positions[t + self.config.horizon] - self.positions[t])

    def movement(self, t: int) -> Signs | Refused:
        """Return the sign of the displacement on each axis; 0 = still."""
        moved = self.displacement(t)
        return moved if isinstance(moved, Refused) else signs_of(moved)

    def translation(self, t: int) -> np.ndarray | Refused:
        """Return [3] meters right, forward, up that the next `horizon` actions command."""
        if self.turn_axes is None:
            return NO_AXES
        if t + self.config.horizon > len(self.episode):
            return FEW_LEFT
        moved = commanded_movement(
            self.episode.actions, self.space, self.episode.fps, t, self.config.horizon
        )
        return moved if isinstance(moved, Refused) else self.turn_axes @ moved

    def rotation(self, t: int) -> np.ndarray | Refused:
        """Return the rotation that the next `horizon` actions command.

        [3] radians: the rotation vector about right, forward, up.
        """
        if self.turn_axes is None:
            return NO_AXES
        if t + self.config.horizon > len(self.episode):
            return FEW_LEFT
        turned = commanded_rotation(
            self.episode.actions, self.space, self.episode.fps, t, self.config.horizon
        )
        return turned if isinstance(turned, Refused) else self.turn_axes @ turned

    def fingers(self, t: int) -> Fingers | Refused:
        """Return open or closed, once the fingers have had time to follow the command."""
        if isinstance(self.opening, Refused):
            return self.opening
        past = self.opening[max(0, t - math.ceil(SETTLING * self.episode.fps)) : t]
        if not len(past):
            return FIRST
        if past.min() > OPENED:
            return "open"
        return (
            "closed" if past.max() < CLOSED else Refused("the fingers are moving, or partly open")
        )

    def command(self, t: int) -> Command | Refused:
        """Return what the next `horizon` actions tell the fingers to do."""
        if self.is_open is None:
            return cast(Refused, self.opening)
        if t + self.config.horizon > len(self.episode):
            return FEW_LEFT
        now = self.is_open[max(t - 1, 0)]
        if (self.is_open[t : t + self.config.horizon] == now).all():
            return "keep"
        return "close" if now else "open"

    def subtask(self, t: int) -> Subtask | Refused:
        """Return the robot's current subtask; a grasp or release is over once the fingers settle."""
        if isinstance(self.subtasks, Refused):
            return self.subtasks
        now = self.subtasks[t]
        if now in ("move", "retreat") and isinstance(self.fingers(t), Refused):
            return Refused("the fingers may still be moving, after which the next subtask begins")
        return now

    def next_subtask(self, t: int) -> Subtask | Refused:
        """Return the subtask that comes next."""
        now = self.subtask(t)
        if isinstance(self.subtasks, Refused) or isinstance(now, Refused):
            return cast(Refused, now)
        following = next((name for name in self.subtasks[t + 1 :] if name != now), None)
        return following or Refused("no other subtask follows")

    def quarter(self, t: int) -> int | Refused:
        """Return 0..3, the quarter of the task that contains the frame."""
        return 4 * t // len(self.episode) if self.config.whole else NOT_WHOLE

    def cell(self, t: int) -> GridCell | Refused:
        """Return the image cell that shows the gripper."""
        if isinstance(self.cells, Refused):
            return self.cells
        return self.cells[t] or Refused("the gripper is outside the image")

    def trace(self, t: int) -> tuple[GridCell, ...] | Refused:
        """Return the gripper's image cells after a third, two thirds and all of `horizon` steps."""
        if isinstance(self.cells, Refused):
            return self.cells
        if not self.ahead(t):
            return FEW_LEFT
        later = [
            self.cells[t + round(self.config.horizon * i / TRACE)] for i in range(1, TRACE + 1)
        ]
        inside = tuple(cell for cell in later if cell is not None)
        return inside if len(inside) == TRACE else Refused("the gripper leaves the image")

    def _subtasks(self) -> list[Subtask] | Refused:
        if self.is_open is None:
            return cast(Refused, self.opening)
        return subtasks_of(self.is_open, max(1, round(EVENT * self.episode.fps)))

    def _cells(self) -> list[GridCell | None] | Refused:
        view = self.episode.cameras.get(camera_of(self.episode, self.config.camera))
        if view is None or view.projection is None:
            return Refused("the camera is not calibrated")
        if self.positions is None:
            return NO_POSITION
        return grid_cells(self.episode, view.name, self.positions, self.config.grid)


def measured_positions(episode: Episode, config: QuestionConfig) -> np.ndarray | None:
    """Return measured positions float64 [T, 3], in meters; None if there are none.

    They are the state columns named in the config, else the simulator's. Raises RoboAlignError if
    the state lacks these columns, or a position is not finite.
    """
    found, where = episode.position("gripper"), f"episode {episode.episode_id}"
    if config.position is not None:
        found = episode.state[:, config.position : config.position + 3]
        if found.shape != (len(episode), 3):
            problem = f"a state of shape {list(episode.state.shape)} has no three columns from {config.position} on"
            raise RoboAlignError(
                problem, where=where, fix="name the first column of the position, counted from 0"
            )
    if found is not None and not np.isfinite(found).all():
        raise RoboAlignError(
            "a position of the gripper is not finite",
            where=where,
            fix="drop or repair this episode",
        )
    return None if found is None else found.astype(np.float64)


def commanded_movement(
    actions: np.ndarray, space: ActionSpace | None, fps: float, t: int, steps: int
) -> np.ndarray | Refused:
    """Return [3] meters in the base frame that actions t .. t + steps - 1 command."""
    if space is None:
        return NO_SPACE
    if space.control == "joint":
        return Refused(
            "the actions drive joints: where they move the gripper needs the robot's kinematics"
        )
    if space.frame == "tool":
        return Refused(
            "the actions are in the tool frame, and the gripper's orientation is not known"
        )
    position = actions[:, space.position].astype(np.float64) * space.position_scale
    if space.mode == "absolute":
        return position[t + steps - 1] - position[t - 1] if t else FIRST
    total = position[t : t + steps].sum(axis=0)
    return total / fps if space.mode == "velocity" else total


def commanded_rotation(
    actions: np.ndarray, space: ActionSpace | None, fps: float, t: int, steps: int
) -> np.ndarray | Refused:
    """Return the rotation that the actions command.

    It is a rotation vector [3] in the base frame, in radians.
    """
    if space is None:
        return NO_SPACE
    if space.rotation == "none":
        return Refused("the actions do not turn the gripper")
    if space.frame == "tool":
        return Refused(
            "the actions are in the tool frame, and the gripper's orientation is not known"
        )
    if space.rotation == "euler_xyz_difference":
        return Refused(
            "the actions change Euler angles, and the gripper's orientation is not known"
        )
    if space.mode == "velocity" and space.rotation != "axis_angle":
        return Refused("the actions are rates of a rotation that is no rotation vector")
    if space.mode == "absolute" and not t:
        return FIRST
    numbers = actions[:, space.rotation_part].astype(np.float64) * space.rotation_scale
    if space.mode == "absolute":
        before, after = to_rotation(numbers[[t - 1, t + steps - 1]], space.rotation)
        return (after * before.inv()).as_rotvec()
    chosen = numbers[t : t + steps] / (fps if space.mode == "velocity" else 1)
    turned = Rotation.identity()
    for turn in to_rotation(chosen, space.rotation):
        turned = turn * turned
    return turned.as_rotvec()


def commanded_opening(actions: np.ndarray, space: ActionSpace | None) -> np.ndarray | Refused:
    """Return [T]: 1 if an action commands an open gripper, 0 for closed."""
    if space is None:
        return NO_SPACE
    if space.gripper == "none":
        return Refused("the actions do not move a gripper")
    return recoded(actions[:, space.gripper_part].astype(np.float64), space.gripper, "open_one")[
        :, 0
    ]


def hysteresis(opening: np.ndarray) -> np.ndarray:
    """Convert openness [T] to bool [T].

    It is open until openness falls below CLOSED, and closed until openness rises above OPENED.
    """
    states, state = [], bool(opening[0] > (CLOSED + OPENED) / 2)
    for value in opening.tolist():
        state = value >= CLOSED if state else value > OPENED
        states.append(state)
    return np.array(states)


def subtasks_of(is_open: np.ndarray, around: int) -> list[Subtask] | Refused:
    """Derive subtasks [T] from open or closed [T]: reach, grasp, move, release, retreat.

    The `around` steps on both sides of a command to close or open are the grasp or the release.
    Between them an open gripper reaches, or retreats after its last release, and a closed one
    moves. Closings shorter than `around` hold nothing and are skipped.
    """
    if not is_open[0]:
        return Refused("the gripper begins closed: whether it holds something is not known")
    edges = np.flatnonzero(np.diff(is_open)) + 1
    closes, opens = edges[::2].tolist(), [*edges[1::2].tolist(), len(is_open)][: len(edges[::2])]
    held = [(c, o) for c, o in zip(closes, opens) if o - c >= around or o == len(is_open)]
    if not held:
        return Refused("the gripper never closes")
    names: list[Subtask] = ["reach"] * len(is_open)
    for close, open_ in held:
        for t in range(close, open_):
            names[t] = "move"
        _name(names, close, around, "grasp")
        if open_ < len(is_open):
            _name(names, open_, around, "release")
    if held[-1][1] < len(is_open):
        for t in range(min(held[-1][1] + around, len(is_open)), len(is_open)):
            names[t] = "retreat"
    return names


def _name(names: list[Subtask], event: int, around: int, name: Subtask) -> None:
    for t in range(max(0, event - around), min(len(names), event + around)):
        names[t] = name


def signs_of(moved: np.ndarray) -> Signs | Refused:
    """Convert [3] meters to the sign on each axis.

    Refused if a component is neither clearly present nor clearly absent.
    """
    size = np.abs(moved)
    if ((size > STILL_DISTANCE) & (size < CLEAR)).any():
        return Refused("a movement so small that its direction is not clear")
    right, forward, up = (np.sign(moved) * (size >= CLEAR)).astype(int).tolist()
    return right, forward, up


def dominant(values: np.ndarray, least: float) -> tuple[int, int] | Refused:
    """Return (axis, sign) of the component that exceeds `least` and is clearly the largest."""
    order = np.argsort(-np.abs(values))
    first, second = np.abs(values[order[:2]])
    if first < least or first < DOMINANT * second:
        return Refused("no direction is clearly the largest")
    return int(order[0]), int(np.sign(values[order[0]]))
