"""Compute what is true in each frame of an episode from its privileged state.

Questions are made from these facts. Directions are the robot's: right, forward (away from it), up.
`Episode.axes` says how the axes of its positions and actions (in meters, up always z) point in
them: x to the right and y forward in Meta-World, x forward and y to the left in LIBERO. Actions:
the first three dimensions move the gripper along x, y, z; the last closes it if positive and opens
it if negative (Meta-World and LIBERO agree on this).
"""

from dataclasses import dataclass

import numpy as np

from roboalign.actions.axes import matrix_of
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import Episode
from roboalign.episodes.keypoints import BODIES

AXES = (("left", "right"), ("back", "forward"), ("down", "up"))
"""Words for the negative and positive direction of each axis."""

ALIGNED = 0.03  # meters: a body within this of the gripper on an axis is aligned on it
NEAR, FAR = 0.08, 0.20  # meters: near is below the first, far above the second
LOW, HIGH = 0.10, 0.20  # meters above the table
HELD = 0.07  # meters: a gripper that is not open holds an object this close
MOVED = 0.02  # meters: an object this far from its start is being moved
OPEN_SHARE = 0.75  # share of the gripper's full opening
STILL_ACTION = (
    0.15  # mean action below this on an axis is no movement, in units of the largest action
)
COMMAND = 0.10  # mean gripper action below this means no command
WAYPOINT = 10  # steps from a frame to its waypoint
TRACE_POINTS = 3  # points of the gripper's trace, evenly spaced
TRACE_HORIZONS = 2  # action chunks spanned by the trace

GridCell = tuple[int, int]
Signs = tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """The facts of one frame. Bodies missing from the episode are absent from the dictionaries."""

    task: str
    instruction: str
    nouns: dict[str, str]
    points: dict[str, GridCell]
    """body -> (column, row) on the grid, for bodies inside the image."""
    relations: dict[str, Signs]
    """body -> sign of (body - gripper) to the right, forward, up; 0 = aligned."""
    distances: dict[str, float]
    """body -> meters from the gripper."""
    height: float
    """Meters of the gripper above the table."""
    gripper: str
    """open, closed or holding."""
    phase: str
    """reach, grasp, move or done."""
    quarter: int
    """0..3: the quarter of the demonstration that contains the frame."""
    move: Signs
    """Sign of the expert's mean action over the next steps to the right, forward, up; 0 = still."""
    command: str
    """What the expert does with the gripper in these steps: open, close or keep."""
    waypoint: GridCell | None
    """The gripper's cell in WAYPOINT steps; None outside the episode or image."""
    trace: tuple[GridCell, ...] | None
    """The gripper's cells at TRACE_POINTS even steps over the next TRACE_HORIZONS chunks.

    An episode that ends earlier stays at its last frame. None if one of the points is outside the
    image.
    """
    events: dict[str, int]
    """event -> steps until it first happens, for future events only.

    The event is worded to follow `the robot should`.
    """
    target: str
    """The body that the gripper is approaching: the object, or the goal once the object is moving.

    It is always the goal if the instruction does not mention the object.
    """


class EpisodeScenes:
    """The scenes of one episode, computed for all frames at once."""

    def __init__(self, episode: Episode, camera: str, grid: int, horizon: int) -> None:
        """`grid`: cells per side of the image. `horizon`: steps over which movement is averaged.

        Raises RoboAlignError if the episode has no privileged gripper position, if its camera has
        no projection, and as `require_readable_actions` does.
        """
        where = f"episode {episode.episode_id}"
        if camera not in episode.cameras:
            raise RoboAlignError(
                f"no camera {camera!r}; it has {sorted(episode.cameras)}", where=where
            )
        positions = {body: episode.position(body) for body in BODIES}
        if positions["gripper"] is None or "gripper.opening" not in episode.privileged_names:
            raise RoboAlignError(
                f"the privileged state has no gripper.x, y, z and opening, only {list(episode.privileged_names)}",
                where=where,
                fix="collect the data set with a simulator that records it",
            )
        if episode.action_space is not None:
            require_readable_actions(episode.action_space, where)
        self.episode, self.length = episode, len(episode)
        named = {"gripper", *episode.nouns}
        self.positions = {
            body: p for body, p in positions.items() if p is not None and body in named
        }
        hand = self.positions["gripper"]
        self.cells = {
            body: grid_cells(episode, camera, p, grid) for body, p in self.positions.items()
        }
        turn = matrix_of(episode.axes).T.astype(np.float32)
        offsets = {
            body: (p - hand) @ turn for body, p in self.positions.items() if body != "gripper"
        }
        self.relations = {
            b: (np.sign(o) * (np.abs(o) > ALIGNED)).astype(int).tolist() for b, o in offsets.items()
        }
        self.distances = {body: np.linalg.norm(o, axis=1).tolist() for body, o in offsets.items()}
        opening, holding, table = (
            _column(episode, name) for name in ("gripper.opening", "gripper.holding", "table.z")
        )
        assert opening is not None
        if holding is None and "object" in self.distances:
            holding = (np.array(self.distances["object"]) < HELD) & (opening <= OPEN_SHARE)
        self.gripper = gripper_states(opening, holding)
        self.heights = (hand[:, 2] - (0.0 if table is None else table)).tolist()
        self.uses_object = "object" in self.positions and names_object(episode)
        to_object = self.distances["object"] if self.uses_object else None
        self.phases = phases(
            self.positions.get("object"), to_object, self.gripper, episode.success_step, self.length
        )
        mean = episode.chunks(horizon).mean(axis=1)
        moved = mean[:, :3] @ turn
        self.moves = (np.sign(moved) * (np.abs(moved) > STILL_ACTION)).astype(int).tolist()
        self.commands = gripper_commands(mean[:, -1], self.gripper)
        self.events = future_events(self._happening())
        self.trace_steps = [
            round(TRACE_HORIZONS * horizon * i / TRACE_POINTS) for i in range(1, TRACE_POINTS + 1)
        ]

    def _happening(self) -> dict[str, list[bool]]:
        """Return event -> [T], whether it is happening."""
        happening = {
            "close the gripper": [command == "close" for command in self.commands],
            "open the gripper": [command == "open" for command in self.commands],
            "lift the gripper": [move[2] > 0 for move in self.moves],
            "lower the gripper": [move[2] < 0 for move in self.moves],
        }
        bodies = ("object", "goal") if self.uses_object else ("goal",)
        for body in bodies:
            if body in self.distances:
                event = f"reach the {self.episode.nouns[body]}"
                happening[event] = [metres < NEAR for metres in self.distances[body]]
        return happening

    def _trace(self, t: int) -> tuple[GridCell, ...] | None:
        ahead = [self.cells["gripper"][min(t + step, self.length - 1)] for step in self.trace_steps]
        points = tuple(cell for cell in ahead if cell is not None)
        return points if len(points) == len(ahead) else None

    def at(self, t: int) -> Scene:
        """Return the scene of frame t."""
        episode, cells = self.episode, self.cells
        to_goal = "goal" in self.positions and (self.phases[t] == "move" or not self.uses_object)
        return Scene(
            task=episode.task,
            instruction=episode.instruction,
            nouns={**episode.nouns, "gripper": "gripper"},
            points={
                body: cell for body, column in cells.items() if (cell := column[t]) is not None
            },
            relations={body: tuple(column[t]) for body, column in self.relations.items()},
            distances={body: column[t] for body, column in self.distances.items()},
            height=self.heights[t],
            gripper=self.gripper[t],
            phase=self.phases[t],
            quarter=4 * t // self.length,
            move=tuple(self.moves[t]),
            command=self.commands[t],
            waypoint=cells["gripper"][t + WAYPOINT] if t + WAYPOINT < self.length else None,
            trace=self._trace(t),
            events={event: steps[t] for event, steps in self.events.items() if steps[t] > 0},
            target="goal" if to_goal else "object" if self.uses_object else "gripper",
        )


READABLE = {
    "control": "end-effector",
    "mode": "delta",
    "frame": "base",
    "gripper": "closed_positive",
}
"""Settings an action space must have for movements and gripper commands to be read here."""


def require_readable_actions(space: ActionSpace, where: str) -> None:
    """Raise RoboAlignError if facts about movement read from such actions would be wrong."""
    other = {name: value for name, value in READABLE.items() if getattr(space, name) != value}
    if other:
        found = ", ".join(f"{name} {getattr(space, name)}" for name in other)
        raise RoboAlignError(
            f"no questions can be made of actions with {found}",
            where=where,
            fix="give actions with " + ", ".join(f"{name} {other[name]}" for name in other),
        )


def _column(episode: Episode, name: str) -> np.ndarray | None:
    """Return [T] of the privileged state; None if it lacks this column."""
    if episode.privileged is None or name not in episode.privileged_names:
        return None
    return episode.privileged[:, episode.privileged_names.index(name)]


def names_object(episode: Episode) -> bool:
    """Return whether the instruction mentions the object.

    Meta-World's reach tasks have an object that must not be touched.
    """
    instruction = episode.instruction.lower().rstrip(".").replace(",", " ").split()
    return any(word in instruction for word in episode.nouns["object"].lower().split())


def grid_cells(
    episode: Episode, camera: str, positions: np.ndarray, grid: int
) -> list[GridCell | None]:
    """Return the image cell of each world point [T, 3]; None outside the image."""
    view = episode.cameras[camera]
    cells = np.floor(view.pixels(positions) / (view.width, view.height) * grid)
    # A NaN, which marks a point behind the camera, compares false.
    return [
        (int(u), int(v)) if 0 <= u < grid and 0 <= v < grid else None for u, v in cells.tolist()
    ]


def gripper_states(opening: np.ndarray, holding: np.ndarray | None) -> list[str]:
    """Return open, closed or holding for each frame.

    The inputs are the opening [T] in [0, 1] and whether something is held.
    """
    held = np.zeros(len(opening)) if holding is None else holding
    return [
        "holding" if holds else "open" if wide > OPEN_SHARE else "closed"
        for wide, holds in zip(opening, held)
    ]


def phases(
    object_at: np.ndarray | None,
    to_object: list[float] | None,
    gripper: list[str],
    success_step: int | None,
    length: int,
) -> list[str]:
    """Return the phase of each frame: reach, grasp, move or done.

    reach: far from the object. grasp: at it, or holding it by its end. move: it has left its place.
    """
    names = np.full(length, "reach", dtype=object)
    if object_at is not None and to_object is not None:
        names[(np.array(to_object) < NEAR) | (np.array(gripper) == "holding")] = "grasp"
        names[np.linalg.norm(object_at - object_at[0], axis=1) > MOVED] = "move"
    if success_step is not None:
        names[success_step + 1 :] = "done"  # frame t precedes action t
    return names.tolist()


def gripper_commands(mean: np.ndarray, states: list[str]) -> list[str]:
    """Return open, close or keep from the mean next gripper actions and the present state."""
    is_open = np.array(states) == "open"
    closing, opening_up = (mean > COMMAND) & is_open, (mean < -COMMAND) & ~is_open
    return ["close" if c else "open" if o else "keep" for c, o in zip(closing, opening_up)]


def future_events(happening: dict[str, list[bool]]) -> dict[str, list[int]]:
    """Return event -> [T] steps until it next happens.

    0 if it is happening now, -1 if it never will.
    """
    events = {}
    for event, now in happening.items():
        steps, wait = [-1] * len(now), -1
        for t in reversed(range(len(now))):
            wait = 0 if now[t] else wait + (wait >= 0)
            steps[t] = wait
        events[event] = steps
    return events
