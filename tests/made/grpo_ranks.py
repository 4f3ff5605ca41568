"""The GRPO that several tests run in one process and in two, and what makes two runs the same."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_grpo
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from two_ranks import split_model

from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.train import train_grpo
from roboalign.align.grpo.trainer import GrpoTrainer
from roboalign.conversations.conversation import Conversation
from roboalign.core.files import read_json, read_jsonl

CONFIG = RlConfig(
    **{
        **tiny_grpo.CONFIG,
        "prompts_per_rollout": 8,
        "prompts_per_update": 4,
        "updates": 4,
        "logged_samples": 8,
        "replay_weight": 0.5,
        "replay_batch": 4,
    }
)


def replayed() -> list[Conversation]:
    """Of different lengths, so that what is averaged over which process would tell."""
    found = tiny_grpo.prompts()
    answers = [
        "<think>so</think><answer>" + "left " * (1 + 5 * i % 7) + "</answer>"
        for i in range(len(found))
    ]
    return [
        replace(c, turns=(replace(c.turns[0], answer=answer),)) for c, answer in zip(found, answers)
    ]


def train(folder: Path, stop_at: int = -1, processes: int = 1, split: bool = False) -> int:
    """Four updates of two rollouts; where `stop_at` says so, the process ends as a kill would, in that update."""
    torch.set_num_threads(1)
    if split:
        split_model()
    inner = GrpoTrainer.training_step

    def step(self: GrpoTrainer, model: torch.nn.Module, *arguments: object) -> torch.Tensor:
        assert self.args.world_size == processes
        wrapped = FSDPModule if split else torch.nn.parallel.DistributedDataParallel
        assert isinstance(model, wrapped) == (processes > 1)
        if self.state.global_step == stop_at:
            os._exit(9)
        return inner(self, model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        tiny_grpo.even_ids_rewarded.__wrapped__(patch)
        patch.setattr(GrpoTrainer, "training_step", step)
        train_grpo(
            tiny_grpo.tiny(),
            tiny_grpo.fast(),
            tiny_grpo.prompts(),
            CONFIG,
            folder,
            replay=replayed(),
        )
    if processes > 1:
        dist.barrier()
        dist.destroy_process_group()
    return 0


def assert_same_training(folder: Path, alone: Path) -> None:
    ours, theirs = (load_file(one / "model" / "model.safetensors") for one in (folder, alone))
    start = dict(tiny_grpo.tiny().model.named_parameters())
    moved = max(float((theirs[name] - start[name]).abs().max()) for name in theirs if name in start)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    assert moved > 1e-3
    assert apart < 0.01 * moved, f"{apart} apart after moving by {moved}"
    for record, expected in zip(
        read_jsonl(folder / "metrics.jsonl"), read_jsonl(alone / "metrics.jsonl"), strict=True
    ):
        assert record.keys() == expected.keys()
        for name, value in expected.items():
            if not name.startswith("seconds"):
                same = (
                    pytest.approx(value, rel=2e-3, abs=1e-5) if isinstance(value, float) else value
                )
                assert record[name] == same, (record["step"], name)
    samples = [read_jsonl(one / "samples.jsonl") for one in (folder, alone)]
    assert [[record[name] for name in ("step", "id", "answer")] for record in samples[0]] == [
        [record[name] for name in ("step", "id", "answer")] for record in samples[1]
    ]
    assert len({record["answer"] for record in samples[0]}) > 8
    one, two = read_json(alone / "ledger.json"), read_json(folder / "ledger.json")
    assert {k: v for k, v in one.items() if "seconds" not in k} == {
        k: v for k, v in two.items() if "seconds" not in k
    }
