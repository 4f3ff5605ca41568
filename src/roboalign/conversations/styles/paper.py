"""The style `paper`, for pretrained models: questions and answers as the world writes them.

A question and its answer from a source stay as they are. An action is asked for plainly and
answered by its block alone. Where reasoning is wanted, the question spells out the form of the
reply, as EasyR1's `r1v.jinja` does, in training data and in RL alike.

The paper does not print its prompts; the wordings are ours.
"""

from dataclasses import dataclass
from typing import ClassVar

from roboalign.conversations.prompts import ACTIONS, Mode, task_prefix
from roboalign.conversations.reply import ReplyForm, write_tagged
from roboalign.conversations.styles.base import PromptStyle, StyleName

THINK_REQUEST = (
    "Think before you answer. Write your reasoning between <think> and </think>, and then the "
    "final answer between <answer> and </answer>: "
    "<think> reasoning </think><answer> final answer </answer>"
)
ACTION_REQUESTS = (
    "Predict the robot's next actions.",
    "Which actions should the robot take next?",
    "Give the next actions of the robot.",
)
_FORMS = {
    "letter": "Answer with the letter of the right option.",
    "point": "Answer with the column and the row of the point.",
    "trace": "Answer with the column and the row of each point of the gripper's path.",
    "movement": "Answer with the movement of the gripper.",
    "sideways": "Answer left, right or stay.",
    "depth": "Answer back, forward or stay.",
    "vertical": "Answer down, up or stay.",
    "fingers": "Answer with what the fingers do.",
}
"""Of generated questions, by label: what to answer with, where the question alone leaves it open."""


@dataclass(frozen=True)
class Paper(PromptStyle):
    """`What is the man holding?` -> `Umbrella`"""

    name: ClassVar[StyleName] = "paper"
    verbatim: ClassVar[bool] = True
    requests: ClassVar[tuple[str, ...]] = (THINK_REQUEST,)

    def question(self, text: str, mode: Mode, label: str, *, lead: bool = False) -> str:
        """Return the question, then what to answer with, then the request to think, a line each."""
        return self.asked("\n".join(filter(None, (text, _FORMS.get(label)))), mode, label)

    def bare(self, question: str) -> str:
        """Return the question without the request to think."""
        return question.removesuffix(f"\n{THINK_REQUEST}")

    def asked(self, question: str, mode: Mode, label: str) -> str:
        bare = self.bare(question)
        return f"{bare}\n{THINK_REQUEST}" if mode == "think" else bare

    def action_question(
        self, instruction: str, mode: Mode, wording: int = 0, *, lead: bool = False
    ) -> str:
        text = f"{task_prefix(instruction)} {ACTION_REQUESTS[wording]}"
        return self.question(text, mode, ACTIONS)

    def reply(self, answer: str, mode: Mode, label: str, reasoning: str | None = None) -> str:
        return write_tagged(answer, reasoning) if mode == "think" else answer

    def opening(self, label: str) -> str:
        return label if label == ACTIONS else ""

    def answer_text(self, said: str, label: str) -> str | None:
        return said.strip()

    def form(self, mode: Mode) -> ReplyForm:
        return "tagged" if mode == "think" else "plain"
