"""LoRA in two processes (gloo): SFT and GRPO have the weights of one process; killed in two, GRPO goes on in one."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from two_ranks import two_ranks  # makes tests/align importable

import test_align_lora as tiny_lora  # isort: skip

from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.train import train_grpo
from roboalign.align.grpo.trainer import GrpoTrainer
from roboalign.align.sft import SftConfig, train_sft
from roboalign.core.files import read_jsonl

# Adam's first steps are as large as the learning rate whatever the gradient: smaller ones keep rounding small.
SFT = SftConfig(**{**tiny_lora.SFT, "micro_batch_size": 1, "max_steps": 4, "learning_rate": 1e-3})
RL = RlConfig(
    **{
        **tiny_lora.RL,
        "prompts_per_rollout": 8,
        "prompts_per_update": 4,
        "updates": 4,
        "learning_rate": 1e-3,
    }
)
PARTS = ("sft", "rl")


def train(folder: Path, stop_at: int = -1, processes: int = 1) -> int:
    """Both trainings; where `stop_at` says so, the process ends as a kill would, in that update of GRPO."""
    torch.set_num_threads(1)
    inner = GrpoTrainer.training_step

    def step(self: GrpoTrainer, model: torch.nn.Module, *arguments: object) -> torch.Tensor:
        assert isinstance(model, torch.nn.parallel.DistributedDataParallel) == (processes > 1)
        if self.state.global_step == stop_at:
            os._exit(9)
        return inner(self, model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        tiny_lora.tiny_grpo.even_ids_rewarded.__wrapped__(patch)
        patch.setattr(GrpoTrainer, "training_step", step)
        if not (folder / "sft" / "model").exists():
            train_sft(tiny_lora.build("qwen2_5_vl"), tiny_lora.talks(), SFT, folder / "sft")
        prompts = tiny_lora.tiny_grpo.prompts()
        train_grpo(
            tiny_lora.build("qwen2_5_vl"), tiny_lora.tiny_grpo.fast(), prompts, RL, folder / "rl"
        )
    if processes > 1:
        dist.barrier()
        dist.destroy_process_group()
    return 0


def test_two_processes_killed_go_on_in_one_and_end_as_one(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    train(alone)
    ended = two_ranks(train, both, 3, 2, logs=tmp_path)
    assert 9 in [one.status for one in ended], ended
    left = [
        path.name for path in (both / "rl" / "checkpoints" / "checkpoint-2").glob("*.safetensors")
    ]
    assert left == ["adapters.safetensors"]
    train(both)
    start = tiny_lora.build("qwen2_5_vl").model
    for part in PARTS:
        ours, theirs = (
            load_file(folder / part / "model" / "model.safetensors") for folder in (both, alone)
        )
        moved = (theirs["lm_head.weight"] - start.lm_head.weight.detach()).abs().max()
        apart = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
        assert moved > 1e-3 and apart < 0.01 * moved, (part, apart, moved)
        pairs = zip(
            *(read_jsonl(folder / part / "metrics.jsonl") for folder in (both, alone)), strict=True
        )
        for record, expected in pairs:
            assert record["loss"] == pytest.approx(expected["loss"], rel=2e-3, abs=1e-5), (
                part,
                record["step"],
            )
            assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-2), (
                part,
                record["step"],
            )
