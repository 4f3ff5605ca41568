"""Pack questions with the action samples of a robot source: from facts, and from a teacher."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from pydantic import Field, field_validator, model_validator

from roboalign.actions.axes import Axes, parse_axes
from roboalign.conversations.conversation import Turn, read_table, shards
from roboalign.conversations.qa.texts import control_token
from roboalign.conversations.stored import StoredConversations
from roboalign.core.config import Config, Weight
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Refused
from roboalign.episodes.episode import Episode
from roboalign.episodes.pictures import rgb_of_file
from roboalign.mixture.packing import TEACHER, FrameFacts
from roboalign.questions.base import QuestionConfig, shows_something
from roboalign.questions.facts.motion import Motion
from roboalign.questions.facts.scene import READABLE, EpisodeScenes
from roboalign.questions.registry import types_from
from roboalign.questions.types import World


class PackConfig(Config):
    """Questions packed with each action of a robot source, about the same image.

    They are made from the simulator's state where an episode has it, else from motion alone: what
    its actions command and its state columns measure. What does not apply to a frame is not asked.
    """

    min_turns: int = Field(4, ge=1, le=1000)
    """Minimum turns of a conversation, the action included; fewer where fewer questions apply."""
    max_turns: int = Field(8, ge=1, le=1000)
    """Maximum turns of a conversation."""
    think_share: float = Field(0.45, ge=0, le=1)
    """Share of the computed questions asked in think mode."""
    weights: dict[str, Weight] = Field(
        {"general": 1.0, "spatial": 3.0, "state": 1.0, "planning": 3.0, TEACHER: 3.0}
    )
    """Relative weights of the question groups; the types of a group are equally likely. `trace`,
    the gripper's path in the image, is asked only if it is listed."""
    horizon: int | None = Field(None, ge=1)
    """Steps ahead covered by questions about the next movement; by default the action chunk."""
    grid: int = Field(32, ge=4, le=1000)
    """Cells per side of the image for point coordinates."""
    axes: Axes | None = None
    """Directions of +x, +y, +z of the base frame, seen from the robot: `[forward, left, up]`; by
    default what is known of `space`. Without them no question from motion names a direction."""
    position: int | None = Field(None, ge=0)
    """First of three state columns with the gripper's position in the base frame, in meters.
    Without it, movement is what the actions command."""
    whole: bool = False
    """Whether each recording shows its task from start to end; clips do not. Only then is it asked
    from motion which quarter of the task a frame is."""
    teacher: str | None = None
    """A folder of `roboalign data questions --by teacher` about this camera: its questions are
    packed with the frames that they are about."""

    @field_validator("axes")
    @classmethod
    def _right_handed(cls, axes: Axes | None) -> Axes | None:
        return axes if axes is None else parse_axes(",".join(axes))

    @model_validator(mode="after")
    def _consistent(self) -> "PackConfig":
        if self.min_turns > self.max_turns:
            raise ValueError(f"min_turns {self.min_turns} is above max_turns {self.max_turns}")
        groups = {
            TEACHER,
            *(k.group for of in ("scene", "motion") for k in types_from(of).values()),
        }
        if set(self.weights) - groups or not sum(self.weights.values()):
            raise ValueError(
                f"weights must be non-negative, not all 0, and name some of {sorted(groups)}"
            )
        return self


class TeacherAnswers:
    """A teacher's questions by the frame that they are about; texts stay on disk."""

    def __init__(self, folder: str, special: frozenset[str] = frozenset()) -> None:
        """Raises RoboAlignError if the folder holds no conversation shards."""
        self.folder, self.special = folder, special
        self.stored = StoredConversations(folder, "train")
        rows = [read_table(path, ["episode_id", "frame"]) for path in shards(folder, "train")]
        about = (pair for table in rows for pair in zip(*(c.to_pylist() for c in table.columns)))
        self.places = {pair: place for place, pair in enumerate(about)}

    def about(self, episode: Episode, t: int, camera: str) -> tuple[Turn, ...]:
        """Return the questions about a frame. Raises RoboAlignError if another image was shown."""
        place = self.places.get((episode.episode_id, t))
        if place is None:
            return ()
        one = self.stored[place]
        shown, frame = [rgb_of_file(image) for image in one.images], episode.frame(camera, t)
        if len(shown) != 1 or not np.array_equal(shown[0], frame):
            raise RoboAlignError(
                f"it was not asked about the image of camera {camera}",
                where=f"{self.folder}, conversation {one.id}",
                fix="name the camera that the teacher saw, or ask it about this one",
            )
        return tuple(
            turn
            for turn in one.turns
            if turn.kind != "action"
            and not any(control_token(text, self.special) for text in (turn.question, turn.answer))
        )


@lru_cache(maxsize=4)
def teacher_answers(folder: str) -> TeacherAnswers:
    """Return the answers in a folder, opened once in each process."""
    return TeacherAnswers(folder)


def frame_facts(
    episode: Episode, cameras: tuple[str, ...], pack: PackConfig, horizon: int, world: World
) -> Callable[[int], FrameFacts | Refused]:
    """Return a function from a frame to what is asked about it.

    Refused if its images show nothing. Raises RoboAlignError if the episode is broken, as `Motion`.
    """
    one_image = len(cameras) == 1
    if has_scenes(episode, cameras):
        scenes = EpisodeScenes(episode, cameras[0], pack.grid, horizon)
        motion = None
    else:
        asked = pack.horizon or horizon
        config = QuestionConfig(
            camera=cameras[0],
            horizon=asked,
            grid=pack.grid,
            axes=pack.axes,
            position=pack.position,
            whole=pack.whole,
        )
        motion = Motion(episode, config)

    def at(t: int) -> FrameFacts | Refused:
        if not all(shows_something(episode.frame(camera, t)) for camera in cameras):
            return Refused("the image has only one color")
        taught: tuple[Turn, ...] = ()
        if pack.teacher and one_image:
            taught = teacher_answers(pack.teacher).about(episode, t, cameras[0])
        if motion is not None:
            return FrameFacts("motion", (motion, t), one_image, taught)
        return FrameFacts("scene", (scenes.at(t), world), one_image, taught)

    return at


def has_scenes(episode: Episode, cameras: tuple[str, ...]) -> bool:
    """Return whether an episode has the simulator's state that questions about scenes need.

    Their reasoning names points, so they are about one calibrated image.
    """
    view, space = episode.cameras.get(cameras[0]), episode.action_space
    readable = space is None or all(getattr(space, name) == v for name, v in READABLE.items())
    return (
        len(cameras) == 1
        and view is not None
        and view.projection is not None
        and episode.position("gripper") is not None
        and "gripper.opening" in episode.privileged_names
        and readable
    )
