"""Stage `base`: the pretrained MLLM of the run, with the action tokens added.

There are three sources: the tiny model that ships with the package; a tiny model pretrained here on
the language-only part of the mixture (it stands in for a pretrained MLLM); or the folder of any
Hugging Face image-text-to-text model. If that is a LLaVA-style model whose parts were never trained
together, its connector is first trained on the same part of the mixture.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.align.sft import ConnectorConfig, train_sft
from roboalign.align.vision import pretrain_vision
from roboalign.conversations.conversation import read_conversations
from roboalign.conversations.stored import StoredConversations
from roboalign.core.distributed import leads, wait_for_all
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.core.hub import Kind, resolve
from roboalign.episodes.keypoints import keypoints
from roboalign.mllm.load import Mllm, load_mllm, save_mllm
from roboalign.mllm.processors import bound_pixels
from roboalign.mllm.shipped import builtin_folder
from roboalign.mllm.tiny import build_tiny
from roboalign.questions.registry import asked_types, label_of
from roboalign.run.folder import mixture_folder, run_action_tokens, split_demonstrations
from roboalign.run.stage import Context, in_style

LANGUAGE = ("general", "embodied", "reasoning")


def base(context: Context) -> dict[str, Any]:
    """Write pretrained/ (the original MLLM) and model/ (the same with the action tokens)."""
    recipe = context.recipe
    source = recipe.backbone.source
    ledger: dict[str, Any] = {"source": source}
    if source == "train":
        ledger |= _pretrain(context)
        pretrained = context.folder / "pretrain" / "model"
    elif recipe.backbone.connector is not None:
        ledger |= _connect(context, recipe.backbone.connector)
        pretrained = context.folder / "connector" / "model"
    else:
        pretrained = source_folder(source)
    if not leads():
        return ledger  # only the first process writes what is not training
    n_fast = run_action_tokens(context.run_dir).fast.vocab_size
    mllm = in_style(load_mllm(pretrained), recipe.prompts)
    bound_pixels(
        mllm.processor, recipe.backbone.images.min_pixels, recipe.backbone.images.max_pixels
    )
    mllm = with_action_tokens(mllm, n_fast, recipe.backbone.action_start, recipe.mix.weights)
    save_mllm(mllm, context.folder / "model")
    parameters = sum(p.numel() for p in mllm.model.parameters())
    return {**ledger, "parameters": parameters, "fast_tokens": n_fast}


def with_action_tokens(
    mllm: Mllm, n_fast: int, action_start: str, weights: Mapping[str, float]
) -> Mllm:
    """Add the action tokens to the model.

    `action_start` is `BackboneConfig.action_start`; `weights` are those of the mixture, whose
    labels it refers to.
    """
    mllm.vocabulary = extend_tokenizer(mllm.tokenizer, n_fast)
    labels = (
        sorted({label_of(name) for name in asked_types(weights)})
        if action_start == "labels"
        else ()
    )
    extend_model(mllm.model, mllm.tokenizer, mllm.vocabulary, start_like=labels)
    return mllm


def _pretrain(context: Context) -> dict[str, Any]:
    """Pretrain a new tiny model: first its vision tower on keypoints, then all of it on the
    language-only part of the mixture."""
    recipe, conversations = (
        context.recipe,
        read_conversations(mixture_folder(context.run_dir), "train", kinds=LANGUAGE),
    )
    if not (context.folder / "vision" / "model").exists():
        turns = [turn for conversation in conversations for turn in conversation.turns]
        mllm = build_tiny(
            recipe.backbone.tiny, [text for turn in turns for text in (turn.question, turn.answer)]
        )
        training, heldout = split_demonstrations(context.run_dir, recipe, "align")
        config, camera = recipe.backbone.vision, recipe.mix.camera
        # The held-out frames are of the same tasks. Their queries have the same numbers if every
        # task is in both.
        same = {episode.task for episode in training} == {episode.task for episode in heldout}
        pretrain_vision(
            mllm,
            keypoints(training, camera, config.every),
            keypoints(heldout, camera, 5) if same else None,
            camera,
            config,
            context.folder / "vision",
        )
        if leads():
            save_mllm(mllm, context.folder / "vision" / "model")
            shutil.rmtree(context.folder / "vision" / "checkpoints")
        wait_for_all()
    seen = read_json(context.folder / "vision" / "ledger.json")
    mllm = load_mllm(context.folder / "vision" / "model")
    ledger = train_sft(
        mllm, conversations, recipe.backbone.pretrain, context.folder / "pretrain", label="base"
    )
    return {**ledger, **{f"vision_{name}": value for name, value in seen.items()}}


def _connect(context: Context, config: ConnectorConfig) -> dict[str, Any]:
    """Train the connector of the folder's model on the language-only part of the mixture."""
    folder = context.folder / "connector"
    if (folder / "ledger.json").is_file():  # written last
        return read_json(folder / "ledger.json")
    conversations = StoredConversations(mixture_folder(context.run_dir), "train", kinds=LANGUAGE)
    mllm = context.load(source_folder(context.recipe.backbone.source))
    images = context.recipe.backbone.images
    bound_pixels(mllm.processor, images.min_pixels, images.max_pixels)
    return train_sft(mllm, conversations, config, folder, label="connector")


def source_folder(source: str, kind: Kind = "model") -> Path:
    """Return the folder of the model that `backbone.source` names; a Hub id is downloaded."""
    if source == "builtin":
        return builtin_folder()
    folder = resolve(source, kind, where="backbone.source")
    if not (folder / "config.json").is_file():
        raise RoboAlignError(
            f"`{source}` is no folder of a Hugging Face model",
            where="backbone.source",
            fix="give `builtin`, `train`, a folder with config.json, or a Hub id (owner/name)",
        )
    return folder
