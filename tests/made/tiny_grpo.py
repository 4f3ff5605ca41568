"""A tiny model, prompts with targets, a reward that spreads and settings: GRPO in seconds on a CPU."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import TINY
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.align.grpo import rollout as rollout_module
from roboalign.align.rewards.actions import Reward
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.files import read_jsonl
from roboalign.mllm.encode import collate, encode_prompt
from roboalign.mllm.load import Mllm
from roboalign.mllm.tiny import build_tiny

LABELLED = STYLES["labelled"]

torch.set_num_threads(1)  # a process killed and its successor must add in the same order

CONFIG = {
    "learning_rate": 1e-3,
    "prompts_per_rollout": 4,
    "prompts_per_update": 2,
    "micro_batch_size": 1,
    "samples": 3,
    "updates": 6,
    "max_new_tokens": 5,
    "save_every": 1,
    "kl": 0.1,
    "logged_samples": 1,
}


def chunks() -> np.ndarray:
    """[8, 4, 2] normalised action chunks."""
    return np.random.default_rng(0).uniform(-1, 1, (8, 4, 2)).astype(np.float32)


def fast() -> FastTokenizer:
    return FastTokenizer.fit(chunks(), scale=2, vocab_size=40)


def prompts(n: int = 6) -> list[Conversation]:
    rng, tokenizer = np.random.default_rng(1), fast()
    tasks = ["open the drawer", "push the red cube to the left", "reach"]
    targets = tokenizer.encode(chunks())
    result = []
    for i in range(n):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, "PNG")
        question = LABELLED.action_question(tasks[i % 3], "think")
        turn = Turn("action", "action", "think", question, "<answer></answer>", "")
        result.append(
            Conversation(
                f"rl-{i}",
                "episode",
                i,
                "task",
                (buffer.getvalue(),),
                (turn,),
                target=tuple(targets[i]),
            )
        )
    return result


def tiny() -> Mllm:
    mllm = build_tiny(TINY, [c.turns[0].question for c in prompts()])
    mllm.vocabulary = extend_tokenizer(mllm.tokenizer, fast().vocab_size)
    extend_model(mllm.model, mllm.tokenizer, mllm.vocabulary)
    return mllm


def reward_of_ids(ids: Sequence[int]) -> float:
    """A stand-in that spreads: the share of even ids."""
    return float(np.mean([i % 2 == 0 for i in ids]))


@pytest.fixture
def even_ids_rewarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model never meets the format; what is tested here is what is made of rewards."""

    def score(responses: Sequence[Sequence[int]], targets: object, **named: object) -> list[Reward]:
        return [
            Reward(reward_of_ids(ids), 0.0, 0.0, 0.0, None, False, 0, "no action block")
            for ids in responses
        ]

    monkeypatch.setattr(rollout_module, "score_responses", score)


def plain_logits(
    mllm: Mllm, question: str, images: Sequence[np.ndarray], completion: list[int]
) -> Tensor:
    """Logits [C, V] from one unpadded row, by nothing but the model's own forward pass."""
    inputs = collate(mllm, [encode_prompt(mllm, question, images)])
    del inputs["labels"]
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([completion])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    kinds = torch.zeros_like(inputs["input_ids"])
    kinds[:, :length] = inputs["mm_token_type_ids"]
    return mllm.model(**(inputs | {"mm_token_type_ids": kinds})).logits[0, length - 1 : -1]


def qwen2_5(mllm: Mllm) -> Mllm:
    """The other family of the paper, with the tiny model's tokenizer and image processor."""
    theirs = mllm.model.config
    text = {
        "vocab_size": theirs.text_config.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "fullatt_block_indexes": [1],
        "window_size": 16,
    }
    ids = {
        name: getattr(theirs, name)
        for name in (
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
        )
    }
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    )
    model.generation_config.eos_token_id = mllm.model.generation_config.eos_token_id
    return Mllm(model.eval(), mllm.processor, mllm.vocabulary)


def timeless(folder: Path, name: str) -> list[dict]:
    return [
        {k: v for k, v in r.items() if not k.startswith("seconds")}
        for r in read_jsonl(folder / name)
    ]
