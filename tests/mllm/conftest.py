"""Small random models of three families, each with Hugging Face's own processor class."""

import numpy as np
import pytest
import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from roboalign.mllm.encode import Prompt
from roboalign.mllm.load import Mllm
from roboalign.mllm.processors import ImageOnlyQwen2_5_VLProcessor
from roboalign.mllm.tiny import CHAT_TEMPLATE, TinyConfig, build_tiny, train_tokenizer

torch.set_num_threads(1)  # models this small only lose time to a second thread

TEXTS = [
    "Where is the red block? Answer directly.",
    "The gripper moves left, then down.",
    "<think>go left</think>",
] * 9
SMALL = TinyConfig(
    width=48,
    heads=4,
    kv_heads=2,
    mlp_width=96,
    depth=3,
    vision_width=32,
    vision_depth=2,
    vision_heads=2,
    deepstack=(0,),
    image_size=32,
    vocab_size=600,
)


@pytest.fixture(scope="session")
def qwen3() -> Mllm:
    return build_tiny(SMALL, TEXTS)


@pytest.fixture
def fresh_qwen3() -> Mllm:
    """One that no other test has used: transformers leaves hooks on a model that was asked for its hidden states, and
    layers that call them are not compiled."""
    return build_tiny(SMALL, TEXTS)


@pytest.fixture(scope="session")
def qwen2_5() -> Mllm:
    tokenizer = train_tokenizer(TEXTS, 600)
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start")
    }
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 2, 2],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 48,
            "initializer_range": 0.2,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 256, "longest_edge": 4096}
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Mllm(
        model, ImageOnlyQwen2_5_VLProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)
    )


@pytest.fixture(scope="session")
def idefics3() -> Mllm:
    tokenizer = train_tokenizer(TEXTS, 600)
    tokenizer.add_special_tokens(
        {"extra_special_tokens": ["<image>", "<fake_token_around_image>", "<end_of_utterance>"]}
    )
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}
    )
    template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    processor = Idefics3Processor(
        image_processor, tokenizer, image_seq_len=4, chat_template=template
    )
    config = Idefics3Config(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.2,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Mllm(model, processor)


@pytest.fixture(params=["qwen3", "qwen2_5", "idefics3"])
def any_mllm(request: pytest.FixtureRequest) -> Mllm:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["qwen3", "qwen2_5"])
def qwen(request: pytest.FixtureRequest) -> Mllm:
    return request.getfixturevalue(request.param)


@pytest.fixture
def prompts() -> list[Prompt]:
    """Five questions of different lengths, each with an image of its own."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    return [
        Prompt("Where is" + " the red block" * number + "?", (frame,))
        for number, frame in enumerate(frames)
    ]
