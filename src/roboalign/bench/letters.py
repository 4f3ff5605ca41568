"""Read the letter of an option, a yes or no, and a number from an answer in words.

A rule is part of a benchmark's number: the same reply is right under one and wrong under another.
Each rule here has the name under which results record it, and says whose it is. All take the answer
without its reasoning (`asking.spoken`), and return "" where they find nothing.
"""

import re
from collections.abc import Callable
from typing import Literal

LetterRule = Literal["ranked", "stated", "leading", "first-word"]
YesNoRule = Literal["starts", "last-line", "answer-line"]

_PHRASES = (
    "the answer is",
    "answer is",
    "the correct answer is",
    "correct answer is",
    "the best answer is",
    "best answer is",
    "the correct option is",
    "correct option is",
    "the best option is",
    "best option is",
    "the choice is",
    "choice is",
    "the correct choice is",
    "correct choice is",
    "i choose",
    "i select",
    "i pick",
    "my answer is",
    "my choice is",
    "옵션",
    "정답은",
    "답은",
    "답:",
    "答案是",
    "答案为",
    "选",
    "答えは",
)
_MARKS = ",.!?;:'\""
_PHRASE_RANK, _END_RANK, _START_RANK = 7, 9, 10


def ranked_letter(text: str, letters: str) -> str:
    """Return the last letter in the most explicit form that occurs (lmms-eval 0.7.3, `mcq_extract`).

    Forms from most to least explicit: the reply starts with the letter alone, ends with it, has it
    after a phrase such as "the answer is", or as `(B)`, `B.`, `B:`, `B)`, `B `; else anywhere.
    """
    for mark in _MARKS:
        text = text.strip().strip(mark) if mark == _MARKS[0] else text.strip(mark)
    said = f" {text} "
    bare = said.strip()
    if not bare:
        return ""
    found: list[tuple[int, int, str]] = []
    for letter in letters:
        forms = (f"{letter} ", f"{letter})", f"{letter}:", f"{letter}.", f"({letter})")
        for rank, form in enumerate(forms, start=2):
            if (at := said.rfind(form)) >= 0:
                found.append((rank, at, letter))
        for phrase in _PHRASES:
            at = said.lower().find(phrase)
            if at >= 0 and (place := said.find(letter, at + len(phrase))) >= 0:
                found.append((_PHRASE_RANK, place, letter))
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((_START_RANK, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((_END_RANK, len(said) - 1, letter))
    if not found:
        found = [(0, said.rfind(letter), letter) for letter in letters if letter in said]
    return max(found, key=lambda one: one[:2])[2] if found else ""


def stated_letter(text: str, letters: str) -> str:
    """Return a letter that is nearly the whole first line, is stated, is in parentheses, or leads.

    In this order (lmms-eval 0.7.3, `blink`); of several statements or parentheses, the last.
    """
    text = text.strip()
    one = f"[{re.escape(letters)}]"
    line = text.split("\n", 1)[0].strip()
    if len(line) <= 4 and (alone := re.match(rf"^\(?({one})\)?[\.\s:,)]*$", line, re.IGNORECASE)):
        return alone[1].upper()
    statement = rf"answers?(?:\s+is)?\s*[:\-]?\s*\(?({one})\)?(?![A-Za-z])"
    if stated := re.findall(statement, text, re.IGNORECASE):
        return str(stated[-1]).upper()
    if enclosed := re.findall(rf"\(({one})\)", text):
        return str(enclosed[-1])
    leading = re.match(rf"[\(\s]*({one})", text, re.IGNORECASE)
    return leading[1].upper() if leading else ""


def leading_letter(text: str, letters: str) -> str:
    """Return the first letter of the reply, whatever it is: T for "The answer is B".

    lmms-eval 0.7.3, `embspatial` and `cv_bench`. A reply that reasons loses under this rule.
    """
    leading = re.match(r"[\(\s]*([A-Z])", text.strip(), re.IGNORECASE)
    return leading[1].upper() if leading else ""


def first_word(text: str, letters: str) -> str:
    """Return the first word without punctuation, in capitals (lmms-eval 0.7.3, `sat`)."""
    return re.sub(r"[^\w\s]", "", text).strip().split(" ")[0].upper()


LETTER_RULES: dict[LetterRule, Callable[[str, str], str]] = {
    "ranked": ranked_letter,
    "stated": stated_letter,
    "leading": leading_letter,
    "first-word": first_word,
}


def yes_or_no(text: str, rule: YesNoRule) -> str:
    """Return "yes", "no" or "".

    `starts`: the reply starts with it (RoboSpatial-Eval's script; "nothing" starts with no).
    `last-line`: the last line holds one and not the other, in any word (lmms-eval 0.7.3).
    `answer-line`: what follows the last line's "Answer:" starts with it (FlagEvalMM).
    """
    said = text.strip().lower()
    if rule != "starts":
        said = said.split("\n")[-1]
    if rule == "last-line":
        held = [word for word in ("yes", "no") if word in said]
        return held[0] if len(held) == 1 else ""
    if rule == "answer-line":
        said = re.split(r"answer\s*(?:is|:)?", said)[-1].strip(" :*")
    return next((word for word in ("yes", "no") if said.startswith(word)), "")


def last_number(text: str) -> float | None:
    """Return the last number of a text, for example a judge's score; None without one."""
    found = re.findall(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w]|\.\d)", text)
    return float(found[-1]) if found else None
