"""One process of a training in two; under torchrun: sft_process.py FOLDER."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed
from tiny_sft import CONFIG, talks, tiny, weights

from roboalign.align import sft
from roboalign.align.sft import SftConfig, SftTrainer, train_sft
from roboalign.conversations.conversation import Conversation
from roboalign.core.files import read_json, read_jsonl

SETTINGS = SftConfig(**{**CONFIG, "micro_batch_size": 1})


def uneven(n: int) -> list[Conversation]:
    """Talks whose answers differ in length, so that a mean of the processes' means is not the mean over all tokens."""
    found = []
    for i, talk in enumerate(talks(n)):
        answer = "<answer>" + " ".join(["gripper"] * (1 + 7 * i % 12)) + "</answer>"
        found.append(replace(talk, turns=(replace(talk.turns[0], answer=answer),)))
    return found


class Wrapped(SftTrainer):
    """Refuses to train where two processes do not form one group, or the model is not wrapped for it."""

    stop_at: int | None = None

    def training_step(self, model, *arguments):  # type: ignore[no-untyped-def]
        assert self.args.world_size == torch.distributed.get_world_size() == 2
        assert isinstance(model, torch.nn.parallel.DistributedDataParallel)
        if self.state.global_step == self.stop_at:
            os._exit(9)  # as a kill would: nothing is written, no one is told
        return super().training_step(model, *arguments)


def train(folder: Path, stop_at: int | None = None, **changed: int) -> None:
    """The training of one rank."""
    torch.set_num_threads(1)
    Wrapped.stop_at = stop_at
    sft.SftTrainer = Wrapped  # type: ignore[misc]
    train_sft(tiny(), uneven(12), SETTINGS.model_copy(update=changed), folder)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def train_with_a_budget(folder: Path) -> None:
    train(folder, tokens_per_micro_batch=75)


def train_until_4(folder: Path) -> None:
    train(folder, stop_at=4)


def assert_same_training(folder: Path, alone: Path) -> None:
    ours, theirs = weights(folder), weights(alone)
    assert ours.keys() == theirs.keys()
    start = dict(tiny().model.named_parameters())
    moved = max(float((theirs[name] - start[name]).abs().max()) for name in theirs if name in start)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    assert moved > 1e-3
    assert apart < 0.01 * moved, f"{apart} apart after moving by {moved}"
    for record, expected in zip(
        read_jsonl(folder / "metrics.jsonl"), read_jsonl(alone / "metrics.jsonl"), strict=True
    ):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-3), record["step"]
        assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-2), record["step"]
    one, two = read_json(alone / "ledger.json"), read_json(folder / "ledger.json")
    for name in ("updates", "samples", "tokens", "answer_tokens", "turns"):
        assert two[name] == one[name], name


if __name__ == "__main__":
    train(Path(sys.argv[1]))
