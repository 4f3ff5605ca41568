"""The style `labelled`, for models of a few million parameters.

Every question says whether to reason and names the label with which its answer opens. Every reply
has tags, and empty ones where nothing is reasoned. So a small model that has never seen reasoning
before an action can still open an action after reasoning.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from roboalign.conversations.prompts import ACTIONS, Mode, next_step
from roboalign.conversations.reply import ReplyForm, write_tagged
from roboalign.conversations.styles.base import PromptStyle, StyleName

_REQUESTS: dict[Mode, str] = {
    "direct": "Answer directly as",
    "think": "Think first, then answer as",
}
_LAST_OPTION = re.compile(r"\n[ \t]*(?:\([A-Z]\)|[A-Z][.)])[ \t]+\S[^\n]*$")
_REQUEST = re.compile(r"\s*(?:" + "|".join(map(re.escape, _REQUESTS.values())) + r') "[^"]*"\.\s*')


@dataclass(frozen=True)
class Labelled(PromptStyle):
    """`Answer directly as "letter".` -> `<think></think><answer>letter B</answer>`"""

    name: ClassVar[StyleName] = "labelled"
    verbatim: ClassVar[bool] = False
    requests: ClassVar[tuple[str, ...]] = tuple(_REQUESTS.values())

    def question(self, text: str, mode: Mode, label: str, *, lead: bool = False) -> str:
        """Return a question with the request for its mode and label.

        After a list of options (`B. dog`) the request is on its own line; otherwise it would read
        as part of the last option. With `lead` the request comes first. In training its position
        varies, because a small model would otherwise look for it at a fixed distance, which
        reasoning changes.
        """
        request = f'{_REQUESTS[mode]} "{label}".'
        if lead:
            return f"{request} {text}"
        space = "\n" if _LAST_OPTION.search(text) else " "
        return f"{text}{space}{request}"

    def bare(self, question: str) -> str:
        """Return the question without the request."""
        return _REQUEST.sub("", question)

    def asked(self, question: str, mode: Mode, label: str) -> str:
        return self.question(self.bare(question), mode, label)

    def action_question(
        self, instruction: str, mode: Mode, wording: int = 0, *, lead: bool = False
    ) -> str:
        return self.question(next_step(instruction, wording), mode, ACTIONS, lead=lead)

    def reply(self, answer: str, mode: Mode, label: str, reasoning: str | None = None) -> str:
        """Return a reply with tags in both modes: an action follows `</think>` in training too.

        Otherwise a small model would learn that words, never actions, follow reasoning. Nothing
        separates a label from its answer: a small model that has always written a colon after a
        label writes one after <ACTION_START> too, following reasoning.
        """
        return write_tagged(answer if label == ACTIONS else f"{label} {answer}", reasoning)

    def opening(self, label: str) -> str:
        return label

    def answer_text(self, said: str, label: str) -> str | None:
        """Accepts a colon after the label."""
        rest = said.removeprefix(label)
        if rest == said or not rest.startswith((" ", ":")):
            return None
        return rest.removeprefix(":").strip()

    def form(self, mode: Mode) -> ReplyForm:
        return "tagged"
