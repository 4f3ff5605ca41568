"""Reward a sampled answer in words, for questions whose answer can be checked.

A response is `<think> reasoning </think><answer>answer</answer>`; in the prompt style `labelled`
the answer opens with the label that the question names. As for actions, r = (r_f + r_a) / 2; r_f is
1 if the format is correct. The two presets differ only in r_a:

| preset | r_a of a well-formed answer |
|---|---|
| `answer` | the score that evaluation gives: 1 if the answer is right, else 0 (`questions.score_answer`) |
| `trace` | exp(-d / TAU_CELLS), d the mean distance to the expected points; 0 for another number of points |

An answer that is not well formed earns nothing, as under `decoded` (rewards/actions.py). A guess
among three options is right a third of the time without any reasoning, so a policy rewarded for it
would drop its reasoning and guess. An action token or a special token anywhere, a tag missing or
written twice, text around the tags, an empty reasoning, another label, and a label without an
answer after it each break the format. The quality of the reasoning earns nothing: one word counts
as reasoning.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.styles.base import PromptStyle
from roboalign.questions.registry import label_of, score_answer

TAU_CELLS = 4.0
"""Scale of the closeness of a trace, in cells of the grid: points that miss by 2 cells, the
tolerance of a point, earn 0.61; by 8, a quarter of an image of 32 cells, 0.14."""

_TRACE = re.compile(r"\s*\d{1,4}\s+\d{1,4}(?:\s*,\s*\d{1,4}\s+\d{1,4})*\s*\.?\s*")


@dataclass(frozen=True)
class AnswerReward:
    """One response's reward and its parts, all in [0, 1]; total = (format + score) / 2."""

    total: float
    format: float
    score: float
    """r_a: `accuracy` if the response is well formed, else 0."""
    accuracy: float
    """What the answer would earn in the right format; for `answer` the score that evaluation
    gives."""
    reason: str
    """Why the format failed, or "ok"."""


def read_trace(text: str) -> list[tuple[int, int]] | None:
    """Parse `12 20, 13 22` into [(12, 20), (13, 22)], column and row of each point; None for any
    other text."""
    if not _TRACE.fullmatch(text):
        return None
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    return list(zip(numbers[::2], numbers[1::2]))


def trace_closeness(expected: str, predicted: str | None, tau: float = TAU_CELLS) -> float:
    """Return exp(-d / tau), in [0, 1]; d is the mean Euclidean distance of the predicted points to
    the expected ones, in cells.

    This is 0.0 if `predicted` is None, no trace, or has another number of points. Raises ValueError
    if `expected` is no trace: the data is broken, not the answer.
    """
    target, found = read_trace(expected), read_trace(predicted or "")
    if target is None:
        raise ValueError(f"the expected answer {expected!r} is no list of points")
    if found is None or len(found) != len(target):
        return 0.0
    return math.exp(-sum(map(math.dist, target, found)) / len(target) / tau)


ANSWER_REWARDS: dict[str, Callable[[Turn, str | None], float]] = {
    "answer": lambda turn, answer: score_answer(turn.type, turn.expected, answer),
    "trace": lambda turn, answer: trace_closeness(turn.expected, answer),
}
"""The scores of answers by their names in a recipe."""


def score_answers(
    texts: Sequence[str],
    conversations: Sequence[Conversation],
    *,
    preset: str,
    style: PromptStyle,
    special: Sequence[str] = (),
) -> list[AnswerReward]:
    """Return the rewards of decoded responses to the first question of each conversation, all of
    one style.

    `preset` names one of `ANSWER_REWARDS`; `special` is as in `PromptStyle.parse`. Raises
    ValueError if the numbers of responses and conversations differ, or if an expected answer is
    broken, as `ANSWER_REWARDS` do.
    """
    rewards = []
    for text, conversation in zip(texts, conversations, strict=True):
        turn = conversation.turns[0]
        reply = style.parse(text, "think", label_of(turn.type), special)
        form, accuracy = float(reply.well_formed), ANSWER_REWARDS[preset](turn, reply.answer)
        paid = form * accuracy
        rewards.append(AnswerReward((form + paid) / 2, form, paid, accuracy, reply.reason))
    return rewards
