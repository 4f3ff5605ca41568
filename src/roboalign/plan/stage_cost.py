"""What a plan is asked about, and what it says of one stage."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from roboalign.align.trained import TuneConfig
from roboalign.plan import arithmetic
from roboalign.plan.arithmetic import BFLOAT16, FLOAT32, Gpu, Memory
from roboalign.plan.model import Assumptions, Model
from roboalign.run.recipe import Recipe


def _no_memory(checkpointing: bool, micro: int, share: int) -> Memory:
    return Memory()


@dataclass(frozen=True)
class StageCost:
    """What one run of a stage takes."""

    names: tuple[str, ...]
    """The stages of this kind: they cost the same."""
    runs: int
    """How often the recipe runs one of them."""
    gpus: int
    """GPUs that one run uses."""
    disk: dict[str, float]
    """Bytes; `checkpoint...` are gone when the stage has ended."""
    checkpointing: bool
    """Gradient checkpointing, as the recipe says."""
    checkpointing_key: str
    """The recipe's setting of it; "" where there is none."""
    micro: int
    """Micro-batch on a GPU, as the recipe says."""
    micro_key: str
    """"" where a GPU takes its part of the batch at once; the parts need not be equal."""
    batch: int
    """What an update takes, over all GPUs."""
    batch_key: str
    replayed: int = 0
    """Samples of `batch` that `batch_key` does not count."""
    whole: bool = False
    """A launch that splits the model over GPUs is refused."""
    work: str = ""
    """In words."""
    tokens: float = 0
    flops: float = 0
    seconds: float = 0
    memory: Callable[[bool, int, int], Memory] = _no_memory
    """Of one GPU under (checkpointing, micro-batch, GPUs over which weights, gradients and optimizer are sharded)."""
    smaller: "tuple[str, StageCost] | None" = None
    """A change of the recipe that takes less memory, and the stage under it."""


@dataclass(frozen=True)
class CostInputs:
    """What a plan is asked about: a recipe with its backbone, on `count` GPUs, under assumptions."""

    recipe: Recipe
    model: Model
    gpu: Gpu
    count: int
    assumed: Assumptions

    @property
    def turns(self) -> float:
        """Mean turns of a conversation of the mixture."""
        return (self.recipe.mix.min_turns + self.recipe.mix.max_turns) / 2

    def conversation_tokens(self, turns: float) -> float:
        """Tokens of a conversation of `turns` turns about one image."""
        each = self.assumed.question_tokens + self.assumed.answer_tokens
        return self.model.image_tokens + turns * each

    @property
    def rollouts(self) -> int:
        """Rollouts of GRPO."""
        config, mix = self.recipe.rl, self.recipe.mix
        if config.updates:
            return config.updates // config.updates_per_rollout
        share = min(mix.rl_share * self.turns, mix.action_share)
        prompts = max(1, int(share * mix.conversations))
        return math.ceil(prompts * config.epochs / config.prompts_per_rollout)

    @property
    def number(self) -> int:
        """Bytes of a weight that is not trained."""
        return BFLOAT16 if self.recipe.hardware.dtype == "bfloat16" else FLOAT32

    def seconds(self, flops: float, *, bf16: bool) -> float:
        """Of `flops` operations over all GPUs."""
        peak = self.gpu.bfloat16 if bf16 else self.gpu.float32
        return arithmetic.compute_seconds(flops, peak, self.assumed.utilisation, self.count)

    def decode_seconds(self, steps: float, bytes_read: float) -> float:
        """Of `steps` decoding steps that each read `bytes_read`."""
        return arithmetic.decode_seconds(steps, bytes_read, self.gpu, self.assumed.bandwidth)


@dataclass(frozen=True)
class Tuning:
    """A training of the MLLM: what is asked, and the settings of SFT or RL."""

    asked: CostInputs
    config: TuneConfig

    @property
    def adapters(self) -> int:
        """Parameters that LoRA trains; 0 without it."""
        if not self.config.lora:
            return 0
        model = self.asked.model
        return arithmetic.lora_parameters(model.numbers, self.config.lora.rank, model.rows)

    @property
    def rank(self) -> int:
        return self.config.lora.rank if self.config.lora else 0

    @property
    def vision_passes(self) -> int:
        """Passes of the vision tower: forward, and a backward pass of twice that where it is trained."""
        return 1 if self.config.freeze_vision or self.config.lora else 3

    @property
    def trainable(self) -> int:
        """Parameters that are trained."""
        b = self.asked.model.numbers
        return self.adapters or b.parameters - (b.vision if self.config.freeze_vision else 0)

    def state(self, share: int, *, checkpointing: bool, passes: int = 1) -> Memory:
        """Weights, gradients and optimizer, sharded over `share` GPUs; `passes` as in arithmetic.lora_state."""
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
        """Bytes that the text layers keep of `tokens` tokens for the backward pass."""
        return arithmetic.activation_bytes(
            self.asked.model.numbers,
            tokens,
            bf16=self.config.bf16,
            checkpointing=checkpointing,
            rank=self.rank,
        )

    def flops(self, tokens: float, length: float, answers: float) -> float:
        """Of training the text layers on `tokens` tokens in sequences of `length`, `answers` of them answers."""
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
        """Bytes of the checkpoints and of the model in the end."""
        parameters = self.asked.model.numbers.parameters
        written = self.adapters or parameters
        number = self.asked.number if self.config.lora else FLOAT32
        return {
            "checkpoints": arithmetic.checkpoint_bytes(written, self.trainable),
            "model": number * parameters,
        }
