"""Check texts of question-answering data, and split replies into reasoning and answer.

Reasoning comes in several forms; control tokens are not allowed.
"""

import json
import re
from functools import lru_cache
from pathlib import Path

from roboalign.core.outcomes import Refused

THINK = r"think|thinking|thought|reasoning|reason"
REASONED = re.compile(rf"\s*<({THINK})>(.*?)</\1>\s*(.*)", re.DOTALL | re.IGNORECASE)
UNOPENED = re.compile(r"\s*(.*?)</think>\s*(.*)", re.DOTALL | re.IGNORECASE)
"""A recorded reply whose `<think>` the chat template wrote itself."""
ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL | re.IGNORECASE)
TAG = re.compile(rf"</?(?:{THINK}|answer)>", re.IGNORECASE)
CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<(?:image|video|IMG_CONTEXT|image_soft_token|start_of_turn|end_of_turn)>"
)
"""What chat models of several families read as a command, not as text: `<|im_end|>`, `<image>`."""


def split_reply(text: str) -> tuple[str | None, str] | Refused:
    """Return (reasoning or None, answer) of a reply, whichever form the data set uses.

    Reasoning is in `<think>` (or `<thinking>`, `<thought>`, `<reasoning>`, `<reason>`), or ends
    with `</think>`. The answer follows it, in `<answer>` or plain. Refused if a tag remains inside
    either of them, or there is no answer.
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
    """Return the first control token that a text spells; None if there is none.

    It may be one of any chat model, or one of `special`.
    """
    found = CONTROL.search(text)
    if found:
        return found[0]
    return next((token for token in sorted(special) if token in text), None)


@lru_cache(maxsize=4)
def folder_special_tokens(folder: Path) -> frozenset[str]:
    """Return the special tokens in a model folder's tokenizer.json; none without that file."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return frozenset()
    added = json.loads(file.read_text()).get("added_tokens", [])
    return frozenset(
        token["content"] for token in added if token.get("special") and token.get("content")
    )
