"""What texts of question-answering data may hold: replies with reasoning in several forms, no control tokens."""

import json
import re
from functools import lru_cache
from pathlib import Path

from roboalign.core.outcomes import Refused

THINK = r"think|thinking|thought|reasoning|reason"
REASONED = re.compile(rf"\s*<({THINK})>(.*?)</\1>\s*(.*)", re.DOTALL | re.IGNORECASE)
UNOPENED = re.compile(r"\s*(.*?)</think>\s*(.*)", re.DOTALL | re.IGNORECASE)
"""As a chat template that writes `<think>` itself leaves it in a recorded reply."""
ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL | re.IGNORECASE)
TAG = re.compile(rf"</?(?:{THINK}|answer)>", re.IGNORECASE)
CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<(?:image|video|IMG_CONTEXT|image_soft_token|start_of_turn|end_of_turn)>"
)
"""What chat models of several families read as a command, never as text: `<|im_end|>`, `<image>`."""


def split_reply(text: str) -> tuple[str | None, str] | Refused:
    """(reasoning or None, answer) of a reply, whatever the form in which a data set writes the two.

    Reasoning is in `<think>` (or `<thinking>`, `<thought>`, `<reasoning>`, `<reason>`), or ends with `</think>`; the
    answer follows it, in `<answer>` or plain. Refused where a tag is left inside one of them, or no answer is there.
    """
    reasoning, rest = None, text
    if match := REASONED.fullmatch(text):
        reasoning, rest = match[2], match[3]
    elif match := UNOPENED.fullmatch(text):
        reasoning, rest = match[1], match[2]
    inner = ANSWER.fullmatch(rest)
    answer = (inner[1] if inner else rest).strip()
    if left := TAG.search(f"{reasoning or ''} {answer}"):
        return Refused(f"the answer has the tag {left[0]} inside its text")
    if not answer:
        return Refused("there is no answer behind the reasoning")
    return (reasoning or "").strip() or None, answer


def control_token(text: str, special: frozenset[str] = frozenset()) -> str | None:
    """The first control token that a text spells: of any chat model, or of `special`; None where it spells none."""
    found = CONTROL.search(text)
    if found:
        return found[0]
    return next((token for token in sorted(special) if token in text), None)


@lru_cache(maxsize=4)
def folder_special_tokens(folder: Path) -> frozenset[str]:
    """The special tokens of a model folder, from its tokenizer.json; none where it has no such file."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return frozenset()
    added = json.loads(file.read_text()).get("added_tokens", [])
    return frozenset(
        token["content"] for token in added if token.get("special") and token.get("content")
    )
