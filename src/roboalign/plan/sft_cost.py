"""Estimate what SFT costs, and imitation: SFT on what RL is asked."""

import math
from dataclasses import replace

from roboalign.align.schedule import micro_batch_of
from roboalign.plan import arithmetic
from roboalign.plan.arithmetic import Memory
from roboalign.plan.stage_cost import CostInputs, StageCost, Tuning


def sft_cost(asked: CostInputs, names: list[str]) -> StageCost:
    """Return the cost of the stages `names`, which train as `sft` does."""
    recipe, config = asked.recipe, asked.recipe.sft
    samples = (asked.assumed.conversations or recipe.mix.conversations) * config.epochs
    if config.max_steps:
        samples = config.max_steps * config.batch_size
    budget = config.tokens_per_micro_batch
    tuning = Tuning(asked, config)
    stage = StageCost(
        names=tuple(names),
        runs=len(names) * len(recipe.seeds),
        gpus=asked.count,
        disk=tuning.disk,
        checkpointing=config.gradient_checkpointing,
        checkpointing_key="sft.gradient_checkpointing",
        micro=1 if budget else config.micro_batch_size,
        micro_key="sft.tokens_per_micro_batch" if budget else "sft.micro_batch_size",
        batch=config.batch_size,
        batch_key="sft.batch_size",
        whole=bool(config.lora),
    )
    mean = asked.conversation_tokens(asked.turns)
    longest = asked.longest_conversation(mean)
    stage = _trained_on(stage, tuning, samples, asked.turns, mean, longest, budget)
    if budget and budget > longest:
        least = _trained_on(stage, tuning, samples, asked.turns, mean, longest, math.ceil(longest))
        change = f"--set sft.tokens_per_micro_batch={math.ceil(longest)}"
        stage = replace(stage, smaller=(change, least))
    return stage


def imitation_cost(asked: CostInputs, names: list[str]) -> StageCost:
    """Return the cost of SFT on what RL is asked, split as `run.stages.align.imitate` does it."""
    recipe, config, count = asked.recipe, asked.recipe.rl, asked.count
    replayed = config.replay_batch if config.replay_weight else 0
    batch = config.prompts_per_update + replayed
    samples = asked.rollouts * config.updates_per_rollout * batch
    even = math.ceil(batch / count) * count
    tuning = Tuning(asked, config)
    stage = StageCost(
        names=tuple(names),
        runs=len(names) * len(recipe.seeds),
        gpus=count,
        disk=tuning.disk,
        checkpointing=config.gradient_checkpointing,
        checkpointing_key="rl.gradient_checkpointing",
        micro=micro_batch_of(even, recipe.sft.micro_batch_size, count),
        micro_key="sft.micro_batch_size",
        batch=batch,
        batch_key="rl.prompts_per_update",
        replayed=replayed,
        whole=bool(config.lora),
    )
    length = asked.question_tokens(1)
    return _trained_on(stage, tuning, samples, 1, length, length)


def _trained_on(
    stage: StageCost,
    tuning: Tuning,
    samples: float,
    turns: float,
    mean: float,
    longest: float,
    budget: int | None = None,
) -> StageCost:
    """Return `stage` with the cost of SFT on `samples` conversations of `turns` turns.

    They have `mean` tokens. A micro-batch of `micro` is padded to its `longest`, or holds `budget`
    tokens.
    """
    asked, config = tuning.asked, tuning.config
    b, answer = asked.model.numbers, turns * asked.assumed.answer_tokens
    tokens = samples * mean
    patches = asked.assumed.conversation_images * asked.model.patches
    vision = arithmetic.vision_flops(b, samples * patches)
    flops = tuning.flops(tokens, mean, samples * answer) + vision * tuning.vision_passes

    def memory(checkpointing: bool, micro: int, share: int) -> Memory:
        padded = float(budget) if budget else micro * longest
        return replace(
            tuning.state(share, checkpointing=checkpointing),
            activations=tuning.activations(padded, checkpointing=checkpointing),
            logits=arithmetic.logit_bytes(b, padded / longest * answer, bf16=config.bf16),
        )

    return replace(
        stage,
        work=f"{samples:,.0f} conversations of {mean:,.0f} tokens",
        tokens=tokens,
        flops=flops,
        memory=memory,
        seconds=asked.seconds(flops, bf16=config.bf16),
    )
