"""Parse a teacher's reply: extract its JSON, and keep the questions that can be trained on."""

import json
import re
from dataclasses import dataclass
from itertools import islice
from typing import Any

from roboalign.conversations.qa.normal import OPTION_PATTERNS, Points, parse_choice, parse_points
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.outcomes import Refused
from roboalign.questions.teacher.client import TeacherReply

LONGEST = {"question": 500, "answer": 200, "reasoning": 1500}
"""Maximum characters of each text."""
MOST_STARTS = 100
"""Maximum number of brackets in a reply at which to look for JSON."""
_KINDS = {"text": "answer", "choice": "letter", "point": "point"}
"""kind in the teacher's JSON, same as the type in conversations/qa -> label."""
RESERVED = re.compile(r"</?(?:think|answer|image)>|<\|[a-z_]+\|>|<ACTION_|<FAST_", re.I)
"""Tags of a reply, action tokens, and the special tokens of chat templates."""
FRAME_NUMBER = re.compile(r"\bframe\s+(?:number\s+)?\d", re.I)
"""The prompt tells the teacher this number, but the image does not show it."""
_REQUESTS = tuple(request for style in STYLES.values() for request in style.requests)


@dataclass(frozen=True)
class Answered:
    """A question that passed; `reasoning` is empty if the teacher gave none."""

    type: str
    label: str
    question: str
    answer: str
    reasoning: str


def read_reply(reply: TeacherReply) -> list[Any] | Refused:
    """Return the list under `questions` of the JSON in a reply.

    The JSON may be bare, in a code fence, or surrounded by text.
    """
    if reply.refusal or reply.finish == "content_filter":
        return Refused("the teacher refused")
    if reply.finish == "length":  # also a reply without text: hidden reasoning used up its tokens
        return Refused("the teacher's answer was cut at its token limit")
    text = reply.text.rpartition("</think>")[2]  # reasoning may contain a draft of the list
    if not text.strip():
        return Refused("the teacher wrote nothing")
    for start in islice(re.finditer(r"[{\[]", text), MOST_STARTS):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and isinstance(found.get("questions"), list):
            return found["questions"]
        if isinstance(found, list) and found and isinstance(found[0], dict):
            return found
    return Refused("the teacher's answer holds no JSON list of questions")


def check(item: Any, seen: set[str], grid: int) -> Answered | Refused:
    """Return one entry of that list if it can be trained on.

    `seen` contains what was accepted before; an accepted entry is added.
    """
    if not isinstance(item, dict):
        return Refused("a question is not a JSON object")
    kind = item.get("kind", "text")
    if not isinstance(kind, str) or kind not in _KINDS:
        return Refused("a question is of no known kind")
    texts = {name: item.get(name, "") for name in LONGEST}
    if isinstance(texts["answer"], int | float | list) and not isinstance(texts["answer"], bool):
        texts["answer"] = json.dumps(texts["answer"])
    texts["reasoning"] = texts["reasoning"] or ""
    if not all(isinstance(text, str) for text in texts.values()):
        return Refused("a question, answer or reasoning is not text")
    question, answer, reasoning = (tidy(texts[name]) for name in LONGEST)
    refused = faults_of(question, answer, reasoning)
    answered = refused or read_answer(kind, question, answer, reasoning, grid)
    if isinstance(answered, Refused):
        return answered
    if _leaks(answered):
        return Refused("the question gives its answer away")
    key = f"{_plain(answered.question)}|{_plain(answered.answer)}"
    if key in seen:
        return Refused("a question is asked twice in one episode")
    seen.add(key)
    return answered


def faults_of(question: str, answer: str, reasoning: str) -> Refused | None:
    """Return what is wrong with the texts themselves."""
    if not question or not answer:
        return Refused("a question or answer is empty")
    for name, text in zip(LONGEST, (question, answer, reasoning), strict=True):
        if len(text) > LONGEST[name]:
            return Refused(f"the {name} is too long")
        if RESERVED.search(text) or any(request in text for request in _REQUESTS):
            return Refused(f"the {name} holds a tag or a request of the reply form")
        if FRAME_NUMBER.search(text):
            return Refused(f"the {name} names the frame's number")
        if not text.isprintable() and any(not c.isprintable() and c != "\n" for c in text):
            return Refused(f"the {name} holds control characters")
    return None


def read_answer(
    kind: str, question: str, answer: str, reasoning: str, grid: int
) -> Answered | Refused:
    """Return the answer in the form of its label: a cell, a letter, or the text."""
    if kind == "point":
        found = parse_points(answer, "per-mille")
        if isinstance(found, Refused) or len(found.xy) != 1:
            return Refused("a point is not one point inside the image")
        answer = cell_of(found, grid)
        reasoning = ""  # it would mention per-mille, but the answer gives a cell
    elif kind == "choice":
        choice = parse_choice(question, answer)
        if isinstance(choice, Refused):
            return Refused("the answer of a choice is not exactly one of its options")
        if len({_plain(option) for option in choice.options}) != len(choice.options):
            return Refused("two options of a choice are the same")
        answer = chr(ord("A") + choice.index)
    return Answered(kind, _KINDS[kind], question, answer, reasoning)


def cell_of(points: Points, grid: int) -> str:
    """Return the cell of the first point: `12 20`."""
    return " ".join(str(min(int(v * grid), grid - 1)) for v in points.xy[0])


def _leaks(answered: Answered) -> bool:
    """Return whether the question names its answer.

    That is allowed if it offers alternatives (`or`), and for yes and no.
    """
    question = answered.question
    if answered.type == "choice":
        for pattern in OPTION_PATTERNS:
            listed = dict(re.findall(pattern, question, re.M))
            right = listed.get(answered.answer, "")
            if right:
                question, said = re.sub(pattern, "", question, flags=re.M), _plain(right)
                break
        else:
            return False
    else:
        said = _plain(answered.answer)
    asked = f" {_plain(question)} "
    return bool(said) and f" {said} " in asked and " or " not in asked and said not in ("yes", "no")


def tidy(text: str) -> str:
    """Collapse spaces within lines and drop empty lines."""
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _plain(text: str) -> str:
    """Return lower-case words without punctuation, for comparing two texts."""
    return " ".join(re.findall(r"\w+", text.casefold()))
