"""What a prompt style is: one object that writes questions and replies and reads replies."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from roboalign.conversations.prompts import Mode
from roboalign.conversations.reply import ParsedReply, ReplyForm, read_words

StyleName = Literal["labelled", "paper"]
DEFAULT_STYLE: StyleName = "labelled"
"""The style of recipes, mixtures and models that name none."""


@dataclass(frozen=True)
class PromptStyle(ABC):
    """How questions are asked and replies are written, in both modes.

    A question of any kind (general, embodied, reasoning, action) has a mode and a label: what its
    answer consists of (`letter`, `point`, ..., `<ACTION_START>` for actions; `answer` for the free
    text of a source).
    """

    name: ClassVar[StyleName]
    verbatim: ClassVar[bool]
    """Answers of question-answering sources stay as they are written there."""
    requests: ClassVar[tuple[str, ...]]
    """Texts that only this style may write into a question."""

    @abstractmethod
    def question(self, text: str, mode: Mode, label: str, *, lead: bool = False) -> str:
        """Return the question of a turn. `lead` puts a request first, where a style has one."""

    @abstractmethod
    def bare(self, question: str) -> str:
        """Return a question without what says its mode; it is the same in both modes."""

    @abstractmethod
    def asked(self, question: str, mode: Mode, label: str) -> str:
        """Return a question of this style in another mode."""

    @abstractmethod
    def action_question(
        self, instruction: str, mode: Mode, wording: int = 0, *, lead: bool = False
    ) -> str:
        """Return the question whose answer is an action chunk, in one of `len(NEXT_STEP)` wordings."""

    @abstractmethod
    def reply(self, answer: str, mode: Mode, label: str, reasoning: str | None = None) -> str:
        """Return the reply of a turn; a reasoning belongs to the mode `think` alone."""

    @abstractmethod
    def opening(self, label: str) -> str:
        """Return the text with which every answer under `label` opens; "" if there is none."""

    @abstractmethod
    def answer_text(self, said: str, label: str) -> str | None:
        """Return what an answer says, without its opening; None if it has another one."""

    @abstractmethod
    def form(self, mode: Mode) -> ReplyForm:
        """Return the form of the reply to a question asked in `mode`."""

    def parse(self, text: str, mode: Mode, label: str, special: Sequence[str] = ()) -> ParsedReply:
        """Read a decoded reply in words, without its end token; `special` is as in `read_words`."""
        found = read_words(text, self.form(mode), special)
        answer = None if found.answer is None else self.answer_text(found.answer, label)
        if found.well_formed and not answer:
            other = "another label than the question's"
            reason = other if answer is None else "nothing behind the label"
            return ParsedReply(False, "", answer, reason)
        return replace(found, answer=answer)
