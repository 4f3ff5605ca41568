"""What the tests of the export for verl and EasyR1 share: a tiny model, its tokenizer and prompts."""

import io

import numpy as np
import pytest
from PIL import Image

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.prompts import action_answer
from roboalign.conversations.reply import write_tagged
from roboalign.conversations.styles.registry import STYLES
from roboalign.mllm.tiny import TinyConfig, build_tiny

LABELLED = STYLES["labelled"]
TINY = {
    "image_size": 32,
    "depth": 2,
    "width": 32,
    "heads": 2,
    "kv_heads": 1,
    "mlp_width": 64,
    "vision_width": 32,
    "vision_depth": 2,
    "vision_heads": 2,
    "vocab_size": 500,
}
RL = {
    "prompts_per_rollout": 4,
    "prompts_per_update": 2,
    "micro_batch_size": 2,
    "max_new_tokens": 60,
}


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def fast() -> FastTokenizer:
    rng = np.random.default_rng(0)
    steps = rng.uniform(-1, 1, size=(200, 1, 2)) * np.linspace(0.2, 1, 4)[None, :, None]
    return FastTokenizer.fit(steps, scale=3, vocab_size=40)


@pytest.fixture(scope="module")
def mllm(fast):
    question = LABELLED.action_question("open the door", "think")
    model = build_tiny(
        TinyConfig(**TINY), [question, "<think>Go up and left.</think><answer>moon</answer>"] * 3
    )
    model.vocabulary = extend_tokenizer(model.tokenizer, fast.vocab_size)
    extend_model(model.model, model.tokenizer, model.vocabulary)
    return model


@pytest.fixture(scope="module")
def conversations(fast):
    chunks = np.random.default_rng(1).uniform(-1, 1, (5, 4, 2)).astype(np.float32)
    question = LABELLED.action_question("open the door", "think")
    return [
        Conversation(
            f"rl-{n}",
            "synthetic/door/0",
            n,
            "door",
            (png(n),),
            target=tuple(target),
            chunk=chunks[n].tolist(),
            turns=(
                Turn(
                    "action",
                    "action",
                    "think",
                    question,
                    write_tagged(action_answer(target), "Go."),
                    "",
                ),
            ),
        )
        for n, target in enumerate(fast.encode(chunks))
    ]
