"""Build models of published shapes before their files are there, from the configuration and a small
tokenizer."""

from collections.abc import Iterable
from typing import Any

from transformers import AutoConfig, PretrainedConfig, Qwen2VLImageProcessorPil

from roboalign.actions.vocabulary import ActionVocabulary, extend_tokenizer
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.presets import ModelPreset
from roboalign.mllm.processors import IMAGE_ONLY
from roboalign.mllm.tiny import CHAT_TEMPLATE, train_tokenizer

VOCABULARY = 1000  # of the small tokenizer
MROPE = {"qwen2_5_vl": [16, 24, 24], "qwen3_vl": [24, 20, 20]}
"""How a head's 64 rotary pairs are split into time, height and width, as published; no shape
depends on it."""
SPELLED = {
    "image_token_id": "image_pad",
    "video_token_id": "video_pad",
    "vision_start_token_id": "vision_start",
    "vision_end_token_id": "vision_end",
}


def published(
    preset: ModelPreset, texts: Iterable[str], n_fast: int
) -> tuple[PretrainedConfig, Any, ActionVocabulary]:
    """Return configuration, processor and action tokens of a Qwen model, with `n_fast` extra rows
    in its embeddings.

    The tokenizer is trained on `texts`. Only the lengths of tokenized texts differ from the
    published model's. Raises RoboAlignError for another family.
    """
    values: dict[str, Any] = dict(preset.config)
    kind = values.pop("model_type")
    if kind not in MROPE:
        raise RoboAlignError(
            f"{preset.repository} is known by its numbers alone, not by its processor",
            where="backbone.source",
            fix="give a folder: its configuration, tokenizer and processor suffice",
        )
    tokenizer = train_tokenizer(texts, VOCABULARY)
    vocabulary = extend_tokenizer(tokenizer, n_fast)
    text = values["text_config"]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": MROPE[kind]}
    values["text_config"] = {
        **text,
        "vocab_size": text["vocab_size"] + len(vocabulary.ids),
        "rope_parameters": rope,
    }
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{spelled}|>") for name, spelled in SPELLED.items()
    }
    patch = values["vision_config"]["patch_size"]
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=preset.image["factor"] // patch,
        size={"shortest_edge": preset.image["least"], "longest_edge": preset.image["most"]},
    )
    processor = IMAGE_ONLY[kind](image_processor, tokenizer, chat_template=CHAT_TEMPLATE)
    return AutoConfig.for_model(kind, **values, **ids), processor, vocabulary
