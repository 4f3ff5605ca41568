"""Settings of every MLLM training, and `transformers.Trainer`'s arguments made from them."""

from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import TrainingArguments

from roboalign.align.engines.fsdp2 import refuse_deepspeed
from roboalign.core.config import Config, Seed


class TrainConfig(Config):
    """Settings that every training stage of an MLLM has."""

    learning_rate: float = Field(gt=0, le=1)
    """Peak learning rate of AdamW (betas 0.9, 0.999)."""
    weight_decay: float = Field(0.01, ge=0, le=100)
    """AdamW's weight decay; norms and biases are exempt."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients with a larger norm are scaled down to this norm."""
    freeze_vision: bool = False
    """Keep the vision tower (encoder and projector) unchanged."""
    bf16: bool = False
    """Autocast to bfloat16; the weights keep the precision in which they were loaded."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    neutral_reasoning: bool = False
    """Leave action tokens out of the softmax for answers in words after a reasoning. Such answers
    then do not teach whether actions may follow a reasoning; to a model with little pretraining
    they teach that actions never do. Not in the paper."""
    seed: Seed = 0
    """Determines the order of the samples and, in GRPO, the sampling."""
    log_every: int = Field(10, ge=1)
    """Updates between two records in metrics.jsonl."""
    save_every: int = Field(200, ge=1)
    """Updates (SFT) or rollouts (GRPO) between two checkpoints. A killed run resumes from the last
    one."""
    threads: int = Field(0, ge=0, le=4096)
    """CPU threads of torch; 0: leave them unchanged."""

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that decide the weights: checkpoints with others are not resumed."""
        unsaid = {
            "log_every",
            "save_every",
            "threads",
            "workers",
            "compile",
            "liger",
            "logged_samples",
        }
        return self.model_dump(mode="json", exclude=unsaid)


def training_arguments(
    config: TrainConfig,
    out_dir: Path,
    *,
    updates: int,
    micro_batch: int,
    accumulation: int,
    schedule: str,
    warmup_ratio: float,
    save_every: int,
    on_cpu: bool,
) -> TrainingArguments:
    """Return arguments for Trainer that turn off whatever costs time, uses a network or hides a
    fault."""
    refuse_deepspeed()
    arguments = TrainingArguments(
        output_dir=str(out_dir / "checkpoints"),
        max_steps=updates,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
        warmup_steps=int(-(-warmup_ratio * updates // 1)),
        bf16=config.bf16,
        activation_checkpointing=config.gradient_checkpointing,
        seed=config.seed,
        logging_steps=config.log_every,
        save_strategy="steps",
        save_steps=save_every,
        save_total_limit=None,  # rotation happens here, after the rename
        use_cpu=on_cpu,
        report_to=[],
        disable_tqdm=True,
        logging_nan_inf_filter=False,  # a NaN stops the run instead of being replaced
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
    )
    # If one process sees several GPUs, Trainer would spread each batch over them: use one process
    # per device.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
