"""The grammar of replies: what a reply says, or why it cannot be read.

Reward, token evaluation, distillation and the export to verl all read replies here. A reply has one
of two forms. Which one a question asks for is up to the prompt style and the mode.

| form | the reply |
|---|---|
| tagged | `<think>reasoning</think><answer>answer</answer>` (paper, section 3.2) |
| plain | the answer alone |

The answer is text or one action block. Blocks are found by their token ids, never in decoded text,
so for them only the text before and after is judged.

This file needs only the standard library: an export puts a copy next to its `reward.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ReplyForm = Literal["tagged", "plain"]
OK = "ok"
MARK = re.compile(r"</?(?:think|answer)>|<ACTION_(?:START|END)>|<FAST_\d+>")
"""Not allowed in a reasoning, nor in an answer in words."""
_TAG = re.compile(r"</?(?:think|answer)>")
_ACTION = re.compile(r"<ACTION_(?:START|END)>|<FAST_\d+>")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BEFORE = re.compile(r"\s*<think>(.*)</think>\s*<answer>\s*", re.DOTALL)
_AFTER = re.compile(r"\s*</answer>\s*")
_REPLY = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


@dataclass(frozen=True)
class ParsedReply:
    """What a reply in words holds. `reason` says why it is not well formed ("ok" where it is)."""

    well_formed: bool
    reasoning: str
    """Empty where the reply is not well formed or has none."""
    answer: str | None
    """The answer, from a reply that is not well formed too; None where it cannot be read."""
    reason: str


def write_tagged(answer: str, reasoning: str | None = None) -> str:
    """Return `<think>reasoning</think><answer>answer</answer>`.

    Without a reasoning the first pair of tags is empty, as Qwen3 writes a direct reply.
    """
    return f"<think>{reasoning or ''}</think><answer>{answer}</answer>"


def read_words(text: str, form: ReplyForm, special: Sequence[str] = ()) -> ParsedReply:
    """Read a decoded reply in words, without its end token.

    `special` are the tokenizer's special tokens (of images, of turns): a text that spells one is
    not well formed, and could not be trained on. The quality of a reasoning is not judged.
    """
    answer = answer_of(text)
    if form == "plain" and not _TAG.search(text):
        answer = text.strip() or None
    if _ACTION.search(text):
        reason = "action tokens in an answer in words"
    elif any(token in text for token in special):
        reason = "a special token"
    elif form == "plain":
        tag = _TAG.search(text)
        reason = "a tag in a direct answer" if tag else OK if answer else "an empty answer"
    else:
        reason = _fault_of_tags(text, answer)
    if reason != OK:
        return ParsedReply(False, "", answer, reason)
    whole = _REPLY.fullmatch(text)
    return ParsedReply(True, whole[1].strip() if whole else "", answer, OK)


def answer_of(text: str) -> str | None:
    """Return the text between `<answer>` and `</answer>`, stripped.

    None where there is not exactly one such pair.
    """
    answers = _ANSWER.findall(text)
    if len(answers) != 1 or text.count("<answer>") != 1:
        return None
    return answers[0].strip()


def judge_block(
    before: str, after: str, form: ReplyForm, *, special: bool = False
) -> tuple[bool, str]:
    """Judge the text around a reply's only action block: (whether the block counts, the reason).

    The reason is "ok" where the reply is well formed. A block counts where it is the answer, even
    if the text around it is wrong: inside `<answer>`, or, in a plain reply, without tags. `special`
    says that a special token comes before the block.
    """
    tags = _TAG.findall(before)
    inside = bool(tags) and tags[-1] == "<answer>"
    if form == "plain":
        if tags and not inside:
            return False, "action block outside <answer>"
        alone = not before.strip() and not after.strip()
        return True, OK if alone else "text around the action block"
    if not inside:
        return False, "action block outside <answer>"
    opening = _BEFORE.fullmatch(before)
    if opening is None or not opening[1].strip() or MARK.search(opening[1]):
        return True, "text before the action block is not <think>reasoning</think><answer>"
    if special:
        return True, "a special token in the reasoning"
    if not _AFTER.fullmatch(after):
        return True, "text after the action block is not </answer>"
    return True, OK


def has_reasoning(text: str) -> bool:
    """Return whether a reply opens with a reasoning that is not empty, well formed or not."""
    thought = _THOUGHT.match(text)
    return bool(thought and thought[1].strip())


def _fault_of_tags(text: str, answer: str | None) -> str:
    whole = _REPLY.fullmatch(text)
    if answer is None:
        return "not one <answer>"
    if whole is None or any(MARK.search(part) for part in whole.groups()):
        return "text around <think>reasoning</think><answer>"
    return OK if whole[1].strip() else "empty reasoning"
