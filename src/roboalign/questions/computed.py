"""Generate questions from states and actions: choose them per frame and make conversations."""

import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.prompts import Mode
from roboalign.conversations.styles.base import StyleName
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault, Refused
from roboalign.episodes.episode import Episode, encode_png
from roboalign.questions.base import (
    Made,
    QuestionConfig,
    Work,
    draw_mode,
    look,
    make_conversation,
    make_turn,
    rng_of,
)
from roboalign.questions.facts.motion import Motion
from roboalign.questions.movement import NO_TASK, asked
from roboalign.questions.registry import QUESTION_TYPES, types_from
from roboalign.questions.types import Draft, QuestionType

ORDER_SHARE = (
    0.1  # share of the frames shown next to a later one, with the question of which comes first
)


class StateQuestions:
    """Questions with computed answers (a `base.Generator`)."""

    name = "states"

    def __init__(self, config: QuestionConfig) -> None:
        self.config = config

    def questions(self, work: Iterable[Work]) -> Iterator[Made]:
        """Process one episode at a time."""
        for one in work:
            try:
                motion = Motion(one.episode, self.config)
                made = Made()
                for t in one.frames:
                    add_frame(made, motion, t)
            except RoboAlignError as error:  # the episode as a whole is broken: none of it is kept
                made = Made(faults=[Fault(error.where, error.problem, error.fix)])
            yield made

    def spent(self) -> dict[str, int]:
        """Return nothing: these questions are free."""
        return {}


def add_frame(made: Made, motion: Motion, t: int) -> None:
    """Ask about one frame, and count what could not be asked."""
    config, rng = motion.config, rng_of(motion.config.seed, motion.episode.episode_id, t)
    frame = look(motion.episode, config.camera, t)
    if isinstance(frame, Fault):
        made.faults.append(frame)
        return
    if isinstance(frame, Refused):
        made.refused.append(frame)
        return
    if rng.random() < ORDER_SHARE:
        order = frame_order(motion, t, frame, rng)
        if isinstance(order, Refused):
            made.refused.append(order)
        else:
            made.conversations.append(order)
        return
    turns, refused = _ask(motion, t, rng)
    made.refused.extend(refused)
    if turns:
        made.conversations.append(converse(motion.episode, t, frame, turns))


def _ask(motion: Motion, t: int, rng: random.Random) -> tuple[list[Turn], list[Refused]]:
    """Return at most `config.questions` turns of different types, and what could not be asked.

    The turns are in random order.
    """
    has_task = bool(motion.episode.instruction.strip())
    kinds = [k for k in types_from("motion").values() if has_task or not k.needs_task]
    turns: list[Turn] = []
    refused = [] if has_task else [NO_TASK]
    for kind in rng.sample(kinds, len(kinds)):
        if len(turns) == motion.config.questions:
            break
        draft = kind.draft((motion, t), rng)
        if isinstance(draft, Refused):
            refused.append(Refused(f"{kind.name}: {draft.reason}"))
        else:
            mode = draw_mode(motion.config, rng)
            turns.append(turn_of(kind, draft, mode, rng, motion.config.prompts))
    return turns, refused


def turn_of(
    kind: QuestionType, draft: Draft, mode: Mode, rng: random.Random, prompts: StyleName
) -> Turn:
    """Return the draft in one mode: its facts in random order, then its conclusion."""
    reasoning = draft.reasoning(rng)
    return make_turn(kind.name, kind.label, mode, draft.text, draft.answer, reasoning, prompts)


def converse(episode: Episode, t: int, picture: np.ndarray, turns: list[Turn]) -> Conversation:
    """Return the turns about one picture as a conversation."""
    return make_conversation(
        "states", episode.episode_id, episode.task, t, encode_png(picture), turns
    )


def frame_order(
    motion: Motion, t: int, frame: np.ndarray, rng: random.Random
) -> Conversation | Refused:
    """Which of two frames of the demonstration, side by side in one image, comes first? They are a quarter apart."""
    episode, apart = motion.episode, max(1, len(motion.episode) // 4)
    if not episode.instruction.strip():
        return NO_TASK
    if t + apart >= len(episode):
        return Refused("frame_order: too near to the end for a later frame")
    later = look(episode, motion.config.camera, t + apart)
    if (
        isinstance(later, Refused | Fault)
        or later.shape != frame.shape
        or np.array_equal(later, frame)
    ):
        return Refused("frame_order: the later frame shows nothing else, or is broken")
    side = rng.choice(("left", "right"))
    pair = [(frame, t), (later, t + apart)] if side == "left" else [(later, t + apart), (frame, t)]
    text = asked(
        motion,
        "The image shows two moments of the task side by side. Which comes first, left or right?",
    )
    known = _beside(motion, [step for _, step in pair])
    draft = Draft(text, side, known, f"The {side} one comes first.")
    picture = np.concatenate([part for part, _ in pair], axis=1)
    mode = draw_mode(motion.config, rng)
    turn = turn_of(QUESTION_TYPES["frame_order"], draft, mode, rng, motion.config.prompts)
    return converse(episode, t, picture, [turn])


def _beside(motion: Motion, steps: Sequence[int]) -> list[str]:
    names = [motion.subtask(step) for step in steps]
    if any(isinstance(name, Refused) for name in names):
        return []
    return [f"On the {side} the subtask is {name}." for side, name in zip(("left", "right"), names)]
