"""Define all prompt texts in one place.

Training, RL and serving build their questions here, so that a model never meets a wording at test
time that it was not trained on. A reply has its reasoning in `<think>` and its answer in `<answer>`
(paper, section 3.2).
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

Mode = Literal["direct", "think"]
MODES: dict[Mode, str] = {"direct": "Answer directly as", "think": "Think first, then answer as"}
NEXT_STEP = (
    "What should the robot do next?",
    "What is the next movement?",
    "How does the robot go on?",
)
ACTIONS = "<ACTION_START>"
_LAST_OPTION = re.compile(r"\n[ \t]*(?:\([A-Z]\)|[A-Z][.)])[ \t]+\S[^\n]*$")
_REQUEST = re.compile(r"\s*(?:" + "|".join(map(re.escape, MODES.values())) + r') "[^"]*"\.\s*')


def task_prefix(instruction: str) -> str:
    """Return the prefix shared by planning questions and the action question.

    For example, `open the drawer` -> `Task: open the drawer.`
    """
    return f"Task: {instruction.strip().rstrip('.')}."


def question(text: str, mode: Mode, label: str, *, lead: bool = False) -> str:
    """Return a question with the request for its mode and label.

    The request says whether to reason, and with which label the answer opens. Every answer opens
    with the label that its question names (`answer`), an action chunk with <ACTION_START>. The
    question alone thus determines how an answer opens, with or without reasoning. A model that has
    never seen reasoning before an action can therefore still open one after reasoning.

    After a list of options (`B. dog`) the request is on its own line; otherwise it would read as
    part of the last option. With `lead` the request comes first. In training its position varies,
    because a small model would otherwise look for it at a fixed distance, which reasoning changes.
    """
    request = f'{MODES[mode]} "{label}".'
    if lead:
        return f"{request} {text}"
    space = "\n" if _LAST_OPTION.search(text) else " "
    return f"{text}{space}{request}"


def bare(text: str) -> str:
    """Return the question without that request; it is the same in both modes."""
    return _REQUEST.sub("", text)


def next_step(instruction: str, wording: int = 0) -> str:
    """Return the question about the next movement, the same for every form of answer.

    The answer may be words, a point, a letter or actions; the label alone says which. If the
    questions differed, a small model would read that difference and not the label.
    """
    return f"{task_prefix(instruction)} {NEXT_STEP[wording]}"


def action_question(instruction: str, mode: Mode, wording: int = 0, *, lead: bool = False) -> str:
    """Return the question whose answer is an action chunk."""
    return question(next_step(instruction, wording), mode, ACTIONS, lead=lead)


def answer(text: str, label: str) -> str:
    """Return an answer with its label: `B` under the label `letter` -> `letter B`.

    Nothing separates the two. A small model that has always written a colon after a label writes
    one after <ACTION_START> too, following reasoning.
    """
    return f"{label} {text}"


def answer_text(answered: str, label: str) -> str | None:
    """Invert `answer`, accepting a colon after the label; None if the label does not match."""
    rest = answered.removeprefix(label)
    if rest == answered or not rest.startswith((" ", ":")):
        return None
    return rest.removeprefix(":").strip()


def action_answer(fast: Sequence[int]) -> str:
    """Return FAST ids as text: `<ACTION_START><FAST_3>...<ACTION_END>`.

    It equals `ActionVocabulary.text`, but is known before any MLLM is chosen. A mixture can thus be
    built first, and the tiny model's tokenizer trained on it.
    """
    return "<ACTION_START>" + "".join(f"<FAST_{i}>" for i in fast) + "<ACTION_END>"


def reply(answer: str, reasoning: str | None = None) -> str:
    """Return `<think>..</think><answer>..</answer>`.

    A direct reply has empty reasoning, as Qwen3 writes one. An action, for which no sample ever has
    reasoning, therefore follows `</think>` in training too. Otherwise a small model would learn
    that words, never actions, follow reasoning.
    """
    return f"<think>{reasoning or ''}</think><answer>{answer}</answer>"


def user_message(text: str, *, image: bool) -> dict[str, Any]:
    """Return one user turn in the Hugging Face messages form; any image comes first."""
    content: list[dict[str, str]] = [{"type": "image"}] if image else []
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def assistant_message(text: str) -> dict[str, Any]:
    """Return one assistant turn in the Hugging Face messages form."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}
