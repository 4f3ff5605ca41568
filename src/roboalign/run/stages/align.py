"""Stages `sft`, `rl`, `extra-sft` and `random`: the backbones that the arms compare."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, set_seed

from roboalign.align.dataset import sample_order
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.train import train_grpo
from roboalign.align.schedule import micro_batch_of
from roboalign.align.sft import SftConfig, train_sft
from roboalign.align.trained import TuneConfig
from roboalign.conversations.conversation import Conversation, read_conversations
from roboalign.conversations.prompts import ACTIONS
from roboalign.conversations.stored import StoredConversations
from roboalign.conversations.styles.base import PromptStyle
from roboalign.conversations.styles.registry import style_of
from roboalign.core.distributed import world_size
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.load import Mllm, save_mllm
from roboalign.run.folder import mixture_folder, run_action_tokens
from roboalign.run.stage import Context
from roboalign.run.stages.base import LANGUAGE


def sft(context: Context) -> dict[str, Any]:
    """Fine-tune the base on the whole mixture; write model/."""
    conversations = StoredConversations(mixture_folder(context.run_dir), "train")
    config = context.recipe.sft.model_copy(update={"seed": context.seed})
    mllm = context.load(context.run_dir / "base" / "model")
    return train_sft(mllm, conversations, config, context.folder, label=context.name)


def random_backbone(context: Context) -> dict[str, Any]:
    """Write the base's architecture with new random weights, and its tokenizer: the untrained
    control."""
    mllm = context.load(context.run_dir / "base" / "model")
    set_seed(context.seed)
    model = AutoModelForImageTextToText.from_config(mllm.model.config)
    save_mllm(Mllm(model.eval(), mllm.processor, mllm.vocabulary), context.folder / "model")
    return {"parameters": sum(p.numel() for p in model.parameters())}


def rl(context: Context) -> dict[str, Any]:
    """Train with GRPO from the SFT model on the RL subset; write model/, metrics.jsonl and
    samples.jsonl."""
    return refine(
        context, read_conversations(mixture_folder(context.run_dir), "rl"), context.recipe.rl
    )


def refine(context: Context, prompts: list[Conversation], settings: RlConfig) -> dict[str, Any]:
    """Train with GRPO from the SFT model on these prompts, under the stage's seed."""
    config = settings.model_copy(update={"seed": context.seed})
    replay = _replayed(mixture_folder(context.run_dir), config) if config.replay_weight else []
    mllm = context.load(context.seed_dir / "sft" / "model")
    fast = run_action_tokens(context.run_dir).fast
    return train_grpo(
        mllm, fast, prompts, config, context.folder, replay=replay, label=context.name
    )


def extra_sft(context: Context) -> dict[str, Any]:
    """Train the control of RL: as many updates from the same SFT model, with the same prompts,
    replay and learning rate.

    It imitates the recorded action instead of rewarding the sampled one, in direct mode, because
    the data has no reasoning to imitate.
    """
    recorded = read_conversations(mixture_folder(context.run_dir), "rl")
    style = style_of(context.recipe.prompts)
    return imitate(context, [direct_sample(conversation, style) for conversation in recorded])


def imitate(context: Context, prompts: list[Conversation]) -> dict[str, Any]:
    """Run SFT from the SFT model on what RL is asked, one conversation per prompt: RL's updates,
    order, replay and rate.

    A forward pass has the size of SFT's: `sft.micro_batch_size` conversations, or the next smaller
    number that divides an update.
    """
    mixture, config = mixture_folder(context.run_dir), context.recipe.rl
    rollouts = math.ceil(len(prompts) * config.epochs / config.prompts_per_rollout)
    updates = config.updates or rollouts * config.updates_per_rollout
    order = sample_order(
        [0] * len(prompts), config.prompts_per_update, updates, context.seed
    )  # drawn as train_grpo draws
    conversations = [prompts[index] for index in order]
    batch = config.prompts_per_update
    if config.replay_weight:
        batch += config.replay_batch
        replayed = random.Random(context.seed).choices(
            _replayed(mixture, config), k=updates * config.replay_batch
        )
        conversations += replayed
    micro = micro_batch_of(batch, context.recipe.sft.micro_batch_size, world_size())
    shared = {name: getattr(config, name) for name in TuneConfig.model_fields}
    settings = SftConfig(
        **{**shared, "seed": context.seed},
        max_steps=updates,
        batch_size=batch,
        micro_batch_size=micro,
        tokens_per_micro_batch=context.recipe.sft.tokens_per_micro_batch,
        schedule=config.schedule,
        warmup_ratio=0.0,
        workers=context.recipe.sft.workers,
    )
    mllm = context.load(context.seed_dir / "sft" / "model")
    return train_sft(mllm, conversations, settings, context.folder, label=context.name)


def _replayed(mixture: Path, config: RlConfig) -> Sequence[Conversation]:
    """Return the SFT samples that `rl.replay` names."""
    found = StoredConversations(
        mixture, "train", kinds=LANGUAGE if config.replay == "language" else None
    )
    if not found:
        raise RoboAlignError(
            "the mixture has no answers in words to replay",
            where="rl.replay",
            fix="set rl.replay: all, or rl.replay_weight: 0",
        )
    return found


def direct_sample(conversation: Conversation, style: PromptStyle) -> Conversation:
    """Return an RL prompt as the direct action sample that it was drawn from."""
    asked, question = conversation.turns[0], conversation.direct_question
    assert question is not None
    reply = style.reply(asked.expected, "direct", ACTIONS)
    turn = replace(asked, mode="direct", question=question, answer=reply)
    return replace(conversation, turns=(turn,))
