"""Describe a recipe's backbone for `roboalign plan` before it is there, and the assumptions about
the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from transformers import AutoConfig, PretrainedConfig

from roboalign.align.trained import vision_parameters
from roboalign.core.config import Config, validated
from roboalign.core.errors import RoboAlignError
from roboalign.core.hub import hub_id
from roboalign.mllm.presets import (
    MODEL_PRESETS,
    ModelPreset,
    image_tokens,
    meta_model,
    preset_config,
    preset_of,
)
from roboalign.mllm.processors import bound_pixels, load_processor
from roboalign.mllm.tiny import build_tiny
from roboalign.plan.arithmetic import BackboneSize
from roboalign.run.recipe import Recipe
from roboalign.run.stages.base import source_folder

FAST_PLUS = 2048  # entries of the published FAST tokenizer


class Assumptions(Config):
    """What a plan cannot know. Each can be set with --assume NAME=VALUE."""

    utilisation: float = Field(0.35, gt=0, le=1)
    """Share of the GPU's peak that training reaches (MFU)."""
    bandwidth: float = Field(0.5, gt=0, le=1)
    """Share of the GPU's memory bandwidth that decoding reaches."""
    usable: float = Field(0.92, gt=0, le=1)
    """Share of the GPU's memory that tensors may take; the rest is for CUDA and fragmentation."""
    image_tokens: int = Field(0, ge=0)
    """Tokens per image; 0: as many as the backbone's processor makes of an image of the alignment's
    size."""
    question_tokens: float = Field(45, gt=0)
    """Tokens per question, chat template included."""
    answer_tokens: float = Field(40, gt=0)
    """Tokens per answer of the mixture."""
    conversations: int = Field(0, ge=0)
    """Conversations of the mixture; 0: as many as `mix` says, or as stored."""
    conversation_tokens: float = Field(0, ge=0)
    """Mean tokens of a conversation, images included; 0: as in the stored mixture, or of one image
    with the mean number of turns."""
    longest_tokens: float = Field(0, ge=0)
    """Tokens of the longest conversation, which a micro-batch is padded to; 0: as in the stored
    mixture, or the mean."""
    conversation_images: float = Field(1, ge=0)
    """Mean images per conversation of the mixture."""
    reply_tokens: float = Field(120, gt=0)
    """Mean tokens per sampled answer; `rl.max_new_tokens` bounds memory and decoding steps."""
    asleep: float = Field(2e9, ge=0)
    """Bytes of a GPU that a vLLM server keeps while it sleeps: CUDA's own and captured graphs."""
    episodes: int = Field(0, ge=0)
    """Demonstrations of the head; 0: as many as `collect` says, or as recorded."""
    image_height: int = Field(0, ge=0)
    """Pixels of an image of the alignment; 0: as `collect` says, or as recorded."""
    image_width: int = Field(0, ge=0)
    """The same of its width."""
    episode_steps: float = Field(100, gt=0)
    """Steps per demonstration."""
    action_dim: int = Field(7, ge=1)
    """Numbers per action."""
    state_dim: int = Field(8, ge=1)
    """Numbers per robot state."""


@dataclass(frozen=True)
class Model:
    """The backbone of a recipe with its action tokens."""

    name: str
    numbers: BackboneSize
    image_tokens: int
    patches: int
    """Vision tokens per image before merging."""
    rows: int
    """Number of action tokens."""


def backbone_numbers(model: Any) -> BackboneSize:
    """Return the sizes of a model, whether it has weights or is on `meta`."""
    text, table = model.config.get_text_config(), model.get_output_embeddings().weight
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return BackboneSize(
        parameters=sum(p.numel() for p in model.parameters()),
        vision=sum(p.numel() for p in vision_parameters(model).values()),
        table=table.numel(),
        tied=table is model.get_input_embeddings().weight,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        query=text.num_attention_heads * head,
        key_value=text.num_key_value_heads * head,
        mlp=text.intermediate_size,
        vocabulary=table.shape[0],
        normed_queries=hasattr(model.get_decoder().layers[0].self_attn, "q_norm"),
    )


def model_of(recipe: Recipe, assumed: Assumptions) -> Model:
    """Return the recipe's backbone with action tokens added. A missing folder counts as the preset
    of its name.

    Raises RoboAlignError if there is neither folder nor preset, or the model has no layer
    `backbone.layer`.
    """
    config, name, tokens = _described(recipe, *image_pixels(recipe, assumed))
    numbers = backbone_numbers(meta_model(config))
    if recipe.backbone.layer > numbers.layers:
        raise RoboAlignError(
            f"the model has text layers 1..{numbers.layers}",
            where="backbone.layer",
            fix="choose one of them",
        )
    tokens = assumed.image_tokens or tokens
    rows = len(getattr(config, "action_token_ids", None) or ())
    if not rows:
        # Qwen's table has some hundred spare rows, which the first new tokens fill: these are
        # counted twice here.
        rows = 2 + (FAST_PLUS if recipe.tokenizer.path else recipe.tokenizer.vocab_size)
        numbers = numbers.grown(rows)
    merge = int(
        getattr(config.vision_config, "spatial_merge_size", 0) or getattr(config, "scale_factor", 1)
    )
    return Model(name, numbers, tokens, tokens * merge**2, rows)


def named_preset(source: str) -> ModelPreset | None:
    """Return the preset that `source` names when there is no such folder."""
    return None if (Path(source).expanduser() / "config.json").is_file() else preset_of(source)


def mean_turns(recipe: Recipe) -> float:
    """Return the mean turns per conversation of the mixture."""
    if recipe.demos.of("align") and recipe.mixture is None:
        return 1.0  # an action, and no questions
    return (recipe.mix.min_turns + recipe.mix.max_turns) / 2


def image_pixels(recipe: Recipe, assumed: Assumptions) -> tuple[int, int]:
    """Return height and width of an image of the alignment."""
    size = recipe.collect.align_image_size()
    return assumed.image_height or size, assumed.image_width or size


def _described(recipe: Recipe, height: int, width: int) -> tuple[PretrainedConfig, str, int]:
    """Return the backbone's configuration, name, and tokens for an image of this size."""
    source = recipe.backbone.source
    if source == "train":
        tiny = recipe.backbone.tiny
        config = build_tiny(tiny, ["a"]).model.config
        config.text_config.vocab_size = tiny.vocab_size
        return config, "a new tiny model", (tiny.image_size // tiny.patch_size // tiny.merge) ** 2
    if (preset := named_preset(source)) is not None:
        config = preset_config(next(name for name, one in MODEL_PRESETS.items() if one is preset))
        return config, preset.repository, image_tokens(bounded(preset, recipe), height, width)
    folder = existing_folder(source)
    processor: Any = load_processor(folder)
    bound_pixels(processor, recipe.backbone.images.min_pixels, recipe.backbone.images.max_pixels)
    blank = np.zeros((height, width, 3), dtype=np.uint8)
    read = processor(text=[processor.image_token], images=[[blank]], add_special_tokens=False)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return config, source if hub_id(source) else folder.name, len(read["input_ids"][0])


def bounded(preset: ModelPreset, recipe: Recipe) -> dict[str, Any]:
    """Return how a preset's processor sees images, under the recipe's bounds on pixels.

    Raises RoboAlignError where it has none, as `bound_pixels`.
    """
    asked = recipe.backbone.images
    bounds = {"least": asked.min_pixels, "most": asked.max_pixels}
    given = {name: value for name, value in bounds.items() if value is not None}
    if given and "least" not in preset.image:
        raise RoboAlignError(
            f"{preset.repository} resizes images to fixed sizes and has no bounds on pixels",
            where="backbone.images",
            fix="leave out `images`, or use a model of Qwen2.5-VL or Qwen3-VL",
        )
    return preset.image | given


def existing_folder(source: str) -> Path:
    """Return the folder of a backbone. Raises RoboAlignError if there is none."""
    try:
        return source_folder(source, "settings")
    except RoboAlignError as error:
        known = ", ".join(preset.repository for preset in MODEL_PRESETS.values())
        raise RoboAlignError(
            error.problem,
            where=error.where,
            fix=f"give a folder with config.json, a Hub id, or a name like {known}",
        ) from None


def assumptions(given: list[str]) -> Assumptions:
    """Parse `NAME=VALUE` texts into Assumptions. Raises RoboAlignError on an unknown name or a
    value out of range."""
    pairs = [text.partition("=")[::2] for text in given]
    known = f"known: {', '.join(Assumptions.model_fields)}"
    assumed: Assumptions = validated(Assumptions, dict(pairs), where="--assume", fix=known)
    return assumed
