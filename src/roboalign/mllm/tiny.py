"""Build a tiny model of Qwen3-VL's own architecture class, with its own tokenizer, without any
download.

It lets the whole pipeline run in minutes on a CPU, through the same code path as a 7B model.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import chain, repeat

import torch
from pydantic import Field, model_validator
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from roboalign.core.config import Config, Seed
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.load import Mllm
from roboalign.mllm.processors import ImageOnlyQwen3VLProcessor

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
REPLY_TOKENS = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
)  # not special, so that decoding does not strip them
WHOLE_NUMBERS = range(64)
"""Each of these, with its leading space, is one token: a coordinate on a 64-cell axis is then one
choice."""
TOKENIZER_TEXTS = (
    4000  # evenly spaced texts from which the merges are learned; more texts hardly change them
)
MAX_LENGTH = 4096  # tokens

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class TinyConfig(Config):
    """Shape of the tiny model. The defaults give about 2.5 million parameters."""

    image_size: int = Field(default=64, ge=8, le=4096)
    """Side to which a square image is resized, in pixels; a multiple of patch_size x merge."""
    patch_size: int = Field(default=16, ge=2, le=4096)
    """Side of one vision patch, in pixels."""
    merge: int = Field(default=1, ge=1, le=64)
    """merge x merge patches become one visual token."""
    pixel_mean: float = Field(default=0.4, ge=0, le=1)
    """Mean that is subtracted from pixels in 0..1. The data's own mean works best."""
    pixel_std: float = Field(default=0.15, ge=1e-3, le=100)
    """Standard deviation by which pixels are divided. The data's own works best; a larger one
    reduces the contrast of what moves."""
    vision_width: int = Field(default=128, ge=8, le=65_536)
    """Width of the vision transformer."""
    vision_depth: int = Field(default=3, ge=1, le=1000)
    """Blocks of the vision transformer."""
    vision_heads: int = Field(default=4, ge=1, le=65_536)
    """Attention heads of the vision transformer."""
    deepstack: tuple[int, ...] = (1,)
    """Vision blocks whose features are also added to the first text layers (Qwen3-VL's DeepStack)."""
    width: int = Field(default=192, ge=8, le=65_536)
    """Width of the text model."""
    depth: int = Field(default=4, ge=1, le=1000)
    """Layers of the text model."""
    heads: int = Field(default=6, ge=1, le=65_536)
    """Attention heads of the text model."""
    kv_heads: int = Field(default=3, ge=1, le=65_536)
    """Key and value heads of the text model (grouped-query attention)."""
    mlp_width: int = Field(default=512, ge=8, le=1_000_000)
    """Inner width of the text model's gated feed-forward layers."""
    vocab_size: int = Field(default=1000, ge=400, le=1_000_000)
    """Upper bound of the tokenizer's size, before the action tokens are added."""
    init_std: float = Field(default=0.08, gt=0, le=100)
    """Standard deviation of the initial weights. With Hugging Face's 0.02, a model this small
    hardly learns to see."""
    query_gain: float = Field(default=2.0, gt=0, le=1000)
    """Initial weight of the query normalization. Above 1, attention starts on a few tokens instead
    of evenly on all."""
    seed: Seed = 0
    """Seed of the initial weights."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> "TinyConfig":
        if self.image_size % (self.patch_size * self.merge):
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size x merge"
            )
        if self.width % self.heads or self.heads % self.kv_heads or (self.width // self.heads) % 2:
            raise ValueError(
                "width must be an even multiple of heads, and heads a multiple of kv_heads"
            )
        if self.vision_width % self.vision_heads or (self.vision_width // self.vision_heads) % 4:
            raise ValueError(
                "vision_width / vision_heads must be a multiple of 4 (two-dimensional rotary positions)"
            )
        if (
            any(index not in range(self.vision_depth) for index in self.deepstack)
            or len(self.deepstack) > self.depth
        ):
            raise ValueError(
                "deepstack must name blocks of the vision model, no more of them than text layers"
            )
        return self


def build_tiny(config: TinyConfig, texts: Iterable[str]) -> Mllm:
    """Build a new model with random weights, float32 on the CPU, and a tokenizer trained on `texts`
    (all it will read).

    The same config, texts and library versions give the same weights and the same tokenizer.
    """
    tokenizer = train_tokenizer(texts, config.vocab_size)
    side = config.image_size
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=config.patch_size,
        merge_size=config.merge,
        temporal_patch_size=1,
        size={"shortest_edge": side * side, "longest_edge": side * side},
        image_mean=[config.pixel_mean] * 3,
        image_std=[config.pixel_std] * 3,
    )
    processor = ImageOnlyQwen3VLProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Qwen3VLForConditionalGeneration(_model_config(config, tokenizer))
        _write_grid_positions(model.model.visual.pos_embed.weight.data)
        for layer in model.model.language_model.layers:
            torch.nn.init.constant_(layer.self_attn.q_norm.weight, config.query_gain)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Mllm(model.eval(), processor)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most `vocab_size` entries, special and reply tokens
    included.

    It uses GPT-2's pre-tokenization, so that a number and its leading space stay one piece.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = list(texts)
    texts = texts[:: -(-len(texts) // TOKENIZER_TEXTS) or 1]
    # BPE merges the most frequent pairs first, so what is repeated more often than any pair of the
    # texts becomes one token.
    # No pair is more frequent than its first character.
    repeats = 1 + max(Counter(chain.from_iterable(texts)).values(), default=0)
    # A leading space begins a word: a number is repeated within one text, which is read faster.
    numbers = (f" {number}" * repeats for number in WHOLE_NUMBERS)
    whole = chain(repeat("user", repeats), repeat("assistant", repeats), numbers)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(REPLY_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(texts, whole), trainer)
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in REPLY_TOKENS]
    )
    missing = [number for number in WHOLE_NUMBERS if len(tokenizer.encode(f" {number}").ids) != 1]
    if missing:
        problem = f"vocab_size {vocab_size} leaves no single token for the numbers {missing}"
        raise RoboAlignError(problem, fix="use a larger vocab_size")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[
            token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")
        ],
        model_max_length=MAX_LENGTH,
        padding_side="right",
    )


def _write_grid_positions(embedding: torch.Tensor) -> None:
    """Fill a vision position table [side * side, W] with sines and cosines of each cell's column
    and row.

    With random rows a new model must learn every cell separately. Here neighbors start out alike,
    and both axes can be read linearly. The table stays trainable.
    """
    side, quarter = int(len(embedding) ** 0.5), embedding.shape[1] // 4
    cell = torch.arange(side, dtype=embedding.dtype) / side
    frequencies = (
        torch.pi / 2 * 2 ** torch.linspace(0, 4, quarter)
    )  # from a quarter turn over the image to four turns
    rows, columns = torch.meshgrid(cell, cell, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    # Each attention head takes neighboring channels. Shuffled, each head gets both axes and all
    # frequencies.
    embedding.copy_(table[:, torch.randperm(table.shape[1])])


def _model_config(config: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Return Qwen3-VL's configuration with the shapes of `config` and the token ids of
    `tokenizer`."""
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    head_dim = config.width // config.heads
    spatial = (
        head_dim // 2 // 3
    )  # of the head's rotary pairs, a third each goes to height and width and the rest to time
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": MAX_LENGTH,
        "initializer_range": config.init_std,
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_interleaved": True,
            "mrope_section": [head_dim // 2 - 2 * spatial, spatial, spatial],
        },
    }
    vision = {
        "depth": config.vision_depth,
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_heads": config.vision_heads,
        "patch_size": config.patch_size,
        "temporal_patch_size": 1,
        "spatial_merge_size": config.merge,
        "out_hidden_size": config.width,
        "num_position_embeddings": (config.image_size // config.patch_size) ** 2,
        "deepstack_visual_indexes": list(config.deepstack),
        "initializer_range": config.init_std,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
