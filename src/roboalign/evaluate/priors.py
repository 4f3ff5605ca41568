"""What can be answered without the image: the most frequent answers of the training split."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from roboalign.conversations.conversation import Conversation
from roboalign.conversations.styles.base import PromptStyle


@dataclass(frozen=True)
class Priors:
    """Hold the most frequent training answer for each question type and for each (type, question
    text)."""

    by_type: dict[str, str]
    by_text: dict[tuple[str, str], str]

    def of_type(self, kind: str) -> str | None:
        """Return the prior of the type; None if the type was never trained on."""
        return self.by_type.get(kind)

    def of_text(self, text: str, kind: str) -> str | None:
        """Return the prior given the wording, or the type's prior if this wording was never trained
        on."""
        return self.by_text.get((kind, text), self.by_type.get(kind))


def language_priors(training: Sequence[Conversation], style: PromptStyle) -> Priors:
    """Compute what can be answered without the image, from the training split. The first answer
    seen wins a tie."""
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    by_text: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for conversation in training:
        for turn in conversation.turns:
            if turn.kind != "action":
                by_type[turn.type][turn.expected] += 1
                by_text[turn.type, style.bare(turn.question)][turn.expected] += 1
    first = {kind: counter.most_common(1)[0][0] for kind, counter in by_type.items()}
    return Priors(first, {key: counter.most_common(1)[0][0] for key, counter in by_text.items()})
