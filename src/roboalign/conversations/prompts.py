"""The parts of a prompt that every style shares; `styles/` holds the styles.

Training, RL and serving build their questions from one style, so that a model never meets a wording
at test time that it was not trained on.
"""

from collections.abc import Sequence
from typing import Literal

from roboalign.core.errors import RoboAlignError
from roboalign.mllm.placement import IMAGE_MARK

Mode = Literal["direct", "think"]
MODES: tuple[Mode, ...] = ("direct", "think")
NEXT_STEP = (
    "What should the robot do next?",
    "What is the next movement?",
    "How does the robot go on?",
)
ACTIONS = "<ACTION_START>"


def task_prefix(instruction: str) -> str:
    """Return the prefix shared by planning questions and the action question.

    For example, `open the drawer` -> `Task: open the drawer.` Raises RoboAlignError if the
    instruction spells the marker of an image.
    """
    if IMAGE_MARK in instruction:
        raise RoboAlignError(
            f"the instruction {instruction!r} spells {IMAGE_MARK}, where an image would be shown",
            where="instruction",
            fix="reword it",
        )
    return f"Task: {instruction.strip().rstrip('.')}."


def next_step(instruction: str, wording: int = 0) -> str:
    """Return the question about the next movement, the same for every form of answer.

    The answer may be words, a point, a letter or actions; the label alone says which. If the
    questions differed, a small model would read that difference and not the label.
    """
    return f"{task_prefix(instruction)} {NEXT_STEP[wording]}"


def action_answer(fast: Sequence[int]) -> str:
    """Return FAST ids as text: `<ACTION_START><FAST_3>...<ACTION_END>`.

    It equals `ActionVocabulary.text`, but is known before any MLLM is chosen. A mixture can thus be
    built first, and the tiny model's tokenizer trained on it.
    """
    return "<ACTION_START>" + "".join(f"<FAST_{i}>" for i in fast) + "<ACTION_END>"
