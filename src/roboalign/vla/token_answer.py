"""Hold answers of action tokens, and choose one of several to an observation."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from roboalign.mllm.continuation import continue_from
from roboalign.mllm.encode import Encoded, collate
from roboalign.mllm.load import Mllm
from roboalign.vla.token_writer import Choose


@dataclass(frozen=True)
class TokenAnswer:
    """One sampled answer to one observation."""

    ids: list[int]
    """What the model wrote, up to the end of the action block; a closed reasoning is followed by
    the text that closed it."""
    chunk: Float[np.ndarray, "horizon action"] | None
    """float32, raw units; None: the answer is no chunk."""
    reason: str
    """Why the answer is no chunk, in words few enough to be counted, or "ok"."""
    generated: int
    """Tokens that the model computed for it."""
    closed: bool
    """Whether the reasoning had used up its tokens and was closed."""
    logprob: float = 0.0
    """Log-probability of the tokens that were sampled, at the policy's temperature."""

    def counts(self) -> Counter[str]:
        """Return what this decision adds to the policy's counts."""
        counts = Counter(decisions=1, tokens=self.generated, closed=int(self.closed))
        counts["holds"] = int(self.chunk is None)
        if self.chunk is None:
            counts[f"hold: {self.reason}"] = 1
        return counts


def choose_chunk(
    answers: Sequence[TokenAnswer],
    how: Choose,
    gripper: slice,
    confidence: Callable[[Sequence[Sequence[int]]], list[float]],
) -> Float[np.ndarray, "horizon action"] | None:
    """Return the chunk to do, None if no answer is a chunk.

    `gripper` are the dimensions of the gripper's command; `confidence` gives the scores of answers
    for `mg-select`.
    """
    usable = [one for one in answers if one.chunk is not None]
    chunks = [one.chunk for one in usable if one.chunk is not None]
    if not chunks:
        return None
    if how == "median":
        return median_chunk(np.stack(chunks), gripper)
    if len(chunks) == 1:
        return chunks[0]
    if how == "likelihood":
        scores = [one.logprob for one in usable]
    else:
        scores = confidence([one.ids for one in usable])
    return chunks[int(np.argmax(scores))]


def counts_of_answers(answers: Sequence[TokenAnswer], *, held: bool) -> Mapping[str, int]:
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
    mllm: Mllm, full: Encoded, blank: Encoded, answers: Sequence[Sequence[int]], start_id: int
) -> list[float]:
    """Return MG-Select's score of each answer: how much the instruction changes its action tokens.

    It is the sum over the tokens of the action block, its end included, of KL(Q || P). P is what
    the model predicts there after the prompt `full`, Q after `blank`, which lacks the instruction
    (arXiv 2510.05681, which also trains with instructions left out; a model that was not has seen
    no empty instruction). `start_id` is the token that opens the block.
    """
    tails = [len(ids) - 1 - list(ids).index(start_id) for ids in answers]
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
