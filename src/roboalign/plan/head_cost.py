"""Estimate what the head costs: one pass for features of the frozen backbone, then the head on
them."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from roboalign.mllm.rounding import token_bytes
from roboalign.plan import arithmetic
from roboalign.plan.arithmetic import BFLOAT16, FLOAT32, Memory
from roboalign.plan.stage_cost import CostInputs, StageCost
from roboalign.run.arms import ARMS
from roboalign.run.benchmark import head_cameras
from roboalign.vla.head import FlowMatchingHead, HeadShape


def head_cost(asked: CostInputs) -> StageCost:
    """Return the cost of the head. Each GPU takes a part of the frames and of the batch. The
    backbone stays loaded."""
    recipe, config, head = asked.recipe, asked.recipe.head_training, _Head(asked)
    frames, length = head.frames, head.length
    work = f"{head.encoded:,.0f} frames of {length:,.0f} tokens, "
    if head.stored:
        work += f"then {config.steps:,} steps of {config.batch_size}"
    else:
        work += (
            f"in {config.steps:,} steps of {config.batch_size}; hidden states of all {frames:,.0f} would take "
            f"{head.size / 1e9:,.3g} GB, more than features.most_gb ({config.features.most_gb:g}): none are stored"
        )
    seconds = asked.seconds(head.feature_flops, bf16=asked.number == BFLOAT16)
    seconds += asked.seconds(head.training_flops, bf16=head.bf16) + head.writing_seconds
    return StageCost(
        names=("head",),
        runs=sum(not (ARMS[arm].tokens or ARMS[arm].online) for arm in recipe.arms)
        * len(recipe.seeds),
        gpus=asked.count,
        work=work,
        tokens=head.encoded * length,
        flops=head.feature_flops + head.training_flops,
        seconds=seconds,
        memory=head.memory,
        disk={
            "features": head.size if head.stored else 0.0,
            "checkpoint": (16 if config.ema else 12) * head.parameters,
            "head": FLOAT32 * head.parameters,
        },
        checkpointing=False,
        checkpointing_key="",
        micro=math.ceil(config.batch_size / asked.count),
        micro_key="",
        batch=config.batch_size,
        batch_key="head_training.batch_size",
    )


@dataclass(frozen=True)
class _Head:
    """The sizes of a recipe's head and of its training data."""

    asked: CostInputs

    @cached_property
    def built(self) -> FlowMatchingHead:
        """Build the head without its weights."""
        recipe, assumed = self.asked.recipe, self.asked.assumed
        shape = HeadShape(
            vlm_width=self.asked.model.numbers.width,
            action_dim=assumed.action_dim,
            state_dim=assumed.state_dim,
            horizon=recipe.tokenizer.horizon,
        )
        with torch.device("meta"):
            return FlowMatchingHead(recipe.head, shape)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.built.parameters())

    @property
    def over_vlm(self) -> int:
        """Return how many of these every token of the backbone is multiplied with."""
        own = sum(p.numel() for p in self.built.vlm_blocks.parameters())
        return own + self.asked.model.numbers.width * self.asked.recipe.head.vlm_inner_width

    @property
    def length(self) -> float:
        """Return the tokens of a prompt. Side by side, the cameras are taken to be as many pixels."""
        images = len(head_cameras(self.asked.recipe))
        prompt = images * self.asked.model.image_tokens + self.asked.assumed.question_tokens
        return prompt + self.reasoning

    @property
    def reasoning(self) -> float:
        """Return the tokens of the reasoning that is read, 0 if none is written."""
        backbone = self.asked.recipe.backbone
        if backbone.reading != "reasoned":
            return 0
        return min(self.asked.assumed.reply_tokens, backbone.max_reasoning_tokens)

    @property
    def writing_seconds(self) -> float:
        """Return the seconds in which a GPU writes the reasonings of its frames."""
        if not self.reasoning:
            return 0
        config = self.asked.recipe.head_training
        batch = config.features.batch_size if self.stored else config.batch_size
        number, b = self.asked.number, self.asked.model.numbers
        read = number * b.multiplied + arithmetic.cache_bytes(b, batch, self.length, number)
        steps = math.ceil(self.encoded / batch / self.asked.count) * self.reasoning
        return self.asked.decode_seconds(steps, read)

    @property
    def sequence(self) -> int:
        """Return the tokens that the head adds to a prompt: actions, future tokens, state."""
        recipe = self.asked.recipe
        own = recipe.tokenizer.horizon + recipe.head.future_tokens + recipe.head.proprioception
        return recipe.head_training.draws * own

    @property
    def frames(self) -> float:
        """Return the number of frames, each augmented copy counted."""
        collect, features = self.asked.recipe.collect, self.asked.recipe.head_training.features
        collected = collect.downstream.episodes_per_task * len(collect.downstream_names())
        collected = self.asked.assumed.episodes or collected
        steps = collected * self.asked.assumed.episode_steps
        return steps / features.every * (features.variants or 1)

    @property
    def size(self) -> float:
        """Return the bytes of the hidden states of all frames."""
        bytes_each = token_bytes(
            self.asked.model.numbers.width, self.asked.recipe.backbone.layer_dtype
        )
        return self.frames * self.length * bytes_each

    @property
    def stored(self) -> bool:
        """Return whether they are stored, not computed in each step."""
        return self.asked.recipe.head_training.features.stores(self.size)

    @property
    def encoded(self) -> float:
        """Return the number of frames that the backbone encodes: each once if they are stored, else
        those of every step and evaluation."""
        config = self.asked.recipe.head_training
        if self.stored:
            return self.frames
        measured = min(config.eval_frames, self.frames) * math.ceil(
            config.steps / config.eval_every
        )
        return config.steps * config.batch_size + measured

    @property
    def feature_flops(self) -> float:
        b, layer = self.asked.model.numbers, self.asked.recipe.backbone.layer
        tokens = self.encoded * self.length
        text = arithmetic.forward_flops(b, tokens, self.length, layers=layer)
        if self.reasoning:  # written by all layers, then read again by the lower ones
            text += arithmetic.forward_flops(b, tokens, self.length)
        seen = self.encoded * self.asked.model.patches * len(head_cameras(self.asked.recipe))
        return text + arithmetic.vision_flops(b, seen * (2 if self.reasoning else 1))

    @property
    def training_flops(self) -> float:
        config = self.asked.recipe.head_training
        rest = (self.parameters - self.over_vlm) * self.sequence
        return 3 * 2 * config.steps * config.batch_size * (self.over_vlm * self.length + rest)

    @property
    def bf16(self) -> bool:
        return self.asked.recipe.head_training.precision == "bfloat16"

    def memory(self, checkpointing: bool, micro: int, share: int) -> Memory:
        """Return memory as StageCost.memory; a head is never sharded."""
        config, parameters, bf16 = self.asked.recipe.head, self.parameters, self.bf16
        state = arithmetic.training_state(parameters, parameters, cast=parameters if bf16 else 0)
        vlm_block = arithmetic.block_bytes(config.vlm_inner_width, bf16=bf16)
        block = arithmetic.block_bytes(config.width, bf16=bf16)
        context = arithmetic.block_context_bytes(config.width, bf16=bf16)
        kept = config.vlm_layers * self.length * vlm_block
        kept += config.layers * self.sequence * block
        kept += config.layers / 2 * self.length * context  # every second block reads the backbone
        return replace(
            state,
            weights=state.weights * (2 if self.asked.recipe.head_training.ema else 1),
            reference=self.asked.number * self.asked.model.numbers.parameters,
            activations=micro * kept,
        )
