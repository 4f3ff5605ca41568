"""What the ways of generating questions from robot episodes share: settings, the frame's image, the turn."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from pydantic import Field, field_validator

from roboalign.actions.axes import Axes, parse_axes
from roboalign.conversations import prompts
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.prompts import Mode
from roboalign.core.config import Config, Seed
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault, Refused
from roboalign.episodes.episode import Episode

FLAT = 10
"""Grey levels: an image that spans no more on any channel shows nothing, and nothing is asked about it."""


class QuestionConfig(Config):
    """What is asked about robot episodes, whoever answers."""

    camera: str | None = None
    """The camera whose image is asked about; without it each episode's first."""
    frames: int | None = Field(None, ge=1)
    """Images of each episode, evenly spaced over it; without it frames are drawn from all alike."""
    questions: int = Field(4, ge=1)
    """Most questions about one image."""
    think_share: float = Field(0.5, ge=0, le=1)
    """Share of the questions that ask for reasoning."""
    horizon: int = Field(5, ge=1)
    """Steps that a question about the next movement looks ahead."""
    grid: int = Field(32, ge=4, le=1000)
    """Cells per side of the image, in which points are given."""
    axes: Axes | None = None
    """Where +x, +y, +z of the base frame point, seen from the robot: `(forward, left, up)`. Nothing else tells which
    way the robot looks, so without it no question names a direction."""
    position: int | None = Field(None, ge=0)
    """First of three columns of the state that hold the gripper's position in that frame (and in the world frame of the
    cameras' projections), metres. Without it the state is not read, and movement is what the actions command."""
    seed: Seed = 0
    """Fixes every draw."""

    @field_validator("axes")
    @classmethod
    def _right_handed(cls, axes: Axes | None) -> Axes | None:
        return axes if axes is None else parse_axes(",".join(axes))


@dataclass(frozen=True)
class Work:
    """An episode and the frames of it that are asked about."""

    episode: Episode
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Made:
    """What came of one `Work`."""

    conversations: list[Conversation] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    """What could not be asked, with reasons that repeat from frame to frame: they are counted."""
    faults: list[Fault] = field(default_factory=list)
    """What is broken: an episode or a frame."""


class Generator(Protocol):
    """A way to make questions."""

    name: str
    """Opens the id of each conversation."""

    def questions(self, work: Iterable[Work]) -> Iterator[Made]:
        """One `Made` for each `Work`, in order; reads ahead at most as far as it works on several at once."""
        ...

    def spent(self) -> dict[str, int]:
        """What the questions cost, this run and earlier ones together; empty where they cost nothing."""
        ...


def rng_of(seed: int, episode_id: str, t: int) -> random.Random:
    """The draws about one frame: the same whatever was asked before it."""
    return random.Random(f"{seed}/{episode_id}/{t}")


def draw_mode(config: QuestionConfig, rng: random.Random) -> Mode:
    """think with the config's share."""
    return "think" if rng.random() < config.think_share else "direct"


def camera_of(episode: Episode, camera: str | None) -> str:
    """The camera that is asked about. Raises RoboAlignError where the episode has not got it."""
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
    """uint8 [H, W, 3]: one frame. Refused where it shows nothing, a Fault where it is missing or broken."""
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
    if int(np.ptp(frame, axis=(0, 1)).max()) <= FLAT:
        return Refused("the image is of one colour")
    return frame


def make_turn(
    type_: str, label: str, mode: Mode, text: str, answer: str, reasoning: str | None
) -> Turn:
    """A question and its reply in the form of `prompts`; the reasoning goes with the mode think only."""
    thought = reasoning if mode == "think" else None
    kind = "reasoning" if mode == "think" else "embodied"
    reply = prompts.reply(prompts.answer(answer, label), thought)
    return Turn(kind, type_, mode, prompts.question(text, mode, label), reply, answer)


def make_conversation(
    name: str, episode_id: str, task: str, t: int, png: bytes, turns: list[Turn]
) -> Conversation:
    """The turns about one frame."""
    return Conversation(f"{name}/{episode_id}/{t}", episode_id, t, task, png, tuple(turns))
