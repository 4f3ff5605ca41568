"""Fine-tune an MLLM on conversations (paper, section 3.1); the loss covers only the answers.

The same function trains the tiny base model (language turns only), the SFT model, and the control
that continues SFT on the RL subset.
"""

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from peft import LoraModel
from pydantic import Field
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import is_liger_kernel_available

from roboalign.align.answers import answer_loss, logits_at_answers
from roboalign.align.budget import fitting, token_counts
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
from roboalign.align.packing import Packed, check_budget, pack_updates
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
"""Liger's losses stay off, since logits are computed only at the answers."""


class SftConfig(TuneConfig):
    """Settings of supervised fine-tuning. The defaults are the paper's."""

    learning_rate: float = Field(2e-5, gt=0, le=1)
    """Peak learning rate of AdamW (betas 0.9, 0.999)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: falls to 0, or stays constant."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the updates over which the learning rate rises from 0."""
    epochs: float = Field(1.0, gt=0, le=1e6)
    """Passes over the conversations."""
    max_steps: int | None = Field(None, ge=1)
    """Number of updates; if given, it replaces `epochs`."""
    batch_size: int = Field(32, ge=1)
    """Conversations per update, over all devices."""
    micro_batch_size: int = Field(32, ge=1)
    """Conversations per forward pass and device; for `extra-sft` and `ecot`, the maximum."""
    tokens_per_micro_batch: int | None = Field(None, ge=1)
    """Padded tokens per forward pass and device, images included; if given, it replaces
    `micro_batch_size`. The update is the same; a long conversation gets a pass of its own."""
    max_tokens: int | None = Field(None, ge=1)
    """Leave out conversations of more tokens, images included; `too-long.txt` names them. Default:
    none is left out."""
    freeze_vision: bool = True
    """Keep the vision tower (encoder and projector) unchanged."""
    compile: bool = False
    """Compile the model's layers with torch.compile: minutes at the start, then fused kernels.
    Results differ by rounding. For GPUs."""
    liger: bool = False
    """Set `Trainer`'s `use_liger_kernel`: Liger's kernels for norms, rotary positions and gated
    layers, on a GPU. Needs liger-kernel; no effect on a model class that it does not know. Its
    fused loss stays off."""
    workers: int = Field(0, ge=0, le=1024)
    """Processes per training process that decode images and tokenize. 0: the training process does
    it between its steps, while a GPU waits. The results are the same."""


class ConnectorConfig(SftConfig):
    """Settings of the connector's training, LLaVA's first stage: only the connector from the vision
    encoder to the text model is trained, on answers in words."""

    learning_rate: float = Field(1e-3, gt=0, le=1)
    """Peak learning rate of AdamW (LLaVA's)."""
    freeze_vision: Literal[True] = True
    """Here the encoder, not the projector, is unchanged."""
    lora: None = None
    """Not available here."""

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
        if isinstance(inputs, list):
            return self._packed_step(model, inputs, num_items_in_batch)
        asked = int((inputs["labels"] != IGNORED).sum())
        self.count(
            samples=len(inputs["input_ids"]),
            tokens=int(inputs["attention_mask"].sum()),
            answer_tokens=asked,
        )
        return super().training_step(model, inputs, num_items_in_batch)

    def _packed_step(
        self, model: nn.Module, batches: list[Any], num_items_in_batch: Any
    ) -> torch.Tensor:
        """Accumulate the gradients of all micro-batches of an update; devices sum them once."""
        each = self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        loss = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(batches, start=1):
            whole = each or number == len(batches)
            with nullcontext() if whole else self.accelerator.no_sync(model):
                loss += self.training_step(model, batch, num_items_in_batch)
        return loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        flat = [
            batch
            for sample in batch_samples
            for batch in (sample if isinstance(sample, list) else [sample])
        ]
        return super()._get_num_items_in_batch(flat, device)

    def compute_loss(self, model: nn.Module, inputs: Any, *arguments: Any, **named: Any) -> Any:
        words_only = inputs.pop("words_only", None)
        with logits_at_answers(model, inputs["labels"], words_only, self.action_ids):
            return super().compute_loss(model, inputs, *arguments, **named)


class CompileLayers(TrainerCallback):
    """Compile the layers only after the launch has wrapped the model, since sharding changes their
    classes."""

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

    `out_dir` also gets `metrics.jsonl`, `ledger.json` and, during training, `checkpoints/`. After a
    kill, the same call resumes from the last checkpoint and ends with the same weights as an
    uninterrupted run.

    Returns the ledger: updates, samples (conversations), turns, tokens, answer tokens, seconds,
    parameters, trainable parameters.

    Raises RoboAlignError if there are no conversations, the batch does not divide over the devices,
    the checkpoints have other settings or data, or the loss or gradient is not finite.
    """
    out_dir = Path(out_dir)
    if not conversations:
        raise RoboAlignError(
            "there is no conversation to train on", where=str(out_dir), fix="look at the mixture."
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    counts = None
    if config.max_tokens or config.tokens_per_micro_batch:
        counts = token_counts(mllm, conversations)
    kept = fitting(conversations, counts, config.max_tokens, out_dir, label)
    updates = config.max_steps or math.ceil(len(kept) * config.epochs / config.batch_size)
    lengths, turns = lengths_of(conversations)
    order = kept[sample_order(lengths[kept], config.batch_size, updates, config.seed)].tolist()
    lora = config.choose_trained(mllm)
    if config.bf16 and mllm.device.type == "cpu":
        # PyTorch's fused attention is several times slower in bfloat16 than in float32 on a CPU.
        mllm.model.set_attn_implementation("eager")
    trainer = build_sft_trainer(
        mllm, conversations, config, out_dir, order, updates, label, lora, counts=counts
    )
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
    if len(kept) < len(conversations):
        ledger["too_long"] = len(conversations) - len(kept)
    if trainer.is_world_process_zero():
        write_json(out_dir / "ledger.json", ledger)
    return ledger


def check_liger() -> None:
    """Raise RoboAlignError if liger-kernel is not installed."""
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
    counts: Int[np.ndarray, " conversations"] | None = None,
) -> SftTrainer:
    """Build the trainer of `train_sft`; `order` lists the conversations of all updates in sequence.

    `digest` identifies the initial weights: checkpoints of other weights are not resumed. `counts`,
    the conversations' tokens, are needed with `tokens_per_micro_batch`.
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
    if config.liger:
        check_liger()
        arguments.use_liger_kernel = True
        arguments.liger_kernel_config = LIGER_KEEPS
    arguments.dataloader_num_workers = config.workers
    arguments.dataloader_multiprocessing_context = (
        "fork" if config.workers else None
    )  # forked workers do not copy the model
    check_texts(mllm, conversations)
    items, collate = _batches(mllm, conversations, config, arguments, order, counts, label)
    trainer = SftTrainer(
        mllm,
        arguments,
        items,
        collate,
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


def _batches(
    mllm: Mllm,
    conversations: Sequence[Conversation],
    config: SftConfig,
    arguments: TrainingArguments,
    order: list[int],
    counts: Int[np.ndarray, " conversations"] | None,
    label: str,
) -> tuple[Dataset, Callable[[Any], Any]]:
    """Return the training set in the run's order and its collation; set the number of samples and
    of passes of an update in `arguments`."""
    items, devices = Conversations(mllm, conversations), arguments.world_size
    collate = functools.partial(collate_conversations, mllm, neutral=config.neutral_reasoning)
    budget = config.tokens_per_micro_batch
    if budget is None or counts is None:
        arguments.gradient_accumulation_steps = accumulation_of(
            config.batch_size, config.micro_batch_size, devices
        )
        return Schedule(items, order), collate
    check_budget(conversations, counts, order, budget, config.batch_size, devices, label)
    # One sample of the loader is a device's share of an update.
    arguments.per_device_train_batch_size = 1
    packed = Packed(items, pack_updates(order, counts, config.batch_size, budget, devices))
    return packed, lambda samples: [collate(batch) for batch in samples[0]]
