"""Share settings, the frame's image and the turn between ways to generate questions.

The questions are about robot episodes.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from pydantic import Field, field_validator

from roboalign.actions.axes import Axes, parse_axes
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.prompts import Mode
from roboalign.conversations.styles.base import DEFAULT_STYLE, StyleName
from roboalign.conversations.styles.registry import style_of
from roboalign.core.config import Config, Seed
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault, Refused
from roboalign.episodes.episode import Episode

FLAT = 10
"""Gray levels: an image with no larger range on any channel shows nothing and is not used."""


class QuestionConfig(Config):
    """Settings of questions about robot episodes, whoever answers."""

    camera: str | None = None
    """The camera whose image is asked about; by default each episode's first."""
    frames: int | None = Field(None, ge=1)
    """Images of each episode, evenly spaced; without it, frames are drawn uniformly from all."""
    questions: int = Field(4, ge=1)
    """Maximum number of questions about one image."""
    think_share: float = Field(0.5, ge=0, le=1)
    """Share of the questions that ask for reasoning."""
    horizon: int = Field(5, ge=1)
    """Steps ahead covered by a question about the next movement."""
    grid: int = Field(32, ge=4, le=1000)
    """Cells per side of the image for point coordinates."""
    prompts: StyleName = DEFAULT_STYLE
    """How questions are asked and answered: the style of the mixture that they are for."""
    axes: Axes | None = None
    """Directions of +x, +y, +z of the base frame, seen from the robot: `(forward, left, up)`.
    Nothing else tells which way the robot faces, so without it no question names a direction."""
    position: int | None = Field(None, ge=0)
    """First of three state columns with the gripper's position in that frame (and in the world
    frame of the cameras' projections), in meters. Without it the state is not read, and movement is
    what the actions command."""
    whole: bool = False
    """Whether each recording shows its task from start to end; clips do not. Only then is it asked
    which quarter of the task a frame is."""
    seed: Seed = 0
    """Fixes every random draw."""

    @field_validator("axes")
    @classmethod
    def _right_handed(cls, axes: Axes | None) -> Axes | None:
        return axes if axes is None else parse_axes(",".join(axes))


@dataclass(frozen=True)
class Work:
    """An episode and its frames to ask about."""

    episode: Episode
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Made:
    """The result of one `Work`."""

    conversations: list[Conversation] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    """What could not be asked. Reasons repeat from frame to frame, so they are counted."""
    faults: list[Fault] = field(default_factory=list)
    """Broken items: an episode or a frame."""


class Generator(Protocol):
    """A way to make questions."""

    name: str
    """The start of each conversation's id."""

    def questions(self, work: Iterable[Work]) -> Iterator[Made]:
        """Yield one `Made` for each `Work`, in order.

        It reads ahead at most as many as it processes at the same time.
        """
        ...

    def spent(self) -> dict[str, int]:
        """Return the cost of the questions over this run and earlier ones; empty if free."""
        ...


def rng_of(seed: int, episode_id: str, t: int) -> random.Random:
    """Return the generator for one frame: its draws do not depend on earlier questions."""
    return random.Random(f"{seed}/{episode_id}/{t}")


def draw_mode(config: QuestionConfig, rng: random.Random) -> Mode:
    """Return think with the configured probability, else direct."""
    return "think" if rng.random() < config.think_share else "direct"


def camera_of(episode: Episode, camera: str | None) -> str:
    """Return the camera to ask about. Raises RoboAlignError if the episode lacks it."""
    if not episode.images:
        raise RoboAlignError(
            "it has no camera",
            where=f"episode {episode.episode_id}",
            fix="questions need an image: use a data set with one",
        )
    name = next(iter(episode.images)) if camera is None else camera
    if name not in episode.images:
        problem = f"no camera {name!r}; it has {sorted(episode.images)}"
        raise RoboAlignError(
            problem, where=f"episode {episode.episode_id}", fix="name one of these with --camera"
        )
    return name


def look(episode: Episode, camera: str | None, t: int) -> np.ndarray | Refused | Fault:
    """Return one frame, uint8 [H, W, 3].

    Refused if it shows nothing, a Fault if it is missing or broken.
    """
    try:
        name = camera_of(episode, camera)
        if len(episode.images[name]) != len(episode):
            return Fault(
                f"episode {episode.episode_id}",
                f"camera {name} has {len(episode.images[name])} frames for {len(episode)} actions",
                "drop or repair this episode",
            )
        frame = episode.frame(name, t)
    except RoboAlignError as error:
        return Fault(error.where, error.problem, error.fix)
    return frame if shows_something(frame) else Refused("the image has only one color")


def shows_something(frame: np.ndarray) -> bool:
    """Return whether an image, uint8 [H, W, 3], has more than one color."""
    return int(np.ptp(frame, axis=(0, 1)).max()) > FLAT


def make_turn(
    type_: str,
    label: str,
    mode: Mode,
    text: str,
    answer: str,
    reasoning: str | None,
    prompts: StyleName,
) -> Turn:
    """Return a question and its reply in this prompt style.

    The reasoning is included only in think mode.
    """
    thought = reasoning if mode == "think" else None
    kind = "reasoning" if mode == "think" else "embodied"
    style = style_of(prompts)
    reply = style.reply(answer, mode, label, thought)
    return Turn(kind, type_, mode, style.question(text, mode, label), reply, answer)


def make_conversation(
    name: str, episode_id: str, task: str, t: int, png: bytes, turns: list[Turn]
) -> Conversation:
    """Return the turns about one frame as a conversation."""
    return Conversation(f"{name}/{episode_id}/{t}", episode_id, t, task, (png,), tuple(turns))
