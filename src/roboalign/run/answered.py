"""Read what the MLLMs of a run answered, and pair the arms that are compared."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from roboalign.core.files import read_jsonl
from roboalign.evaluate.token_metrics import compare_metrics
from roboalign.run.arms import ARMS, pairs

AnswerSet = Literal["tokens", "visited"]
"""The stage below `eval/`: held-out frames of demonstrations, or states that the SFT policy visits."""


def answering_arm(arm: str, arms: Iterable[str]) -> str | None:
    """Return the arm among `arms` whose answers are those of this arm's MLLM; None if none of them is.

    Each MLLM is asked once: under the arm that has a head trained on demonstrations, else under the
    first token policy. Online RL of tokens makes another MLLM. None is asked with a gray image, so
    the blind arm has no answers.
    """
    row = ARMS[arm]
    if row.blind:
        return None
    if row.tokens and row.online:
        return arm
    same = [
        other
        for name in arms
        if (other := ARMS[name]).backbone is row.backbone and not (other.blind or other.online)
    ]
    first = min(same, key=lambda other: other.tokens is not None, default=None)
    return None if first is None else first.name


def answered_pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs whose answers are compared: those of `pairs`, each under the arms that answer
    for them, without repetition."""
    asked = [(answering_arm(a, arms), answering_arm(b, arms)) for a, b in pairs(arms)]
    return list(dict.fromkeys((a, b) for a, b in asked if a and b and a != b))


def answers_of(
    run_dir: Path, seeds: Iterable[int], arm: str, asked: AnswerSet = "tokens"
) -> list[dict[str, Any]]:
    """Return the records of an arm over these training seeds; [] if it was not asked."""
    return [
        row
        for seed in seeds
        for row in read_jsonl(run_dir / f"seed-{seed}" / "eval" / asked / arm / "answers.jsonl")
    ]


def compared_answers(
    arms: Sequence[str], answers: Mapping[str, Sequence[dict[str, Any]]]
) -> list[Mapping[str, Any]]:
    """Return the paired differences between the arms that answered, with "before" and "after"."""
    return [
        {"before": a, "after": b, **compare_metrics(answers[a], answers[b])}
        for a, b in answered_pairs(arms)
        if answers[a] and answers[b]
    ]
