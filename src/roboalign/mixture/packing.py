"""Pack turns about one frame in random order: an action turn among questions.

This packing makes the model reason before actions without ever being shown that (paper, section
3.1). An action turn has no reasoning trace, but shares a conversation with questions about the same
image, asked in both modes.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from roboalign.conversations.conversation import Turn
from roboalign.conversations.prompts import ACTIONS, NEXT_STEP, Mode, action_answer
from roboalign.conversations.styles.base import PromptStyle
from roboalign.core.outcomes import Refused
from roboalign.questions.ask import Question, ask
from roboalign.questions.registry import label_of, types_from

TEACHER = "teacher"
"""The group of a teacher's questions, next to the groups of the registry."""


@dataclass(frozen=True)
class FrameFacts:
    """What the questions about one frame are made from."""

    kind: Literal["scene", "motion"]
    of: tuple[Any, Any]
    """(Scene, World) or (Motion, frame)."""
    one_image: bool = True
    """Whether a single image is shown. Points in the image are not asked about several."""
    taught: tuple[Turn, ...] = ()
    """A teacher's questions about the frame, with their answers."""

    def groups(self) -> dict[str, str]:
        """Return name -> group of what can be asked; a teacher's questions are `teacher 0`, .."""
        kinds = types_from(self.kind).values()
        made = {k.name: k.group for k in kinds if self.one_image or not k.score.startswith("point")}
        return {**made, **{f"{TEACHER} {n}": TEACHER for n in range(len(self.taught))}}


@dataclass
class Packer:
    """Draws the questions about frames."""

    weights: Mapping[str, float]
    """Relative weights of the question groups."""
    think_share: float
    style: PromptStyle
    undrawn: Counter[str] = field(default_factory=Counter)
    """type -> how often it was drawn for a frame to which it does not apply."""
    reasons: Counter[str] = field(default_factory=Counter)
    """`type: reason` -> the same."""

    def questions(self, facts: FrameFacts, count: int, rng: random.Random) -> list[Turn]:
        """Return `count` questions of different types, each with its own mode; fewer if fewer apply."""
        waiting = draw_types(self.weights, rng, facts.groups())
        turns: list[Turn] = []
        while len(turns) < count and waiting:
            name = waiting.pop()
            if name.startswith(TEACHER):
                turns.append(facts.taught[int(name.removeprefix(TEACHER))])
                continue
            mode: Mode = "think" if rng.random() < self.think_share else "direct"
            question = ask(name, mode, facts.of, rng)
            if isinstance(question, Refused):
                self.undrawn[name] += 1
                self.reasons[f"{name}: {question.reason}"] += 1
            else:
                lead = rng.random() < 0.5
                turns.append(question_turn(question, mode, self.style, lead=lead))
        return turns

    def pack(
        self,
        facts: FrameFacts | None,
        action: Callable[[random.Random], Turn] | None,
        span: tuple[int, int],
        rng: random.Random,
    ) -> list[Turn]:
        """Return from `span[0]` to `span[1]` turns, the action among the questions if there is one.

        Without facts it is the action alone.
        """
        count = rng.randint(*span) - (action is not None)
        turns = self.questions(facts, count, rng) if facts else []
        if action is not None:
            place = rng.randint(0, len(turns))
            turns.insert(place, action(rng))
        return turns


def draw_types(
    weights: Mapping[str, float], rng: random.Random, groups: Mapping[str, str] | None = None
) -> list[str]:
    """Return all question types of positive weight in a weighted random order.

    `groups` is name -> group, by default of the types from a simulator's state. The first drawn is
    last in the list. Samples without replacement, using the exponential keys of Efraimidis and
    Spirakis (2006).
    """
    if groups is None:
        groups = {name: kind.group for name, kind in types_from("scene").items()}
    sizes = Counter(groups.values())
    keyed = [
        (rng.random() ** (sizes[group] / weights[group]), name)
        for name, group in groups.items()
        if weights.get(group, 0) > 0
    ]
    return [name for _, name in sorted(keyed)]


def question_turn(
    question: Question, mode: Mode, style: PromptStyle, *, lead: bool = False
) -> Turn:
    """Return a question as a turn with its prompt and reply."""
    label = label_of(question.type)
    reply = style.reply(question.answer, mode, label, question.reasoning)
    text = style.question(question.text, mode, label, lead=lead)
    return Turn(question.kind, question.type, mode, text, reply, question.answer)


def action_turn(
    instruction: str,
    ids: Sequence[int],
    mode: Mode,
    style: PromptStyle,
    rng: random.Random | None = None,
) -> Turn:
    """Return the action question; with `rng`, in a random wording.

    Its answer has no reasoning in either mode.
    """
    expected = action_answer(ids)
    wording, lead = (rng.randrange(len(NEXT_STEP)), rng.random() < 0.5) if rng else (0, False)
    question = style.action_question(instruction, mode, wording, lead=lead)
    reply = style.reply(expected, mode, ACTIONS)
    return Turn("action", "action", mode, question, reply, expected)
