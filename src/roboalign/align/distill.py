"""Distill reasoning: decide which sampled answers to checkable questions become training data.

The paper trains a model with GRPO on multiple-choice and spatial questions, lets it answer 100K of
them and keeps 76K (its "zero-shot reasoning data", stage 1). It does not say how it chose them.
Here an answer is kept if it is well formed and right, its reasoning is valid (see below) and of
limited length, it does not repeat an earlier answer to its question, and the question does not have
enough answers already. The first condition that fails is the reason that is counted.

A reasoning that names the answer and then continues is not valid: the rest is written to fit the
answer. Sentences end with a full stop, a question mark or an exclamation mark before a space, or at
the end of a line. The last sentence is the conclusion.

- Leak: a sentence before the last says nothing but the answer ("Point 12 20.", "So it is left."),
  opens with it and a comma or colon ("Left, because ..."), or says what the answer is ("The answer
  is left, for ..."). If the answer is a letter, that letter may not be named at all before the last
  sentence, not even in a list of the options; an "A" or "I" that opens a phrase is a word and not a
  letter.
- No statement: no sentence before the last has three words or more, except one that the last
  repeats.

In other words ("The cup is at 12 20." when the question asked for the cup), the answer may occur
anywhere: for most questions it is itself the fact that the reasoning has to find.
"""

import re
from collections.abc import Sequence

from pydantic import Field, model_validator

from roboalign.align.grpo.config import RlConfig
from roboalign.conversations.conversation import Conversation, Turn, turn_alone
from roboalign.conversations.reply import ParsedReply
from roboalign.conversations.styles.base import PromptStyle
from roboalign.core.config import Config, Seed
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Refused
from roboalign.questions.registry import label_of, score_answer

PAPER_KEPT = {"kept": 76_000, "questions": 100_000}
"""How many answers the paper kept, and of how many questions."""
_GROUPS: dict[str, tuple[str, ...]] = {
    "choice": ("object_choice", "task_choice", "movement_choice", "order", "choice"),
    "spatial": (
        "gripper_point",
        "object_point",
        "goal_point",
        "waypoint",
        "point",
        "left_right",
        "back_forward",
        "down_up",
        "relation",
        "distance",
        "closer",
    ),
}
FILLERS = frozenset(
    (
        "a",
        "an",
        "and",
        "answer",
        "are",
        "at",
        "be",
        "best",
        "choice",
        "correct",
        "final",
        "hence",
        "is",
        "it",
        "letter",
        "must",
        "my",
        "option",
        "right",
        "should",
        "so",
        "that",
        "the",
        "then",
        "therefore",
        "this",
        "thus",
        "was",
    )
)
"""Words that add nothing to a sentence that states the answer."""
_NAMES = frozenset(("answer", "choice", "option"))
"""Words after which a sentence says what the answer is."""
DUPLICATE, ENOUGH = "duplicate", "the question has enough"
"""Reasons to drop an answer that passes by itself."""
STATEMENT = 3  # minimum words of a statement: "It is open."

_SENTENCES = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")
_NAMED = r"\b(?:option|answer|choice|letter)\b(?:\s+is)?[\s:]*\(?"


class DistillConfig(Config):
    """Reasoning distillation: GRPO on questions that can be checked, then sampled and filtered
    traces."""

    groups: dict[str, tuple[str, ...]] = Field(_GROUPS)
    """Question types by group; each group gives the same number of questions. `choice`, `point` and
    `text` are types of question-answering sources."""
    rl_questions: int = Field(10_000, ge=2)
    """Questions of the training split on which GRPO trains."""
    questions: int = Field(100_000, ge=2)
    """Questions whose answers are sampled (paper: 50K multiple-choice and 50K spatial); none of
    those above."""
    samples: int = Field(4, ge=1, le=10_000)
    """Answers sampled per question."""
    max_per_question: int = Field(1, ge=1)
    """Maximum traces kept per question, the first that pass."""
    temperature: float = Field(1.0, ge=1e-3, le=100)
    """Sampling temperature."""
    max_new_tokens: int = Field(512, ge=1, le=1_000_000)
    """Maximum tokens of an answer."""
    min_words: int = Field(4, ge=1)
    """Minimum words of a reasoning that is kept."""
    max_words: int = Field(300, ge=1)
    """Maximum words of a reasoning that is kept."""
    seed: Seed = 0
    """Determines the drawn questions and the sampling; it replaces `rl.seed`."""
    rl: RlConfig = RlConfig(reward="answer")
    """GRPO before the sampling. Its reward is `answer`."""

    @model_validator(mode="after")
    def _consistent(self) -> "DistillConfig":
        names = [name for types in self.groups.values() for name in types]
        if not names or not all(self.groups.values()) or len(set(names)) < len(names):
            raise ValueError("groups must each name types, and no type twice")
        for name in names:
            _require_type(name)
        if min(self.rl_questions, self.questions) < len(self.groups):
            raise ValueError(
                f"rl_questions {self.rl_questions} and questions {self.questions} must be at least one "
                f"for each of the {len(self.groups)} groups"
            )
        if self.rl.reward != "answer" or self.rl.replay_weight:
            raise ValueError(
                f"distill.rl has reward `answer` and no replay, not `{self.rl.reward}` with replay_weight "
                f"{self.rl.replay_weight}"
            )
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}")
        return self


def as_prompt(conversation: Conversation, number: int, style: PromptStyle) -> Conversation:
    """Return turn `number` as a separate conversation that asks to reason, with an empty answer."""
    alone = turn_alone(conversation, number)
    (turn,) = alone.turns
    question = style.asked(turn.question, "think", label_of(turn.type))
    asked = Turn("reasoning", turn.type, "think", question, "", turn.expected)
    return Conversation(
        f"{conversation.id}-{number}",
        conversation.episode_id,
        conversation.frame,
        conversation.task,
        alone.images,
        (asked,),
    )


def judge(
    question: Conversation,
    texts: Sequence[str],
    config: DistillConfig,
    style: PromptStyle,
    special: Sequence[str] = (),
) -> list[ParsedReply | Refused]:
    """Return for each decoded answer to a prompt of `as_prompt` what is kept of it, or why nothing
    is.

    `special` is as in `PromptStyle.parse`.
    """
    verdicts: list[ParsedReply | Refused] = []
    seen: set[str] = set()
    kept = 0
    for text in texts:
        verdict = judge_alone(text, question.turns[0], config, style, special)
        if isinstance(verdict, ParsedReply):
            said = " ".join(_words(verdict.reasoning))
            if said in seen:
                verdict = Refused(DUPLICATE)
            elif kept == config.max_per_question:
                verdict = Refused(ENOUGH)
            else:
                kept += 1
            seen.add(said)
        verdicts.append(verdict)
    return verdicts


def judge_alone(
    text: str,
    turn: Turn,
    config: DistillConfig,
    style: PromptStyle,
    special: Sequence[str] = (),
) -> ParsedReply | Refused:
    """Judge one decoded answer to a question independently of the others."""
    label = label_of(turn.type)
    reply = style.parse(text, "think", label, special)
    if not reply.well_formed or reply.answer is None:
        return Refused(f"format: {reply.reason}")
    if not score_answer(turn.type, turn.expected, reply.answer):
        return Refused("wrong answer")
    words = len(reply.reasoning.split())
    if not config.min_words <= words <= config.max_words:
        return Refused("too short" if words < config.min_words else "too long")
    if leaks(reply.reasoning, reply.answer, label):
        return Refused("leak of the answer")
    if not states(reply.reasoning):
        return Refused("no statement before the conclusion")
    return reply


def leaks(reasoning: str, answer: str, label: str) -> bool:
    """Return whether a sentence before the last gives the answer away, as defined at the top of
    this module."""
    before = _sentences(reasoning)[:-1]
    letter = answer.rstrip(".") if label == "letter" else ""
    if letter:
        return any(
            _says_only(sentence, answer, label) or _names(sentence, letter) for sentence in before
        )
    return any(
        _says_only(sentence, answer, label) or _announces(sentence, answer, label)
        for sentence in before
    )


def states(reasoning: str) -> bool:
    """Return whether there is a statement before the conclusion."""
    *before, last = [_words(sentence) for sentence in _sentences(reasoning)] or [[]]
    return any(len(words) >= STATEMENT and words != last for words in before)


def as_trace(
    question: Conversation, reply: ParsedReply, number: int, style: PromptStyle
) -> Conversation:
    """Return a kept answer to a prompt of `as_prompt` as training data; `number` distinguishes
    those of one question.

    The trace has the answer that the model gave, even a point that is 2 cells off, since the
    reasoning leads to that one.
    """
    turn = question.turns[0]
    told = Turn(
        turn.kind,
        turn.type,
        turn.mode,
        turn.question,
        style.reply(reply.answer or "", "think", label_of(turn.type), reply.reasoning),
        turn.expected,
    )
    return Conversation(
        f"distilled-{question.id}-{number}",
        question.episode_id,
        question.frame,
        question.task,
        question.images,
        (told,),
    )


def _require_type(name: str) -> None:
    try:
        label_of(name)
    except RoboAlignError as error:
        raise ValueError(str(error)) from None


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in _SENTENCES.split(text.strip()) if sentence]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _says_only(sentence: str, answer: str, label: str) -> bool:
    wanted = _words(answer)
    return _without_fillers(_words(sentence), wanted, label) == wanted


def _announces(sentence: str, answer: str, label: str) -> bool:
    """Return whether a sentence opens with the answer and a comma or colon, or says what the answer
    is before it continues."""
    wanted, words = _words(answer), _words(sentence)
    opening = r"\W*" + r"\W+".join(map(re.escape, wanted)) + r"\s*[,:;–—]"
    if re.match(opening, sentence, re.IGNORECASE):
        return True
    behind = [words[place + 1 :] for place, word in enumerate(words) if word in _NAMES]
    return any(_without_fillers(rest, wanted, label)[: len(wanted)] == wanted for rest in behind)


def _without_fillers(words: list[str], wanted: list[str], label: str) -> list[str]:
    fillers = (FILLERS | {label}) - set(wanted)
    return [word for word in words if word not in fillers]


def _names(sentence: str, letter: str) -> bool:
    """Return whether a sentence names an option by its letter."""
    letter = re.escape(letter.upper())
    alone = rf"(?<![\w'])\(?{letter}(?![\w'])"
    if letter in "AI":  # also a word: a letter only if no phrase follows
        alone = rf"(?<![\w']){letter}(?=\s*(?:[.,:;)!?]|$))"
    return bool(
        re.search(alone, sentence) or re.search(rf"{_NAMED}{letter}\b", sentence, re.IGNORECASE)
    )
