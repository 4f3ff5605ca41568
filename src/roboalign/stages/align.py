"""Stages `sft`, `rl`, `extra-sft` and `random`: the backbones that the arms compare."""

from typing import Any

from transformers import AutoModelForImageTextToText, set_seed

from roboalign.align.grpo import train_grpo
from roboalign.align.sft import train_sft
from roboalign.data.mixture import Conversation, read_conversations
from roboalign.mllm.load import Mllm, load_mllm, save_mllm
from roboalign.stages.data import action_tokens, mixture_folder
from roboalign.stages.stage import Context


def sft(context: Context) -> dict[str, Any]:
    """Fine-tunes the base on the whole mixture; writes model/."""
    conversations = read_conversations(mixture_folder(context.run_dir), "train")
    config = context.recipe.sft.model_copy(update={"seed": context.seed})
    mllm = load_mllm(context.run_dir / "base" / "model")
    return train_sft(mllm, conversations, config, context.folder, label=context.name)


def random_backbone(context: Context) -> dict[str, Any]:
    """The base's architecture with fresh weights and its tokenizer: the control that never learned anything."""
    mllm = load_mllm(context.run_dir / "base" / "model")
    set_seed(context.seed)
    model = AutoModelForImageTextToText.from_config(mllm.model.config)
    save_mllm(Mllm(model.eval(), mllm.processor, mllm.vocabulary), context.folder / "model")
    return {"parameters": sum(p.numel() for p in model.parameters())}
