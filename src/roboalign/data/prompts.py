"""The prompt texts: the one place where they are written.

Training, RL and serving build their questions here, so that a model never meets at test time a wording it was not
trained on. A reply carries its reasoning in `<think>` and its answer in `<answer>` (paper, section 3.2).
"""

from collections.abc import Sequence
from typing import Any, Literal

Mode = Literal["direct", "think"]
Form = Literal["words", "yes or no", "a letter", "a point", "actions"]
MODES: dict[Mode, str] = {"direct": "Answer directly with", "think": "Think first, then answer with"}


def task_prefix(instruction: str) -> str:
    """`open the drawer` -> `Task: open the drawer.`; shared by planning questions and the action question."""
    return f"Task: {instruction.strip().rstrip('.')}."


def question(text: str, mode: Mode, form: Form = "words") -> str:
    """A question with the sentence that says whether to reason and what the answer consists of.

    The form stands last, in both modes and under every question. A model that has never seen a reasoning before an
    action can then still tell, after one, that actions are asked for: the form decides, not what was reasoned.
    """
    return f"{text} {MODES[mode]} {form}."


def bare(text: str) -> str:
    """The question without that sentence, the same in both modes."""
    cut = max(text.rfind(lead) for lead in MODES.values())
    return text[:cut].strip() if cut >= 0 else text


def action_question(instruction: str, mode: Mode) -> str:
    """The question whose answer is an action chunk."""
    return question(f"{task_prefix(instruction)} What should the robot do next?", mode, "actions")


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
