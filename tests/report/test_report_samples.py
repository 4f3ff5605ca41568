"""Samples are chosen by rank: the most improved, the most harmed and what lies between."""

import pytest

from roboalign.conversations.conversation import Conversation, Turn
from roboalign.report.samples import even_ranks, frames_side_by_side


def conversation(number: int, kind: str, mode: str) -> Conversation:
    turn = Turn(kind, kind, mode, f"question {number}", "reply", f"answer {number}")
    return Conversation(f"{kind}-{number}-{mode}", "episode-1", number, "reach", (b"png",), (turn,))


def record(number: int, probe: str, kind: str, score: float, arm: str) -> dict:
    return {
        "id": f"{kind}-{number}",
        "probe": probe,
        "mode": "think",
        "prefix": score,
        "score": score,
        "text": f"{arm} on {number}",
    }


def test_both_ends_of_the_change_are_shown():
    heldout = [
        conversation(i, kind, mode)
        for i in range(9)
        for kind in ("action", "reasoning")
        for mode in ("direct", "think")
    ]
    before = [
        record(i, probe, kind, 0.5, "sft")
        for i in range(9)
        for probe, kind in (("action", "action"), ("vqa", "reasoning"))
    ]
    after = [record(i, "action", "action", i / 8, "rl") for i in range(9)] + [
        record(3, "vqa", "reasoning", 1.0, "rl")
    ]
    samples = frames_side_by_side(("sft", before), ("rl", after), heldout, actions=3, questions=2)
    assert [sample.question for sample in samples] == [
        "question 8",
        "question 4",
        "question 0",
        "question 3",
    ]
    assert samples[0].scores == {"sft": 0.5, "rl": 1.0}
    assert samples[2].scores == {"sft": 0.5, "rl": 0.0}
    assert samples[0].answers == {"sft": "sft on 8", "rl": "rl on 8"}
    assert samples[0].image == b"png"


@pytest.mark.parametrize(
    ("n", "count", "expected"), [(5, 2, "ae"), (5, 3, "ace"), (2, 6, "ab"), (5, 1, "c"), (0, 3, "")]
)
def test_even_ranks(n, count, expected):
    assert even_ranks("abcde"[:n], count) == list(expected)
