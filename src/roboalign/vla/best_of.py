"""Spend more on a decision: several answers, of which one is done, or several noises of a head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float

from roboalign.conversations.styles.registry import style_of
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.continuation import continue_from
from roboalign.mllm.encode import Encoded, collate, encode_prompt
from roboalign.mllm.load import Mllm
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy_input import NoiseKey, ObservationLike, shown_images
from roboalign.vla.token_policy import TokenAnswer, TokenPolicy

Choose = Literal["median", "likelihood", "mg-select"]
"""How one of several answers is chosen."""


class Decides(Protocol):
    """Whatever turns observations into chunks and counts its decisions."""

    def act_and_count(
        self, observations: Sequence[ObservationLike], noise_keys: Sequence[NoiseKey]
    ) -> tuple[np.ndarray, list[Mapping[str, int]]]:
        """Return chunks [k, H, A] in raw units, and what each decision counts."""
        ...


@dataclass
class BestOf:
    """Sample several answers of a token policy, which share a prefill, and do one."""

    policy: TokenPolicy
    answers: int
    choose: Choose

    def __post_init__(self) -> None:
        """Raise RoboAlignError if all answers would be the same."""
        if self.answers > 1 and self.policy.config.temperature == 0:
            raise RoboAlignError(
                f"{self.answers} greedy answers are one answer",
                where="temperature",
                fix="give a temperature above 0",
            )

    def act_and_count(
        self, observations: Sequence[ObservationLike], noise_keys: Sequence[NoiseKey]
    ) -> tuple[np.ndarray, list[Mapping[str, int]]]:
        """Return the chosen chunks. A decision without a single chunk among its answers is a
        hold."""
        rows = self.policy.answers(observations, noise_keys, samples=self.answers)
        chosen = [self.pick(seen, row) for seen, row in zip(observations, rows, strict=True)]
        chunks = self.policy.settle(observations, noise_keys, chosen)
        counts = [_counts(row, held=chunk is None) for chunk, row in zip(chosen, rows, strict=True)]
        return chunks, counts

    def pick(
        self, seen: ObservationLike, answers: Sequence[TokenAnswer]
    ) -> Float[np.ndarray, "horizon action"] | None:
        """Return the chunk to do, None if no answer is a chunk."""
        usable = [one for one in answers if one.chunk is not None]
        chunks = [one.chunk for one in usable if one.chunk is not None]
        if not chunks:
            return None
        if self.choose == "median":
            gripper = self.policy.hold.space.gripper_part
            return median_chunk(np.stack(chunks), gripper)
        if len(chunks) == 1:
            return chunks[0]
        if self.choose == "likelihood":
            scores = [one.logprob for one in usable]
        else:
            scores = confidences(self.policy, seen, [one.ids for one in usable])
        return chunks[int(np.argmax(scores))]


@dataclass
class Medoid:
    """Sample several noises of a head's flow, and do the chunk that is closest to all others."""

    policy: HeadPolicy
    noises: int

    def act_and_count(
        self, observations: Sequence[ObservationLike], noise_keys: Sequence[NoiseKey]
    ) -> tuple[np.ndarray, list[Mapping[str, int]]]:
        """Return the chosen chunks; the backbone is read once for all noises."""
        chunks, counts = self.policy.answers(observations, noise_keys, self.noises)
        normalized = [self.policy.normalized(row, one) for row, one in zip(chunks, observations)]
        return np.stack([row[medoid_of(one)] for row, one in zip(chunks, normalized)]), counts


@dataclass
class Redrawn:
    """The same policy under other draws: `draw` 0 is its own."""

    policy: Decides
    draw: int

    def act_and_count(
        self, observations: Sequence[ObservationLike], noise_keys: Sequence[NoiseKey]
    ) -> tuple[np.ndarray, list[Mapping[str, int]]]:
        """Return the chunks of the keys of this draw."""
        return self.policy.act_and_count(
            observations, [redrawn_key(key, self.draw) for key in noise_keys]
        )


@dataclass
class Candidates:
    """All that could be chosen among, for an oracle that knows the best one."""

    policy: TokenPolicy | HeadPolicy
    size: int

    def act_and_count(
        self, observations: Sequence[ObservationLike], noise_keys: Sequence[NoiseKey]
    ) -> tuple[np.ndarray, list[Mapping[str, int]]]:
        """Return [1, candidates, H, A] for one observation: every chunk among its answers, or the
        hold if there is none."""
        policy = self.policy
        if isinstance(policy, HeadPolicy):
            return policy.answers(observations, noise_keys, self.size)
        [row] = policy.answers(observations, noise_keys, samples=self.size)
        chunks = [one.chunk for one in row if one.chunk is not None]
        if not chunks:
            chunks = list(policy.settle(observations, noise_keys, [None]))
        return np.stack(chunks)[None], [_counts(row, held=all(o.chunk is None for o in row))]


def redrawn_key(key: NoiseKey, draw: int) -> NoiseKey:
    """Return the key of another draw; its last part is still the step, the others still name one
    episode."""
    return key if draw == 0 else (*key[:-1], f"draw {draw}", key[-1])


def _counts(answers: Sequence[TokenAnswer], *, held: bool) -> Mapping[str, int]:
    """Return what a decision among these answers counts."""
    return {
        "decisions": 1,
        "holds": int(held),
        "tokens": sum(one.generated for one in answers),
        "closed": sum(one.closed for one in answers),
        "unreadable": sum(one.chunk is None for one in answers),
    }


def median_chunk(
    chunks: Float[np.ndarray, "answers horizon action"], gripper: slice
) -> Float[np.ndarray, "horizon action"]:
    """Return the median of each number. Of the gripper's it is a value that an answer has: what
    most say, and the lower one in a tie, since half open is no command."""
    middle = np.median(chunks, axis=0)
    middle[:, gripper] = np.sort(chunks[..., gripper], axis=0)[(len(chunks) - 1) // 2]
    return middle.astype(chunks.dtype)


def medoid_of(chunks: Float[np.ndarray, "noises horizon action"]) -> int:
    """Return the index of the chunk with the least sum of L1 distances to all others; the first in
    a tie."""
    distances = np.abs(chunks[:, None] - chunks[None]).sum(axis=(1, 2, 3))
    return int(np.argmin(distances))


def confidences(
    policy: TokenPolicy, seen: ObservationLike, answers: Sequence[Sequence[int]]
) -> list[float]:
    """Return MG-Select's score of each answer: how much the instruction changes its action tokens.

    It is the sum over the tokens of the action block, its end included, of KL(Q || P). P is what
    the model predicts there, Q the same without the instruction, after the same tokens (arXiv
    2510.05681, which also trains with instructions left out; a model that was not has seen no
    empty instruction).
    """
    mllm, style, mode = policy.mllm, style_of(policy.view.prompts), policy.view.mode
    images = shown_images(seen.images, policy.cameras, side_by_side=False)
    full, blank = (
        encode_prompt(mllm, style.action_question(text, mode), images)
        for text in (seen.instruction, "")
    )
    start = policy.vocabulary.start_id
    tails = [len(ids) - 1 - list(ids).index(start) for ids in answers]
    with_it, without = (
        _tail_logprobs(mllm, [continue_from(prompt, ids) for ids in answers], tails)
        for prompt in (full, blank)
    )
    return [
        float((q.exp() * (q - p)).sum().clamp(min=0)) for p, q in zip(with_it, without, strict=True)
    ]


@torch.no_grad()
def _tail_logprobs(mllm: Mllm, rows: Sequence[Encoded], tails: Sequence[int]) -> list[torch.Tensor]:
    """Return of each row the log-probabilities float32 [tail, V] that predict its last `tail`
    tokens."""
    batch = collate(mllm, rows, padding_side="left")
    del batch["labels"]
    keep = max(tails) + 1
    training = mllm.model.training
    mllm.model.eval()
    logits = mllm.model(
        **{name: value.to(mllm.device) for name, value in batch.items()},
        use_cache=False,
        logits_to_keep=keep,
    ).logits
    mllm.model.train(training)
    logprobs = logits.float().log_softmax(-1).cpu()
    return [row[keep - 1 - tail : keep - 1] for row, tail in zip(logprobs, tails, strict=True)]
