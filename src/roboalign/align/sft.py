"""Fine-tune an MLLM on conversations with supervision (paper, section 3.1): the loss is on the
answers only.

The same function trains the tiny base model (language turns only), the SFT model, and the control
that continues SFT on the RL subset.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraModel
from pydantic import Field
from torch import nn
from transformers import TrainerCallback
from transformers.utils import is_liger_kernel_available

from roboalign.align.answers import answer_loss, logits_at_answers
from roboalign.align.checkpoints import WeightsDigest, weights_fingerprint
from roboalign.align.dataset import (
    Conversations,
    action_ids,
    check_texts,
    collate_conversations,
    digest_of,
    lengths_of,
    sample_order,
    worker_errors,
)
from roboalign.align.schedule import Schedule, accumulation_of
from roboalign.align.train_config import training_arguments
from roboalign.align.trained import TuneConfig, keep_connector_alone
from roboalign.align.trainer import AlignTrainer
from roboalign.conversations.conversation import Conversation
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_json
from roboalign.mllm.compiled import compile_layers, restore_layers
from roboalign.mllm.encode import IGNORED
from roboalign.mllm.load import Mllm

LIGER_KEEPS = {"fused_linear_cross_entropy": False, "cross_entropy": False}
"""Liger's losses stay off: logits are computed at the answers only."""


class SftConfig(TuneConfig):
    """Settings of supervised fine-tuning. The defaults are the paper's."""

    learning_rate: float = Field(2e-5, gt=0, le=1)
    """Peak learning rate of AdamW (betas 0.9, 0.999)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up: falls to 0, or stays."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the updates over which the learning rate rises from 0."""
    epochs: float = Field(1.0, gt=0, le=1e6)
    """Passes over the conversations."""
    max_steps: int | None = Field(None, ge=1)
    """Updates; where given, it replaces `epochs`."""
    batch_size: int = Field(32, ge=1)
    """Conversations per update, over all devices."""
    micro_batch_size: int = Field(32, ge=1)
    """Conversations per forward pass and device; in `extra-sft` and `ecot`, at most."""
    freeze_vision: bool = True
    """Keep the vision tower (encoder and projector) as it is."""
    compile: bool = False
    """Compile the model's layers with torch.compile: minutes at the start, then fused kernels; the results differ by
    rounding. For a GPU."""
    liger: bool = False
    """Set `Trainer`'s `use_liger_kernel`: Liger's kernels for norms, rotary positions and gated layers, on a GPU.
    Needs liger-kernel; does nothing for a class of model that it does not know. Its fused loss stays off."""
    workers: int = Field(0, ge=0, le=1024)
    """Processes that decode images and tokenize for each training process; 0: the training process does it itself,
    between its steps. What is learned is the same. A GPU waits for a single process."""


class ConnectorConfig(SftConfig):
    """Settings of the connector's training, LLaVA's first stage: what leads from the vision encoder to the text model
    learns from answers in words, all else stays as it is."""

    learning_rate: float = Field(1e-3, gt=0, le=1)
    """Peak learning rate of AdamW (LLaVA's)."""
    freeze_vision: Literal[True] = True
    """Here the encoder, not the projector, stays as it is."""
    lora: None = None
    """There is none here."""

    def choose_trained(self, mllm: Mllm) -> None:
        keep_connector_alone(mllm.model)


class SftTrainer(AlignTrainer):
    """Next-token loss on the answers, averaged over all answer tokens of an update."""

    def __init__(self, mllm: Mllm, *arguments: Any, **named: Any) -> None:
        self.action_ids = action_ids(mllm)
        super().__init__(mllm.model, *arguments, **named)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        asked = int((inputs["labels"] != IGNORED).sum())
        self.count(
            samples=len(inputs["input_ids"]),
            tokens=int(inputs["attention_mask"].sum()),
            answer_tokens=asked,
        )
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model: nn.Module, inputs: Any, *arguments: Any, **named: Any) -> Any:
        words_only = inputs.pop("words_only", None)
        with logits_at_answers(model, inputs["labels"], words_only, self.action_ids):
            return super().compute_loss(model, inputs, *arguments, **named)


class CompileLayers(TrainerCallback):
    """Compiles the layers once the launch has wrapped the model: splitting it gives them other classes."""

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        self.layers = compile_layers(named["model"], dynamic=None)

    def on_train_end(self, *arguments: Any, **named: Any) -> None:
        restore_layers(self.layers)


def train_sft(
    mllm: Mllm,
    conversations: Sequence[Conversation],
    config: SftConfig,
    out_dir: str | Path,
    *,
    label: str = "sft",
) -> dict[str, Any]:
    """Fine-tune `mllm` in place and write it to `out_dir/model`.

    `out_dir` also gets `metrics.jsonl`, `ledger.json` and, while it trains, `checkpoints/`. Where the process is
    killed, the same call goes on from the last checkpoint and ends with the same weights as an unbroken run.

    Returns the ledger: updates, samples (conversations), turns, tokens, answer tokens, seconds, parameters, trainable
    parameters.
    Raises RoboAlignError for no conversations, for a batch that does not divide over the devices, for checkpoints of
    other settings or data, and where the loss or the gradient is not finite.
    """
    out_dir = Path(out_dir)
    if not conversations:
        raise RoboAlignError(
            "there is no conversation to train on", where=str(out_dir), fix="look at the mixture."
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    updates = config.max_steps or math.ceil(len(conversations) * config.epochs / config.batch_size)
    lengths, turns = lengths_of(conversations)
    order = sample_order(lengths, config.batch_size, updates, config.seed)
    lora = config.choose_trained(mllm)
    if config.bf16 and mllm.device.type == "cpu":
        # PyTorch's fused attention is several times slower in bfloat16 than in float32 on a CPU.
        mllm.model.set_attn_implementation("eager")
    trainer = build_sft_trainer(mllm, conversations, config, out_dir, order, updates, label, lora)
    with worker_errors():
        totals = trainer.run()
    trainable = sum(p.numel() for p in mllm.model.parameters() if p.requires_grad)
    trainer.save_final(mllm.processor, out_dir / "model")
    parameters = sum(p.numel() for p in mllm.model.parameters())
    ledger = {
        "updates": updates,
        **totals,
        "turns": int(turns[order].sum()),
        "parameters": parameters,
        "trainable": trainable,
    }
    if trainer.is_world_process_zero():
        write_json(out_dir / "ledger.json", ledger)
    return ledger


def check_liger() -> None:
    """Raises RoboAlignError where liger-kernel is not installed."""
    if not is_liger_kernel_available():
        raise RoboAlignError(
            "liger-kernel is not installed",
            where="sft.liger",
            fix="pip install 'roboalign[liger]', or set sft.compile instead",
        )


def build_sft_trainer(
    mllm: Mllm,
    conversations: Sequence[Conversation],
    config: SftConfig,
    out_dir: Path,
    order: list[int],
    updates: int,
    label: str,
    lora: LoraModel | None = None,
    digest: WeightsDigest = weights_fingerprint,
) -> SftTrainer:
    """The trainer of `train_sft`; `order` holds the conversations of all updates, one after the other.

    `digest` tells initial weights apart: a checkpoint of others is not resumed.
    """
    arguments = training_arguments(
        config,
        out_dir,
        updates=updates,
        micro_batch=config.micro_batch_size,
        accumulation=1,
        schedule=config.schedule,
        warmup_ratio=config.warmup_ratio,
        save_every=config.save_every,
        on_cpu=mllm.device.type == "cpu",
    )
    arguments.gradient_accumulation_steps = accumulation_of(
        config.batch_size, config.micro_batch_size, arguments.world_size
    )
    if config.liger:
        check_liger()
        arguments.use_liger_kernel = True
        arguments.liger_kernel_config = LIGER_KEEPS
    arguments.dataloader_num_workers = config.workers
    arguments.dataloader_multiprocessing_context = (
        "fork" if config.workers else None
    )  # the model is not copied
    check_texts(mllm, conversations)
    trainer = SftTrainer(
        mllm,
        arguments,
        Schedule(Conversations(mllm, conversations), order),
        functools.partial(collate_conversations, mllm, neutral=config.neutral_reasoning),
        loss=answer_loss,
        label=label,
        out_dir=out_dir,
        fingerprint={**config.fingerprint(), "conversations": digest_of(conversations)},
        lora=lora,
        digest=digest,
    )
    if config.compile:
        trainer.add_callback(CompileLayers())
    return trainer
