"""Define what a question type is: one row of the registry, whatever its facts come from."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from roboalign.core.outcomes import Refused

QuestionGroup = Literal["general", "spatial", "state", "planning", "trace", "order", "source"]
"""Families of questions; a mixture's weights apply to the first five. `order` compares two frames,
and `source` is read from a question-answering source."""
Facts = Literal["scene", "motion", "frames", "source"]
"""What a question is made from: the simulator's privileged state of a frame, the motion of an
episode at a frame, two frames of an episode, or a question-answering source."""
Score = Literal["words", "point", "points", "numbers"]
"""How an answer is compared with the expected one (`registry.score_answer`)."""


@dataclass(frozen=True)
class World:
    """What the whole data set contains: the source of wrong options."""

    objects: dict[str, tuple[str, ...]]
    """task -> objects certainly not in its scenes (they share no word with what is)."""
    instructions: dict[str, tuple[str, ...]]
    """task -> instructions of tasks whose objects share no word with those of this task."""


@dataclass(frozen=True)
class Draft:
    """A question before its mode is chosen.

    `facts` are shuffled; the reasoning is facts + conclusion.
    """

    text: str
    answer: str
    facts: Sequence[str]
    conclusion: str

    def reasoning(self, rng: random.Random) -> str:
        """Return the facts in random order, each once, then the conclusion."""
        known = list(dict.fromkeys(self.facts))
        rng.shuffle(known)
        return " ".join([*known, self.conclusion])


@dataclass(frozen=True)
class QuestionType:
    """A family of questions with the same answers."""

    name: str
    kind: Literal["general", "embodied"]
    group: QuestionGroup
    facts: Facts
    label: str
    """What its answers consist of; opens them in the style `labelled`."""
    make: Callable[..., Draft | Refused] | None
    """Takes (Scene, World, rng) or (Motion, t, rng), by `facts`; None if it is not asked of a
    frame. Refused if the frame does not support the question."""
    chance: float | None = 0.0
    """Expected score of a uniform guess; 0.0 for open answers. None for image points, where the
    grid decides."""
    score: Score = "words"
    units: tuple[str, ...] = ()
    """For numbers: the units that an answer has."""
    needs_task: bool = True
    """Whether the answer depends on the instruction, which a recording may lack."""

    def draft(self, facts: tuple[Any, Any], rng: random.Random) -> Draft | Refused:
        """Draw a question from facts of the right kind: (Scene, World) or (Motion, frame)."""
        assert self.make is not None, self.name
        return self.make(*facts, rng)
