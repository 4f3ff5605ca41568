"""What `scale.py` measures: models of published shapes with random weights, and samples of the wanted length."""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.align.trained import vision_parameters
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.styles.registry import STYLES
from roboalign.mllm.encode import Encoded
from roboalign.mllm.load import Mllm
from roboalign.mllm.presets import MODEL_PRESETS
from roboalign.mllm.stand_in import published
from roboalign.mllm.tiny import TinyConfig, build_tiny
from roboalign.plan.arithmetic import BackboneSize, forward_flops
from roboalign.plan.model import backbone_numbers

LABELLED = STYLES["labelled"]

WORDS = (
    "gripper",
    "is",
    "left",
    "right",
    "drawer",
    "handle",
    "up",
    "down",
    "forward",
    "and",
    "move",
    "open",
    "close",
)
TASKS = (
    "open the drawer",
    "push the red cube to the left",
    "reach the goal",
    "close the window with the handle",
)


@dataclass(frozen=True)
class Shape:
    """A model and what it is given."""

    preset: str
    """A key of mllm.presets; "" is the tiny model that `TinyConfig` describes."""
    image: int
    """Side of a training image, pixels."""
    tokens: int
    """Tokens of an SFT sample, image included (the mean comes close)."""
    batch: int
    """SFT samples an update, on this device; the micro-batch is the largest power of 2 up to it that fits."""
    layer: int
    """What the head reads."""
    head: str
    """A preset of HeadConfig."""
    action_dim: int
    horizon: int
    vocabulary: int
    """Entries of the FAST tokenizer, at most."""
    prompts: int
    """Prompts of a measured rollout; extrapolated to 512."""
    answer: int
    """Tokens of a sampled answer, at most: random weights hardly ever end one."""


def _published(preset: str, batch: int = 16) -> Shape:
    return Shape(
        preset,
        image=448,
        tokens=700,
        batch=batch,
        layer=MODEL_PRESETS[preset].layer,
        head="gr00t-n1.5",
        action_dim=7,
        horizon=16,
        vocabulary=2048,
        prompts=48,
        answer=128,
    )


SHAPES = {
    "tiny": Shape(
        "",
        image=64,
        tokens=160,
        batch=16,
        layer=2,
        head="tiny",
        action_dim=4,
        horizon=8,
        vocabulary=128,
        prompts=16,
        answer=24,
    ),
    "qwen2_5_vl_3b": _published("qwen2.5-vl-3b"),
    "qwen2_5_vl_7b": _published("qwen2.5-vl-7b"),
    "qwen3_vl_8b": _published("qwen3-vl-8b"),
}


def build(shape: Shape, dtype: torch.dtype, device: torch.device) -> Mllm:
    """A model of this shape with random weights, made on `device`, action tokens included, in eval mode.

    Its tokenizer is a small one of its own: how long a text is differs from the published one, nothing else.
    """
    texts = [
        text
        for c in conversations(shape, 32, turns=6)
        for t in c.turns
        for text in (t.question, t.answer)
    ]
    texts += [LABELLED.action_question(task, "think") for task in TASKS] * 8
    n_fast = action_tokenizer(shape).vocab_size
    torch.manual_seed(0)
    if not shape.preset:
        mllm = build_tiny(TinyConfig(), texts)
        mllm.vocabulary = extend_tokenizer(mllm.tokenizer, n_fast)
        extend_model(mllm.model, mllm.tokenizer, mllm.vocabulary)
        mllm.model.to(device=device, dtype=dtype)
        return mllm
    config, processor, vocabulary = published(MODEL_PRESETS[shape.preset], texts, n_fast)
    with torch.device(device):  # weights never exist anywhere else
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return Mllm(model.eval(), processor, vocabulary)


@lru_cache
def action_tokenizer(shape: Shape) -> FastTokenizer:
    """A FAST tokenizer that was fitted on random chunks."""
    return FastTokenizer.fit(random_chunks(shape, 256), scale=10, vocab_size=shape.vocabulary)


def random_chunks(shape: Shape, count: int) -> np.ndarray:
    """float32 [count, horizon, action_dim] in [-1, 1]."""
    size = (count, shape.horizon, shape.action_dim)
    return np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [height, width, 3]: large squares of random colours, so that a PNG of it is as small as a real one."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def png(image: np.ndarray) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def conversations(shape: Shape, count: int, *, turns: int) -> list[Conversation]:
    """SFT samples of about `turns` turns (half to one and a half times as many), a third of whose words are answers."""
    rng, images = (
        np.random.default_rng(0),
        [png(picture(shape.image, shape.image, seed)) for seed in range(8)],
    )

    def turn() -> Turn:
        question, answer = (
            " ".join(rng.choice(WORDS, rng.integers(most // 2, most))) for most in (20, 12)
        )
        return Turn(
            "general", "words", "direct", f"{question}?", f"<answer>{answer}</answer>", answer
        )

    counts = rng.integers(max(1, turns // 2), turns + turns // 2 + 1, count)
    return [
        Conversation(
            f"talk-{i}", "episode", i, "task", (images[i % 8],), tuple(turn() for _ in range(n))
        )
        for i, n in enumerate(counts)
    ]


def rl_prompts(shape: Shape, count: int) -> list[Conversation]:
    """Action questions in think mode with target tokens."""
    targets = action_tokenizer(shape).encode(random_chunks(shape, count))
    result = []
    for i, target in enumerate(targets):
        turn = Turn(
            "action",
            "action",
            "think",
            LABELLED.action_question(TASKS[i % 4], "think"),
            "<answer></answer>",
            "",
        )
        image = png(picture(shape.image, shape.image, i))
        result.append(
            Conversation(f"rl-{i}", "episode", i, "task", (image,), (turn,), target=tuple(target))
        )
    return result


# Operations -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What of a model its matrix products depend on."""

    text: BackboneSize
    pixels: int
    """Parameters of what turns pixels into patches."""
    blocks: int
    """Parameters of the vision blocks: multiplied with each patch, as those of `pixels` are."""
    mergers: int
    """Parameters of what turns merged patches into tokens."""
    merged: int
    """Patches of a token."""
    vision_width: int
    windows: tuple[int, ...]
    """Patches that a patch attends to at most, for each vision block; 0: all of its image."""


def work_of(model: Any) -> Work:
    """Of a model of Qwen2.5-VL's or Qwen3-VL's class."""
    vision, config = model.model.visual, model.config.vision_config
    mergers = sum(p.numel() for name, p in vision.named_parameters() if "merger" in name)
    # A table of positions is looked up.
    tables = sum(p.numel() for name, p in vision.named_parameters() if "pos_embed" in name)
    whole = getattr(config, "fullatt_block_indexes", range(config.depth))
    window = (getattr(config, "window_size", 0) // config.patch_size) ** 2
    pixels = sum(p.numel() for p in vision.patch_embed.parameters())
    blocks = sum(p.numel() for p in vision_parameters(model).values()) - pixels - mergers - tables
    return Work(
        backbone_numbers(model),
        pixels,
        blocks,
        mergers,
        config.spatial_merge_size**2,
        config.hidden_size,
        tuple(0 if block in whole else window for block in range(config.depth)),
    )


def vision_pass(work: Work, patches: int) -> float:
    """Operations of the vision tower on an image: 2 a parameter and row, 4 a channel, patch and patch attended to."""
    attended = sum(min(window or patches, patches) for window in work.windows)
    products = (work.pixels + work.blocks) * patches + work.mergers * patches / work.merged
    return 2 * products + 4 * work.vision_width * patches * attended


def training_pass(
    work: Work, lengths: list[int], answers: int, patches: list[int], *, frozen_vision: bool
) -> float:
    """Operations that one update needs on samples of these lengths, with `answers` answer tokens in all, and on images
    of these numbers of patches: a backward pass is twice a forward pass, but for pixels, which need no gradient. What
    activation checkpointing computes again and padding are not needed, and not counted; attention is causal."""
    text = (
        sum(forward_flops(work.text, length, length) for length in lengths)
        + 2 * work.text.table * answers
    )
    seen = sum(vision_pass(work, count) for count in patches)
    return 3 * text + (seen if frozen_vision else 3 * seen - 2 * work.pixels * sum(patches))


def patches_of(mllm: Mllm, encoded: Encoded) -> int:
    """Patches of its image."""
    tokens = int((encoded.input_ids == mllm.processor.image_token_id).sum())
    return tokens * mllm.model.config.vision_config.spatial_merge_size**2
