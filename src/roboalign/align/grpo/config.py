"""Settings of GRPO."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from roboalign.align.engines.vllm.client import VllmConfig
from roboalign.align.rewards.registry import check_reward_name
from roboalign.align.trained import TuneConfig


class RlConfig(TuneConfig):
    """Settings of GRPO. The defaults are the paper's, or EasyR1's if the paper gives none."""

    learning_rate: float = Field(1e-6, gt=0, le=1)
    """Learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Shape of the learning rate (paper: constant). `cosine` ends at 0: otherwise the last noisy
    updates decide where a small model at a high rate ends."""
    prompts_per_rollout: int = Field(512, ge=1)
    """Prompts answered by the same policy, over all devices."""
    prompts_per_update: int = Field(128, ge=1)
    """Prompts per update, over all devices; divides prompts_per_rollout."""
    micro_batch_size: int = Field(16, ge=1)
    """Prompts, each with all its answers, per forward pass and device."""
    samples: int = Field(5, ge=2, le=10_000)
    """Answers per prompt: the group within which rewards are compared."""
    epochs: float = Field(1.0, gt=0, le=1e6)
    """Passes over the prompts; a started rollout is completed."""
    updates: int | None = Field(None, ge=1)
    """Number of updates; if given, it replaces `epochs`. A multiple of the updates per rollout."""
    reward: Annotated[str, AfterValidator(check_reward_name)] = "paper"
    """`paper`: prefix accuracy as in the paper. `decoded`: also the distance of the decoded chunk,
    and 0 for an answer that is not well formed (rewards/actions.py). For questions in words:
    `answer`, right or wrong; `trace`, the distance of the points in the image (rewards/answers.py).
    Or the name of a reward in an installed package, or `path/to/file.py:function` (its arguments:
    rewards/registry.py); the content of the file counts as a setting."""
    kl: float = Field(1e-2, ge=0, le=1e6)
    """Coefficient of the k3 estimate of KL(policy || initial model) in the loss; 0 needs no
    reference model."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(0.3, gt=0)
    """The probability ratio is clipped above at 1 + clip_high."""
    dual_clip: float = Field(3.0, gt=1)
    """For a negative advantage A, the loss of a token is at most -A * dual_clip."""
    temperature: float = Field(1.0, ge=1e-3, le=100)
    """Sampling temperature; the loss uses the same distribution."""
    max_new_tokens: int = Field(512, ge=1, le=1_000_000)
    """Maximum tokens of an answer."""
    replay_weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of an SFT loss on `replay_batch` conversations in each update (not in the paper; 0:
    none)."""
    replay_batch: int = Field(16, ge=1)
    """Replayed conversations per update, over all devices."""
    replay: Literal["language", "all"] = "language"
    """What is replayed: only the questions, or also the directly answered actions."""
    log_every: int = Field(1, ge=1)
    """Updates between two records in metrics.jsonl."""
    save_every: int = Field(10, ge=1)
    """Rollouts between two checkpoints. A killed run resumes from the last one."""
    logged_samples: int = Field(4, ge=0)
    """Decoded answers per rollout in samples.jsonl."""
    vllm: VllmConfig | None = None
    """vLLM servers that sample the answers. Without it, the trainer samples them itself."""

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that decide the weights. For a server, only its presence counts, not
        its settings."""
        settings = super().fingerprint()
        return {**settings, "sampler": "vllm"} if settings.pop("vllm") else settings

    @model_validator(mode="after")
    def _divides(self) -> "RlConfig":
        if self.prompts_per_rollout % self.prompts_per_update:
            raise ValueError(
                f"prompts_per_rollout {self.prompts_per_rollout} is no multiple of prompts_per_update "
                f"{self.prompts_per_update}"
            )
        if self.updates is not None and self.updates % self.updates_per_rollout:
            raise ValueError(
                f"updates {self.updates} is no multiple of {self.updates_per_rollout}, those of a rollout"
            )
        if self.lora is not None and self.lora.dropout:
            raise ValueError(
                "lora.dropout is for SFT: GRPO's ratios compare with the model that sampled, whole"
            )
        return self

    @property
    def updates_per_rollout(self) -> int:
        return self.prompts_per_rollout // self.prompts_per_update
