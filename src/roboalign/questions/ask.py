"""Draw questions of any registered type, and survey what a data set's questions may name."""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from roboalign.conversations.prompts import Mode
from roboalign.core.outcomes import Refused
from roboalign.episodes.episode import Episode
from roboalign.questions.registry import QUESTION_TYPES
from roboalign.questions.types import World


@dataclass(frozen=True)
class Question:
    """A question whose answer is correct by construction."""

    type: str
    kind: str
    """general or embodied; reasoning if `reasoning` is given."""
    text: str
    answer: str
    reasoning: str | None


def ask(name: str, mode: Mode, facts: tuple[Any, Any], rng: random.Random) -> Question | Refused:
    """Draw a question of type `name` from its facts (`QuestionType.draft`).

    Refused if it does not apply to the frame.
    """
    kind = QUESTION_TYPES[name]
    draft = kind.draft(facts, rng)
    if isinstance(draft, Refused):
        return draft
    if mode == "direct":
        return Question(name, kind.kind, draft.text, draft.answer, None)
    return Question(name, "reasoning", draft.text, draft.answer, draft.reasoning(rng))


def survey_world(episodes: Iterable[Episode]) -> World:
    """Return what the data set contains, and per task what cannot be true of its scenes.

    That is, the objects and instructions to use as wrong options. A scene contains more than its
    own object: the mug is in front of the coffee machine whose button another task presses. Two
    tasks therefore count as separate only if what is said of them (instruction and nouns) shares no
    word of any object.
    """
    nouns: dict[str, set[str]] = {}
    instructions: dict[str, str] = {}
    said: dict[str, set[str]] = {}
    for episode in episodes:
        things = {noun for body, noun in episode.nouns.items() if body.startswith("object")}
        nouns.setdefault(episode.task, set()).update(things)
        instructions[episode.task] = episode.instruction
        texts = " ".join([episode.instruction, *episode.nouns.values()])
        said.setdefault(episode.task, set()).update(re.findall(r"\w+", texts.lower()))
    object_words = {
        word for things in nouns.values() for noun in things for word in noun.lower().split()
    }
    tasks = sorted(nouns)
    apart = {
        task: [other for other in tasks if not said[task] & said[other] & object_words]
        for task in tasks
    }
    return World(
        objects={
            task: tuple(sorted({noun for other in apart[task] for noun in nouns[other]}))
            for task in tasks
        },
        instructions={
            task: tuple(instructions[other] for other in apart[task] if nouns[other])
            for task in tasks
        },
    )
