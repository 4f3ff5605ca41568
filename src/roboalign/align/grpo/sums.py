"""Accumulate statistics of GRPO's updates: sums over answer tokens, whose means go to
metrics.jsonl."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from roboalign.align.grpo.rollout import Batch

MEANS = ("kl", "entropy", "ratio", "clipped", "drift")


class UpdateSums:
    """Sums over the micro-batches since the last record; `drift` is |log ratio|."""

    def __init__(self, clip_low: float, clip_high: float) -> None:
        self.clip_low, self.clip_high = clip_low, clip_high
        self.sums: dict[str, float] = {}

    def add(
        self,
        batch: Batch,
        logp: Float[Tensor, "answers tokens"],
        entropy: Float[Tensor, "answers tokens"],
        kl: Float[Tensor, "answers tokens"],
        replayed: Float[Tensor, ""] | None,
    ) -> None:
        """Add a micro-batch; `replayed` is its replay loss."""
        kept, sums = batch.mask.bool(), self.sums
        ratio = torch.exp(logp - batch.old_logp)
        positive = batch.advantages[:, None] > 0
        clipped = (positive & (ratio > 1 + self.clip_high)) | (
            ~positive & (ratio < 1 - self.clip_low)
        )
        values = {
            "kl": kl,
            "entropy": entropy,
            "ratio": ratio,
            "clipped": clipped.float(),
            "drift": (logp - batch.old_logp).abs(),
        }
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value[kept].sum())
        sums["tokens"] = sums.get("tokens", 0.0) + float(kept.sum())
        sums["ratio_max"] = max(sums.get("ratio_max", 0.0), float(ratio[kept].max()))
        if replayed is not None:
            sums["replay"] = sums.get("replay", 0.0) + float(replayed.detach())
        sums["micro"] = sums.get("micro", 0.0) + 1

    def take(self) -> dict[str, float]:
        """Return the sums and reset them."""
        taken, self.sums = self.sums, {}
        return taken


def means_of(parts: Sequence[dict[str, float]], accumulation: int) -> dict[str, Any]:
    """Return means over the answer tokens of all processes, from what each of them has taken;
    `accumulation` is the number of micro-batches per update and process."""
    largest = max(part["ratio_max"] for part in parts)
    sums = {name: sum(part[name] for part in parts) for name in parts[0] if name != "ratio_max"}
    means = {name: sums[name] / sums["tokens"] for name in MEANS}
    # The replay loss of each micro-batch has been divided by the number of its process's
    # micro-batches in an update.
    replay = (
        {"replay_loss": sums["replay"] * accumulation / sums["micro"]} if "replay" in sums else {}
    )
    return {**means, "ratio_max": largest, **replay}
