"""Build what a rehearsal trains on: a recipe's backbone on fake tensors, and samples of the assumed
lengths."""

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig

from roboalign.actions.vocabulary import ActionVocabulary, extend_tokenizer
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.episodes.episode import encode_png
from roboalign.episodes.pictures import rgb_of_file
from roboalign.mllm.encode import IGNORED, encode_conversation
from roboalign.mllm.fake import fake_weights
from roboalign.mllm.load import Mllm, find_vocabulary
from roboalign.mllm.processors import bound_pixels, load_processor
from roboalign.mllm.stand_in import published
from roboalign.mllm.tiny import build_tiny
from roboalign.plan.model import Assumptions, existing_folder, named_preset
from roboalign.run.recipe import Recipe

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


def fake_backbone(recipe: Recipe, rows: int) -> Mllm:
    """Build the recipe's backbone with `rows` action tokens, its weights fake, in `hardware.dtype`
    and eval mode.

    Raises RoboAlignError if its processor is not known.
    """
    config, processor, vocabulary = _parts(recipe, rows - 2)
    images = recipe.backbone.images
    bound_pixels(processor, images.min_pixels, images.max_pixels)
    text = config.get_text_config()
    text.vocab_size = max(text.vocab_size, len(processor.tokenizer))
    config.action_token_ids = sorted(vocabulary.ids)
    with fake_weights():
        model = AutoModelForImageTextToText.from_config(
            config, dtype=getattr(torch, recipe.hardware.dtype)
        )
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return Mllm(model.eval(), processor, vocabulary)


def _parts(recipe: Recipe, n_fast: int) -> tuple[PretrainedConfig, Any, ActionVocabulary]:
    """Return configuration, processor and action tokens of the recipe's backbone."""
    source, texts = recipe.backbone.source, [" ".join(WORDS)] * 8
    if (preset := named_preset(source)) is not None:
        return published(preset, texts, n_fast)
    if source == "train":
        tiny = build_tiny(recipe.backbone.tiny, texts)
        config, processor = tiny.model.config, tiny.processor
    else:
        folder = existing_folder(source)
        config, processor = (
            AutoConfig.from_pretrained(folder, local_files_only=True),
            load_processor(folder),
        )
    there = find_vocabulary(processor.tokenizer)
    return config, processor, there or extend_tokenizer(processor.tokenizer, n_fast)


@dataclass(frozen=True)
class Lengths:
    """Mean token counts of the training data."""

    image: int
    question: float
    answer: float

    def assumed(self) -> dict[str, float]:
        """Return the lengths as a plan's assumptions; they replace those of a stored mixture."""
        return {
            "conversation_tokens": 0,
            "longest_tokens": 0,
            "conversation_images": 1,
            "image_tokens": self.image,
            "question_tokens": self.question,
            "answer_tokens": self.answer,
        }


def talks(
    mllm: Mllm, assumed: Assumptions, side: int, turns: int, count: int
) -> list[Conversation]:
    """Return `count` conversations of `turns` turns about an image of `side` pixels, as long as
    assumed to about one token."""
    question, answer = _words(mllm, assumed, side)
    asked = " ".join(islice(cycle(WORDS), question))
    told = " ".join(islice(cycle(WORDS), answer))
    images, turn = (
        (encode_png(np.zeros((side, side, 3), np.uint8)),),
        Turn("general", "words", "direct", asked, told, told),
    )
    return [
        Conversation(f"talk-{i}", "episode", i, "task", images, (turn,) * turns)
        for i in range(count)
    ]


def _words(mllm: Mllm, assumed: Assumptions, side: int) -> tuple[int, int]:
    """Return how many words make a question and an answer of the assumed tokens, template and end
    token included."""
    image = np.zeros((side, side, 3), np.uint8)

    def sizes(words: int) -> tuple[int, int]:
        text = " ".join(islice(cycle(WORDS), words))
        encoded = encode_conversation(mllm, [{"question": text, "answer": text}], [image])
        spoken = int((encoded.labels != IGNORED).sum())
        return len(encoded.input_ids) - image_tokens_of(mllm, encoded.input_ids) - spoken, spoken

    one, many = sizes(1), sizes(1 + len(WORDS))
    found = []
    for wanted, first, last in zip((assumed.question_tokens, assumed.answer_tokens), one, many):
        found.append(max(1, round(1 + (wanted - first) * len(WORDS) / (last - first))))
    return found[0], found[1]


def image_tokens_of(mllm: Mllm, ids: np.ndarray) -> int:
    """Return how many tokens of a sample stand for its images."""
    return int(np.isin(ids, mllm.processor.image_token_ids).sum())


def tokens_of(mllm: Mllm, conversation: Conversation) -> int:
    """Return the tokens of a conversation, its images included."""
    one = conversation_lengths(mllm, conversation)
    return round(one.image + len(conversation.turns) * (one.question + one.answer))


def conversation_lengths(mllm: Mllm, conversation: Conversation) -> Lengths:
    """Return the lengths of a conversation, per turn."""
    turns = [{"question": turn.question, "answer": turn.answer} for turn in conversation.turns]
    encoded = encode_conversation(
        mllm, turns, [rgb_of_file(image) for image in conversation.images]
    )
    image, answers = (
        image_tokens_of(mllm, encoded.input_ids),
        int((encoded.labels != IGNORED).sum()),
    )
    return Lengths(
        image, (len(encoded.input_ids) - image - answers) / len(turns), answers / len(turns)
    )


def word_token(mllm: Mllm) -> int:
    """Return an ordinary token, which ends no answer."""
    return int(mllm.tokenizer.encode(f" {WORDS[0]}", add_special_tokens=False)[0])
