"""Count the tokens of a recipe's stored mixture, which a plan would otherwise assume."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoConfig

from roboalign.actions.vocabulary import extend_tokenizer
from roboalign.align.budget import token_counts
from roboalign.conversations.conversation import Conversation
from roboalign.conversations.stored import StoredConversations
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.episodes.pictures import size_of_file
from roboalign.mllm.load import Mllm, find_vocabulary
from roboalign.mllm.placement import IMAGE_MARK
from roboalign.mllm.presets import image_tokens, meta_model
from roboalign.mllm.processors import bound_pixels, load_processor
from roboalign.plan.model import Assumptions, bounded, existing_folder, named_preset
from roboalign.run.folder import run_action_tokens
from roboalign.run.recipe import Recipe

SAMPLE = 400
"""Conversations that are counted for the means."""
LENGTHIEST = 50
"""Conversations, the longest by their stored lengths, among which the longest is sought."""
CHARACTERS = 4.0
"""Characters a token, where the backbone's tokenizer is not here."""


def with_stored(assumed: Assumptions, recipe: Recipe) -> Assumptions:
    """Return the assumptions with what the recipe's own mixture holds: conversations, their mean
    and greatest number of tokens, and images.

    What was set with --assume stays, and so do all where the mixture is not on this machine. The
    tokens are those that `data mix` stored, if the mixture's `model:` is the recipe's backbone and
    the recipe does not bound its images; else SAMPLE conversations are counted with the backbone's
    processor. Images are included. Raises RoboAlignError if the
    mixture or the processor is damaged.
    """
    if recipe.mixture is None or not Path(recipe.mixture).is_dir():
        return assumed
    folder = Path(recipe.mixture)
    stored = StoredConversations(folder, "train")
    places = np.unique(np.linspace(0, len(stored) - 1, SAMPLE).astype(int)).tolist()
    sample = [stored[place] for place in places]
    tokens = stored_tokens(folder) if _counted_alike(recipe, folder) else None
    if tokens is None:
        far = np.argsort(stored.lengths, kind="stable")[-LENGTHIEST:].tolist()
        counts = np.array(
            count_tokens(recipe, folder, [*sample, *(stored[place] for place in far)])
        )
        mean, longest = counts[: len(sample)].mean(), counts.max()
    else:
        mean, longest = tokens.mean(), tokens.max()
    facts: dict[str, float] = {
        "conversations": len(stored),
        "conversation_tokens": float(mean),
        "longest_tokens": float(longest),
        "conversation_images": float(np.mean([len(one.images) for one in sample])),
    }
    unsaid = {name: v for name, v in facts.items() if name not in assumed.model_fields_set}
    return assumed.model_copy(update=unsaid)


def _counted_alike(recipe: Recipe, mixture: Path) -> bool:
    """Return whether the stored lengths are the recipe's: of its backbone, at its image sizes."""
    settings = read_json(mixture / "manifest.json").get("settings", {})
    bounded_images = recipe.backbone.images.model_dump(exclude_none=True)
    return settings.get("model") == recipe.backbone.source and not bounded_images


def stored_tokens(mixture: Path) -> np.ndarray | None:
    """Return the tokens of every training sample, uint32 [N]; None for a mixture without `model:`.

    Raises RoboAlignError if the file of a shard is missing or damaged.
    """
    shards = sorted(mixture.glob("train*.parquet"))
    files = [shard.with_name(f"{shard.stem}.lengths.npy") for shard in shards]
    if not any(file.exists() for file in files):
        return None
    found = []
    for file in files:
        try:
            found.append(np.load(file, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise RoboAlignError(
                f"the lengths of a shard cannot be read ({error})",
                where=str(file),
                fix="build the mixture again, or copy the whole folder",
            ) from None
    return np.concatenate(found)


def count_tokens(recipe: Recipe, mixture: Path, conversations: Sequence[Conversation]) -> list[int]:
    """Return the tokens of each conversation, its images included; of a backbone that is not here,
    the text's are estimated from its characters."""
    preset = named_preset(recipe.backbone.source)
    if preset is not None:
        image = bounded(preset, recipe)
        return [
            round(_characters(one) / CHARACTERS)
            + sum(image_tokens(image, *size_of_file(data)[::-1]) for data in one.images)
            for one in conversations
        ]
    folder = existing_folder(recipe.backbone.source)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    mllm = Mllm(meta_model(config), load_processor(folder), folder=folder)
    bounds = recipe.backbone.images
    bound_pixels(mllm.processor, bounds.min_pixels, bounds.max_pixels)
    mllm.vocabulary = find_vocabulary(mllm.tokenizer)
    if mllm.vocabulary is None:
        n_fast = run_action_tokens(mixture).fast.vocab_size
        mllm.vocabulary = extend_tokenizer(mllm.tokenizer, n_fast)
    return token_counts(mllm, conversations).tolist()


def _characters(conversation: Conversation) -> int:
    return sum(
        len(turn.question.replace(IMAGE_MARK, "") + turn.answer) for turn in conversation.turns
    )
