"""The prompt texts: the one place where they are written.

Training, RL and serving build their questions here, so that a model never meets at test time a wording it was not
trained on. A reply carries its reasoning in `<think>` and its answer in `<answer>` (paper, section 3.2).
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
    """`open the drawer` -> `Task: open the drawer.`; shared by planning questions and the action question."""
    return f"Task: {instruction.strip().rstrip('.')}."


def question(text: str, mode: Mode, label: str, *, lead: bool = False) -> str:
    """A question with the request that says whether to reason and with which label the answer opens.

    Every answer opens with the label that its question names (`answer`), an action chunk with <ACTION_START>. How an
    answer opens is thus told by the question alone, reasoned about or not, and a model that has never seen a reasoning
    before an action can still open one after a reasoning. Behind a list of options (`B. dog`) the request has a line
    of its own: it would read as part of the last one. With `lead` the request comes first: in training its place
    varies, or a small model would look for it at a fixed distance, where a reasoning moves it away.
    """
    request = f'{MODES[mode]} "{label}".'
    if lead:
        return f"{request} {text}"
    space = "\n" if _LAST_OPTION.search(text) else " "
    return f"{text}{space}{request}"


def bare(text: str) -> str:
    """The question without that request, the same in both modes."""
    return _REQUEST.sub("", text)


def next_step(instruction: str, wording: int = 0) -> str:
    """What is asked about the next movement, whether the answer is in words, a point, a letter or actions.

    The label alone says which. Were the question to differ, a small model would read that and not the label.
    """
    return f"{task_prefix(instruction)} {NEXT_STEP[wording]}"


def action_question(instruction: str, mode: Mode, wording: int = 0, *, lead: bool = False) -> str:
    """The question whose answer is an action chunk."""
    return question(next_step(instruction, wording), mode, ACTIONS, lead=lead)


def answer(text: str, label: str) -> str:
    """`B` under the label `letter` -> `letter B`.

    Nothing stands between them: a small model that has always written a colon behind a label writes one behind
    <ACTION_START> too, after a reasoning.
    """
    return f"{label} {text}"


def answer_text(answered: str, label: str) -> str | None:
    """The inverse of `answer`; a colon behind the label is let pass. None where it does not open with this label."""
    rest = answered.removeprefix(label)
    if rest == answered or not rest.startswith((" ", ":")):
        return None
    return rest.removeprefix(":").strip()


def action_answer(fast: Sequence[int]) -> str:
    """FAST ids as text: `<ACTION_START><FAST_3>...<ACTION_END>`.

    The same as `ActionVocabulary.text`, but known before any MLLM is chosen: a mixture can be built first, and the tiny
    model's tokenizer trained on it.
    """
    return "<ACTION_START>" + "".join(f"<FAST_{i}>" for i in fast) + "<ACTION_END>"


def reply(answer: str, reasoning: str | None = None) -> str:
    """`<think>..</think><answer>..</answer>`; a direct reply has an empty reasoning, as Qwen3 writes one.

    So an action, which no sample ever reasons about, stands behind `</think>` in training too: were it not so, a small
    model would learn that words, never actions, follow a reasoning.
    """
    return f"<think>{reasoning or ''}</think><answer>{answer}</answer>"


def user_message(text: str, *, image: bool) -> dict[str, Any]:
    """One user turn in the Hugging Face messages form; the image, where there is one, comes first."""
    content: list[dict[str, str]] = [{"type": "image"}] if image else []
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def assistant_message(text: str) -> dict[str, Any]:
    """One assistant turn in the Hugging Face messages form."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}
