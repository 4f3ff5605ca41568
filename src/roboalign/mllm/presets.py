"""Name the known backbones, with enough of their published configurations to plan a run before any
weight is there.

A preset is no checkpoint: weights, tokenizer and processor come from the folder that
`backbone.source` names. The values were copied by hand from each repository's config.json and
preprocessor_config.json. The tests build each one on the `meta` device and compare its parameters
with the published count, if there is one.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig
from transformers.image_processing_utils import select_best_resolution

Json = dict[str, Any]


@dataclass(frozen=True)
class ModelPreset:
    """Describe a published model."""

    repository: str
    """Its name on the Hugging Face hub."""
    config: Json
    """The part of its config.json that determines the shapes."""
    image: Json
    """How its processor turns an image into tokens; read by `image_tokens`."""
    published: int | None
    """Number of parameters, as its safetensors files state it; None if that count is not known
    here."""
    layer: int
    """Text layer to read: the paper's 18 of 28 for Qwen2.5-VL-7B; for others the same share,
    rounded, which is our choice."""


def _text(
    hidden: int, mlp: int, layers: int, heads: int, kv: int, vocabulary: int, **more: Any
) -> Json:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        **more,
    }


def _qwen2_5(out: int) -> Json:
    return {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "out_hidden_size": out,
    }


def _qwen3(depth: int, hidden: int, mlp: int, out: int, deepstack: list[int]) -> Json:
    return {
        "depth": depth,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_heads": 16,
        "patch_size": 16,
        "out_hidden_size": out,
        "deepstack_visual_indexes": deepstack,
        "num_position_embeddings": 2304,
    }


def _siglip(hidden: int, mlp: int, layers: int, heads: int, size: int, patch: int) -> Json:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": size,
        "patch_size": patch,
    }


def _model(kind: str, text: Json, vision: Json, *, tied: bool, **more: Any) -> Json:
    text = {**text, "tie_word_embeddings": tied}
    return {
        "model_type": kind,
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": tied,
        **more,
    }


QWEN2_5_IMAGE = {"factor": 28, "least": 4 * 28 * 28, "most": 16384 * 28 * 28}
QWEN3_IMAGE = {"factor": 32, "least": 64 * 32 * 32, "most": 16384 * 32 * 32}
_LLAMA: Json = {"model_type": "llama"}
_QWEN2: Json = {"model_type": "qwen2"}
_SIGLIP: Json = {"model_type": "siglip_vision_model", "vision_use_head": False}
_GRIDS = [[384 * row, 384 * column] for row in range(1, 7) for column in range(1, 7)]

MODEL_PRESETS: dict[str, ModelPreset] = {
    "qwen2.5-vl-3b": ModelPreset(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        _model("qwen2_5_vl", _text(2048, 11008, 36, 16, 2, 151936), _qwen2_5(2048), tied=True),
        QWEN2_5_IMAGE,
        3_754_622_976,
        23,
    ),
    "qwen2.5-vl-7b": ModelPreset(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        _model("qwen2_5_vl", _text(3584, 18944, 28, 28, 4, 152064), _qwen2_5(3584), tied=False),
        QWEN2_5_IMAGE,
        8_292_166_656,
        18,
    ),
    "qwen3-vl-2b": ModelPreset(
        "Qwen/Qwen3-VL-2B-Instruct",
        _model(
            "qwen3_vl",
            _text(2048, 6144, 28, 16, 8, 151936, head_dim=128),
            _qwen3(24, 1024, 4096, 2048, [5, 11, 17]),
            tied=True,
        ),
        QWEN3_IMAGE,
        2_127_532_032,
        18,
    ),
    "qwen3-vl-4b": ModelPreset(
        "Qwen/Qwen3-VL-4B-Instruct",
        _model(
            "qwen3_vl",
            _text(2560, 9728, 36, 32, 8, 151936, head_dim=128),
            _qwen3(24, 1024, 4096, 2560, [5, 11, 17]),
            tied=True,
        ),
        QWEN3_IMAGE,
        4_437_815_808,
        23,
    ),
    "qwen3-vl-8b": ModelPreset(
        "Qwen/Qwen3-VL-8B-Instruct",
        _model(
            "qwen3_vl",
            _text(4096, 12288, 36, 32, 8, 151936, head_dim=128),
            _qwen3(27, 1152, 4304, 4096, [8, 16, 24]),
            tied=False,
        ),
        QWEN3_IMAGE,
        8_767_123_696,
        23,
    ),
    "smolvlm2-256m": ModelPreset(
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        _model(
            "smolvlm",
            _text(576, 1536, 30, 9, 3, 49280, **_LLAMA),
            _siglip(768, 3072, 12, 12, 512, 16),
            tied=False,
            scale_factor=4,
        ),
        {"longest": 2048, "tile": 512, "tokens": 64},
        256_484_928,
        19,
    ),
    "smolvlm2-500m": ModelPreset(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        _model(
            "smolvlm",
            _text(960, 2560, 32, 15, 5, 49280, **_LLAMA),
            _siglip(768, 3072, 12, 12, 512, 16),
            tied=False,
            scale_factor=4,
        ),
        {"longest": 2048, "tile": 512, "tokens": 64},
        507_482_304,
        21,
    ),
    "smolvlm2-2.2b": ModelPreset(
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        _model(
            "smolvlm",
            _text(2048, 8192, 24, 32, 32, 49280, **_LLAMA),
            _siglip(1152, 4304, 27, 16, 384, 14),
            tied=False,
            scale_factor=3,
        ),
        {"longest": 1536, "tile": 384, "tokens": 81},
        2_246_784_880,
        15,
    ),
    "llava-1.5-7b": ModelPreset(
        "llava-hf/llava-1.5-7b-hf",
        _model(
            "llava",
            _text(4096, 11008, 32, 32, 32, 32064, **_LLAMA),
            {
                "model_type": "clip_vision_model",
                "projection_dim": 768,
                **_siglip(1024, 4096, 24, 16, 336, 14),
            },
            tied=False,
        ),
        {"tokens": 576},
        7_063_427_072,
        21,
    ),
    # Qwen2's vocabularies, 151936 and 152064, plus 64 rows: transformers' conversion adds two
    # tokens and pads.
    "llava-onevision-0.5b": ModelPreset(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        _model(
            "llava_onevision",
            _text(896, 4864, 24, 14, 2, 152000, **_QWEN2),
            {**_SIGLIP, **_siglip(1152, 4304, 26, 16, 384, 14)},
            tied=True,
        ),
        {"size": 384, "side": 27, "grids": _GRIDS, "most": 9},
        None,
        15,
    ),
    "llava-onevision-7b": ModelPreset(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        _model(
            "llava_onevision",
            _text(3584, 18944, 28, 28, 4, 152128, **_QWEN2),
            {**_SIGLIP, **_siglip(1152, 4304, 26, 16, 384, 14)},
            tied=False,
        ),
        {"size": 384, "side": 27, "grids": _GRIDS, "most": 9},
        None,
        18,
    ),
}


def preset_of(source: str) -> ModelPreset | None:
    """Return the preset that `source` names, or whose name its folder has
    (`/models/SmolVLM2-2.2B-Instruct`); or None."""
    if source in MODEL_PRESETS:
        return MODEL_PRESETS[source]
    name = PurePath(source).name.lower()
    return next(
        (
            preset
            for preset in MODEL_PRESETS.values()
            if PurePath(preset.repository).name.lower() == name
        ),
        None,
    )


@cache
def preset_config(name: str) -> PretrainedConfig:
    """Return the transformers configuration of a preset."""
    values = dict(MODEL_PRESETS[name].config)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def meta_model(config: PretrainedConfig) -> Any:
    """Build the model of a configuration on the meta device: shapes without memory."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def image_tokens(image: Json, height: int, width: int) -> int:
    """Return how many tokens an image of this size becomes under `ModelPreset.image`, without text
    separators.

    There are four ways. Qwen keeps the size between two bounds, in whole steps of `factor` pixels.
    SmolVLM enlarges to `longest`, cuts tiles, and shows the whole image once more. LLaVA-1.5 has
    one square. LLaVA-OneVision cuts the best grid, takes the padding out and ends each row with a
    token.
    """
    if "factor" in image:
        return _qwen_tokens(image, height, width)
    if "longest" in image:
        scale = image["longest"] / max(height, width)
        # Rounded as the processor does: the shorter edge is truncated to whole pixels and made
        # even, then tiles are full.
        short = int(min(height, width) * scale)
        tiles = math.ceil((short + short % 2) / image["tile"]) * math.ceil(
            image["longest"] / image["tile"]
        )
        return image["tokens"] * (tiles + 1 if tiles > 1 else 1)
    return _onevision_tokens(image, height, width) if "grids" in image else image["tokens"]


def _qwen_tokens(image: Json, height: int, width: int) -> int:
    factor, (rows, columns) = (
        image["factor"],
        (round(side / image["factor"]) for side in (height, width)),
    )
    rows, columns = max(rows, 1), max(columns, 1)
    if rows * columns * factor**2 > image["most"]:
        scale = math.sqrt(height * width / image["most"])
        rows, columns = (max(1, math.floor(side / scale / factor)) for side in (height, width))
    elif rows * columns * factor**2 < image["least"]:
        scale = math.sqrt(image["least"] / (height * width))
        rows, columns = (math.ceil(side * scale / factor) for side in (height, width))
    return rows * columns


def _onevision_tokens(image: Json, height: int, width: int) -> int:
    best = select_best_resolution((height, width), image["grids"])
    rows, columns = (image["side"] * (edge // image["size"]) for edge in best)
    if width / height > columns / rows:  # the padding is above and below
        rows -= (rows - int(round(height * columns / width, 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * rows / height, 7))) // 2 * 2
    shrink = math.sqrt(rows * columns / (image["most"] * image["side"] ** 2))
    if shrink > 1.1:
        rows, columns = int(rows // shrink), int(columns // shrink)
    return image["side"] ** 2 + rows * columns + rows
