"""Tiny models and settings that the tests of LoRA share, and what a training may change."""

from dataclasses import replace
from pathlib import Path

import tiny_grpo
import torch
from safetensors.torch import load_file
from torch import Tensor

from roboalign.align.lora import LoraConfig
from roboalign.align.sft import SftConfig
from roboalign.conversations.conversation import Conversation
from roboalign.mllm.load import Mllm

torch.set_num_threads(1)  # a process killed and its successor must add in the same order

LORA = LoraConfig(rank=4, alpha=8)
SFT = {
    "learning_rate": 1e-2,
    "max_steps": 6,
    "batch_size": 4,
    "micro_batch_size": 2,
    "save_every": 2,
    "log_every": 1,
    "lora": LORA,
}
DROPPED = SftConfig(**{**SFT, "lora": LoraConfig(rank=4, alpha=8, dropout=0.1)})
RL = {**tiny_grpo.CONFIG, "learning_rate": 3e-3, "lora": LORA}
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def talks(n: int = 8) -> list[Conversation]:
    """Conversations of different length, half of which answer with action tokens."""
    mllm, found = tiny_grpo.tiny(), []
    for i in range(n):
        asked = tiny_grpo.prompts()[i % 6]
        said = mllm.vocabulary.text(asked.target) if i % 2 else "left " * (1 + i)
        turn = replace(asked.turns[0], answer=f"<answer>{said}</answer>")
        found.append(replace(asked, id=f"talk-{i}", turns=(turn,)))
    return found


def build(family: str) -> Mllm:
    """Qwen3-VL with one table for both embeddings, or Qwen2.5-VL with two."""
    mllm = tiny_grpo.tiny() if family == "qwen3_vl" else tiny_grpo.qwen2_5(tiny_grpo.tiny())
    shared = mllm.model.get_output_embeddings().weight is mllm.model.get_input_embeddings().weight
    assert mllm.model.config.model_type == family and shared == (family == "qwen3_vl")
    return mllm


def state_of(mllm: Mllm) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in mllm.model.state_dict().items()}


def assert_only_the_trained_changed(
    before: dict[str, Tensor], after: dict[str, Tensor], mllm: Mllm
) -> None:
    """Text layers' linear weights and the rows of the action tokens; all else bit by bit as it was."""
    assert before.keys() == after.keys()
    rows = torch.tensor(sorted(mllm.vocabulary.ids))
    for name, value in after.items():
        same = value == before[name]
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            others = torch.ones(len(value), dtype=torch.bool).index_fill(0, rows, False)
            assert same[others].all() and not same[rows].all(dim=1).any(), name
        elif name.startswith("model.language_model.layers.") and name.split(".")[-2] in LAYERS:
            assert name.endswith("bias") == bool(same.all()), (
                name
            )  # biases of queries, keys and values are frozen
        else:
            assert same.all(), name


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model" / "model.safetensors")
