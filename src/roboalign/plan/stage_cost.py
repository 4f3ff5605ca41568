"""Define the inputs of a plan, and what it says about one stage."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from roboalign.align.trained import TuneConfig
from roboalign.plan import arithmetic
from roboalign.plan.arithmetic import BFLOAT16, FLOAT32, Gpu, Memory
from roboalign.plan.model import Assumptions, Model, mean_turns
from roboalign.run.recipe import Recipe


def _no_memory(checkpointing: bool, micro: int, share: int) -> Memory:
    return Memory()


@dataclass(frozen=True)
class StageCost:
    """What one run of a stage costs."""

    names: tuple[str, ...]
    """The stages of this kind, which cost the same."""
    runs: int
    """How often the recipe runs one of them."""
    gpus: int
    """GPUs that one run uses."""
    disk: dict[str, float]
    """Bytes; `checkpoint...` are deleted when the stage has ended."""
    checkpointing: bool
    """Gradient checkpointing, as in the recipe."""
    checkpointing_key: str
    """The recipe's key for it; "" if there is none."""
    micro: int
    """Micro-batch on a GPU, as in the recipe."""
    micro_key: str
    """The recipe's key for it; "" if a GPU takes its part of the batch at once (parts need not be
    equal)."""
    batch: int
    """Samples per update, over all GPUs."""
    batch_key: str
    replayed: int = 0
    """Samples of `batch` that `batch_key` does not count."""
    whole: bool = False
    """Whether a launch that shards the model over GPUs is refused."""
    work: str = ""
    """The work in words."""
    tokens: float = 0
    flops: float = 0
    seconds: float = 0
    memory: Callable[[bool, int, int], Memory] = _no_memory
    """Memory of one GPU under (checkpointing, micro-batch, GPUs over which weights, gradients and
    optimizer are sharded)."""
    smaller: "tuple[str, StageCost] | None" = None
    """A change of the recipe that takes less memory, and the stage under it."""


@dataclass(frozen=True)
class CostInputs:
    """The inputs of a plan: a recipe with its backbone, on `count` GPUs, under assumptions."""

    recipe: Recipe
    model: Model
    gpu: Gpu
    count: int
    assumed: Assumptions

    @property
    def turns(self) -> float:
        """Return the mean turns per conversation of the mixture."""
        return mean_turns(self.recipe)

    def conversation_tokens(self, turns: float) -> float:
        """Return the mean tokens of a conversation of the mixture, of `turns` turns."""
        if self.assumed.conversation_tokens:
            return self.assumed.conversation_tokens
        return self.question_tokens(turns, self.assumed.conversation_images)

    def longest_conversation(self, mean: float) -> float:
        """Return the tokens of the longest conversation; `mean` where that is not known."""
        return max(mean, self.assumed.longest_tokens)

    def question_tokens(self, turns: float, images: float = 1) -> float:
        """Return the tokens of `turns` questions with answers about `images` images."""
        each = self.assumed.question_tokens + self.assumed.answer_tokens
        return images * self.model.image_tokens + turns * each

    @property
    def rollouts(self) -> int:
        """Return the number of GRPO rollouts."""
        config, mix = self.recipe.rl, self.recipe.mix
        if config.updates:
            return config.updates // config.updates_per_rollout
        share = min(mix.rl_share * self.turns, mix.action_share)
        prompts = max(1, int(share * mix.conversations))
        return math.ceil(prompts * config.epochs / config.prompts_per_rollout)

    @property
    def number(self) -> int:
        """Return the bytes of a weight that is not trained."""
        return BFLOAT16 if self.recipe.hardware.dtype == "bfloat16" else FLOAT32

    def seconds(self, flops: float, *, bf16: bool) -> float:
        """Return the seconds of `flops` operations over all GPUs."""
        peak = self.gpu.bfloat16 if bf16 else self.gpu.float32
        return arithmetic.compute_seconds(flops, peak, self.assumed.utilisation, self.count)

    def decode_seconds(self, steps: float, bytes_read: float) -> float:
        """Return the seconds of `steps` decoding steps that each read `bytes_read`."""
        return arithmetic.decode_seconds(steps, bytes_read, self.gpu, self.assumed.bandwidth)


@dataclass(frozen=True)
class Tuning:
    """A training of the MLLM: the plan's inputs, and the settings of SFT or RL."""

    asked: CostInputs
    config: TuneConfig

    @property
    def adapters(self) -> int:
        """Return the parameters that LoRA trains; 0 without it."""
        if not self.config.lora:
            return 0
        model = self.asked.model
        return arithmetic.lora_parameters(model.numbers, self.config.lora.rank, model.rows)

    @property
    def rank(self) -> int:
        return self.config.lora.rank if self.config.lora else 0

    @property
    def vision_passes(self) -> int:
        """Return the passes of the vision tower: one forward, plus a backward pass of twice that if
        it is trained."""
        return 1 if self.config.freeze_vision or self.config.lora else 3

    @property
    def trainable(self) -> int:
        """Return the number of trained parameters."""
        b = self.asked.model.numbers
        return self.adapters or b.parameters - (b.vision if self.config.freeze_vision else 0)

    def state(self, share: int, *, checkpointing: bool, passes: int = 1) -> Memory:
        """Return weights, gradients and optimizer, sharded over `share` GPUs; `passes` as in
        arithmetic.lora_state."""
        b, config = self.asked.model.numbers, self.config
        if config.lora:
            return arithmetic.lora_state(
                b,
                self.adapters,
                number=self.asked.number,
                bf16=config.bf16,
                checkpointing=checkpointing,
                passes=passes,
            )
        cast = b.multiplied + (0 if config.freeze_vision else b.vision)
        return arithmetic.training_state(
            b.parameters,
            self.trainable,
            cast=cast if config.bf16 else 0,
            unit=b.unit,
            share=share,
        )

    def activations(self, tokens: float, *, checkpointing: bool) -> float:
        """Return the bytes that the text layers keep of `tokens` tokens for the backward pass."""
        return arithmetic.activation_bytes(
            self.asked.model.numbers,
            tokens,
            bf16=self.config.bf16,
            checkpointing=checkpointing,
            rank=self.rank,
        )

    def flops(self, tokens: float, length: float, answers: float) -> float:
        """Return the operations to train the text layers on `tokens` tokens in sequences of
        `length`, `answers` of them in answers."""
        return arithmetic.training_flops(
            self.asked.model.numbers,
            tokens,
            length,
            answers,
            checkpointing=self.config.gradient_checkpointing,
            adapters=self.adapters,
        )

    @property
    def disk(self) -> dict[str, float]:
        """Return the bytes of the checkpoints and of the final model."""
        parameters = self.asked.model.numbers.parameters
        written = self.adapters or parameters
        number = self.asked.number if self.config.lora else FLOAT32
        return {
            "checkpoints": arithmetic.checkpoint_bytes(written, self.trainable),
            "model": number * parameters,
        }
