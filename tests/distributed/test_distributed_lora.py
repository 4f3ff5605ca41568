"""LoRA in two processes (gloo), whole or split by FSDP2: SFT and GRPO have the weights of one process.

Killed in two processes, GRPO goes on in one, or in two again.
"""

import os
from pathlib import Path

import pytest
import tiny_lora
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from two_ranks import split_model, two_ranks

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
TABLE = "model.language_model.embed_tokens.weight"


def train(
    folder: Path,
    stop_at: int = -1,
    processes: int = 1,
    split: bool = False,
    family: str = "qwen2_5_vl",
) -> int:
    """Both trainings; where `stop_at` says so, the process ends as a kill would, in that update of GRPO."""
    torch.set_num_threads(1)
    if split:
        split_model()
    wrapped = (FSDPModule if split else DistributedDataParallel) if processes > 1 else ()
    inner = GrpoTrainer.training_step

    def step(self: GrpoTrainer, model: torch.nn.Module, *arguments: object) -> torch.Tensor:
        assert isinstance(model, (FSDPModule, DistributedDataParallel)) == (processes > 1)
        assert isinstance(model, wrapped) == (processes > 1)
        if self.state.global_step == stop_at:
            os._exit(9)
        loss = inner(self, model, *arguments)
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        tiny_lora.tiny_grpo.even_ids_rewarded.__wrapped__(patch)
        patch.setattr(GrpoTrainer, "training_step", step)
        if not (folder / "sft" / "model").exists():
            train_sft(tiny_lora.build(family), tiny_lora.talks(), SFT, folder / "sft")
        prompts = tiny_lora.tiny_grpo.prompts()
        train_grpo(tiny_lora.build(family), tiny_lora.tiny_grpo.fast(), prompts, RL, folder / "rl")
    if processes > 1:
        dist.barrier()
        dist.destroy_process_group()
    return 0


def assert_same(both: Path, alone: Path, family: str) -> None:
    start = dict(tiny_lora.build(family).model.named_parameters())
    rows = next(name for name in ("lm_head.weight", TABLE) if name in start)
    for part in PARTS:
        ours, theirs = (
            load_file(folder / part / "model" / "model.safetensors") for folder in (both, alone)
        )
        assert ours.keys() == theirs.keys()
        moved = (theirs[rows] - start[rows].detach()).abs().max()
        apart = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
        assert moved > 1e-3 and apart < 0.01 * moved, (part, apart, moved)
        pairs = zip(
            *(read_jsonl(folder / part / "metrics.jsonl") for folder in (both, alone)), strict=True
        )
        for record, expected in pairs:
            told = part, record["step"]
            assert record["loss"] == pytest.approx(expected["loss"], rel=2e-3, abs=1e-5), told
            assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-2), told


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(folder)
    return folder


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_two_processes_killed_end_as_one(alone: Path, tmp_path: Path, split: bool) -> None:
    """Whole models go on in one process; a split one goes on in two."""
    both = tmp_path / "both"
    ended = two_ranks(train, both, 3, 2, split, logs=tmp_path)
    assert 9 in [one.status for one in ended], ended
    left = [
        path.name for path in (both / "rl" / "checkpoints" / "checkpoint-2").glob("*.safetensors")
    ]
    assert left == ["adapters.safetensors"]
    if split:
        ended = two_ranks(train, both, -1, 2, split, logs=tmp_path)
        assert [one.status for one in ended] == [0, 0], ended
    else:
        train(both)
    assert_same(both, alone, "qwen2_5_vl")


def test_a_split_model_with_one_table(tmp_path: Path) -> None:
    train(tmp_path / "alone", family="qwen3_vl")
    ended = two_ranks(train, tmp_path / "both", -1, 2, True, "qwen3_vl", logs=tmp_path)
    assert [one.status for one in ended] == [0, 0], ended
    assert_same(tmp_path / "both", tmp_path / "alone", "qwen3_vl")
