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
    samples = recipe.mix.conversations * config.epochs
    if config.max_steps:
        samples = config.max_steps * config.batch_size
    tuning = Tuning(asked, config)
    stage = StageCost(
        names=tuple(names),
        runs=len(names) * len(recipe.seeds),
        gpus=asked.count,
        disk=tuning.disk,
        checkpointing=config.gradient_checkpointing,
        checkpointing_key="sft.gradient_checkpointing",
        micro=config.micro_batch_size,
        micro_key="sft.micro_batch_size",
        batch=config.batch_size,
        batch_key="sft.batch_size",
        whole=bool(config.lora),
    )
    return _trained_on(stage, tuning, samples, asked.turns)


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
    return _trained_on(stage, tuning, samples, 1)


def _trained_on(stage: StageCost, tuning: Tuning, samples: float, turns: float) -> StageCost:
    """Return `stage` with the cost of SFT on `samples` conversations of `turns` turns."""
    asked, config = tuning.asked, tuning.config
    b, length = asked.model.numbers, asked.conversation_tokens(turns)
    answer = turns * asked.assumed.answer_tokens
    tokens = samples * length
    vision = arithmetic.vision_flops(b, samples * asked.model.patches)
    flops = tuning.flops(tokens, length, samples * answer) + vision * tuning.vision_passes

    def memory(checkpointing: bool, micro: int, share: int) -> Memory:
        return replace(
            tuning.state(share, checkpointing=checkpointing),
            activations=tuning.activations(micro * length, checkpointing=checkpointing),
            logits=arithmetic.logit_bytes(b, micro * answer, bf16=config.bf16),
        )

    return replace(
        stage,
        work=f"{samples:,.0f} conversations of {length:,.0f} tokens",
        tokens=tokens,
        flops=flops,
        memory=memory,
        seconds=asked.seconds(flops, bf16=config.bf16),
    )
