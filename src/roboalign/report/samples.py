"""Show what two MLLMs said about the same held-out frames, chosen by rank and not by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

from roboalign.conversations.conversation import Conversation
from roboalign.evaluate.tokens import sample_id
from roboalign.report.summary import FrameSample


def frames_side_by_side(
    before: tuple[str, Sequence[Mapping[str, Any]]],
    after: tuple[str, Sequence[Mapping[str, Any]]],
    heldout: Sequence[Conversation],
    *,
    actions: int = 6,
    questions: int = 4,
) -> list[FrameSample]:
    """Return reasoned answers of two arms to the same samples; each arm is (name, records of one
    training seed).

    Samples are at evenly spaced ranks of the change in score, the most improved first: `actions` of
    the action prompts (score: prefix accuracy), then `questions` of the questions.
    """
    conversations = {sample_id(c): c for c in heldout if c.turns[0].mode == "think"}
    chosen = []
    for probe, key, count in (("action", "prefix", actions), ("vqa", "score", questions)):
        first, second = (_reasoned(records, probe) for _, records in (before, after))
        shared = [sample for sample in first if sample in second and sample in conversations]
        shared.sort(key=lambda sample: second[sample][key] - first[sample][key], reverse=True)
        for sample in even_ranks(shared, count):
            answers = {before[0]: first[sample], after[0]: second[sample]}
            chosen.append(_sample(conversations[sample], answers, key))
    return chosen


def even_ranks(ordered: Sequence[str], count: int) -> list[str]:
    """Return `count` of the ordered items, evenly spread, both ends included; all of them if there
    are no more."""
    if len(ordered) <= count:
        return list(ordered)
    if count == 1:
        return [ordered[len(ordered) // 2]]
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]


def _reasoned(records: Sequence[Mapping[str, Any]], probe: str) -> dict[str, Mapping[str, Any]]:
    return {r["id"]: r for r in records if r["probe"] == probe and r["mode"] == "think"}


def _sample(
    conversation: Conversation, answers: Mapping[str, Mapping[str, Any]], key: str
) -> FrameSample:
    turn = conversation.turns[0]
    return FrameSample(
        question=turn.question,
        target=turn.expected,
        answers={arm: record["text"] for arm, record in answers.items()},
        scores={arm: float(record[key]) for arm, record in answers.items()},
        image=conversation.images[0] if conversation.images else b"",
        caption=f"{conversation.task}, {conversation.episode_id}, frame {conversation.frame}",
    )
