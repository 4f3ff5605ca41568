"""Share between SFT and GRPO: `transformers.Trainer` with atomic checkpoints, exact resume and an
error on NaN."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraModel
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from roboalign.align.checkpoints import (
    WeightsDigest,
    checkpoints_in,
    last_checkpoint,
    read_checkpoint_manifest,
    room_on_disk,
    truncate_records,
    weights_fingerprint,
    write_manifest,
)
from roboalign.align.engines.fsdp2 import (
    ShardedTrainer,
    gathered,
    like,
    plain_copy,
    split_adapted,
)
from roboalign.align.lora import adapter_weights, load_adapters, save_adapters
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import open_to_others
from roboalign.core.progress import Progress, say
from roboalign.core.trackers import record_metrics
from roboalign.mllm.processors import save_processor

KEPT = 2  # checkpoints on disk: the newest, and one to fall back on if it is damaged


class AlignTrainer(ShardedTrainer):
    """`transformers.Trainer` on a `Schedule`.

    - A checkpoint is written to a separate folder and renamed: it is complete or absent.
    - A non-finite loss or gradient raises RoboAlignError before the weights change.
    - `metrics.jsonl` gets one record every `log_every` updates, the same ones after a resume.
    - `counters` (what the run has consumed so far) are saved in the checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        dataset: Dataset,
        collate: Any,
        *,
        label: str,
        out_dir: Path,
        fingerprint: dict[str, Any],
        loss: Any = None,
        lora: LoraModel | None = None,
        digest: WeightsDigest = weights_fingerprint,
    ) -> None:
        self.label, self.out_dir, self.lora = label, out_dir, lora
        self.checkpoints = out_dir / "checkpoints"
        self.fingerprint = {**fingerprint, "initial weights": digest(model)}
        # this process's share; totals() returns the sum over all processes
        self.counters: dict[str, float] = {}
        self.staging: Path | None = None
        self.began = 0.0
        self.last_record: dict[str, Any] = {}
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            data_collator=collate,
            compute_loss_func=loss,
        )
        self.remove_callback(transformers.trainer_callback.PrinterCallback)

    # One run: resume, train, account.

    def run(self) -> dict[str, float]:
        """Train from the last complete checkpoint, or from the start, to the end. Returns the
        totals of the whole run."""
        checkpoint = self._last_whole()
        done, seconds, first = 0, 0.0, self.is_world_process_zero()
        if checkpoint is not None:
            manifest = read_checkpoint_manifest(checkpoint)
            done, seconds = manifest["step"], manifest["totals"].pop("seconds")
            # The first process carries the counts of all processes.
            self.counters = {
                name: amount if first else 0 for name, amount in manifest["totals"].items()
            }
            if first:
                say(f"resuming from {checkpoint} (update {done})", self.label)
        self.began = time.monotonic() - seconds
        if first:
            for records in sorted(self.out_dir.glob("*.jsonl")):
                truncate_records(records, done)
        with Progress(self.label, total=self.args.max_steps, start=done, shown=first) as progress:
            self.add_callback(_Advance(progress, self))
            with _quiet():
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return self.totals()

    def _prepare_for_training(self, *arguments: Any, **named: Any) -> Any:
        if self.lora is None or not self.splits:
            return super()._prepare_for_training(*arguments, **named)
        with split_adapted(self.accelerator, self.lora.model):
            return super()._prepare_for_training(*arguments, **named)

    def count(self, **consumed: float) -> None:
        """Add to the counters what this process has just consumed."""
        for name, amount in consumed.items():
            self.counters[name] = self.counters.get(name, 0) + amount

    def totals(self) -> dict[str, float]:
        """Return the counters summed over all processes, and the seconds of the whole run.

        All processes must have the same names. The seconds include those of killed processes up to
        their last checkpoint.
        """
        names = list(self.counters)
        values = torch.tensor(
            [self.counters[name] for name in names], dtype=torch.float64, device=self.args.device
        )
        summed = self.accelerator.reduce(values, reduction="sum").tolist()
        totals = {name: int(v) if v == int(v) else round(v, 3) for name, v in zip(names, summed)}
        return {**totals, "seconds": round(time.monotonic() - self.began, 3)}

    # Errors stop the run.

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self._stop(f"the loss is {loss.item()}")
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        if not torch.isfinite(norm):
            self._stop(f"the gradient norm is {float(norm)}")
        return norm

    def _stop(self, what: str) -> None:
        saved = self._last_whole()
        kept = (
            f"the weights of {saved.name} are kept"
            if saved
            else "no checkpoint had been written yet"
        )
        raise RoboAlignError(
            f"{what}; the run stopped before the weights changed, {kept}",
            where=f"{self.label}, update {self.state.global_step + 1}",
            fix=f"lower learning_rate (now {self.args.learning_rate:g}), or look at the samples of that update.",
        )

    # Checkpoints: written to a separate folder, then renamed.

    def _last_whole(self) -> Path | None:
        return last_checkpoint(self.checkpoints, self.fingerprint)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging or self.checkpoints)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        staging = self.checkpoints / ".partial" / name
        with room_on_disk(
            staging, self.checkpoints / name, self.model, optimizer=True, kept=self._last_whole
        ):
            self._write_checkpoint(model, trial)

    def _write_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.staging = self.checkpoints / ".partial"
        if self.args.should_save:
            shutil.rmtree(self.staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        written = self.staging / f"checkpoint-{self.state.global_step}"
        self.staging = None
        totals = self.totals()
        if not self.args.should_save:
            return
        open_to_others(written)
        write_manifest(written, self.state.global_step, self.fingerprint, totals)
        final = self.checkpoints / written.name
        shutil.rmtree(final, ignore_errors=True)  # it is a damaged one of the same step
        written.replace(final)
        for old in checkpoints_in(self.checkpoints)[:-KEPT]:
            shutil.rmtree(old)

    # With LoRA, a checkpoint has only the adapters; the frozen weights are in the folder that
    # training starts from.

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        if self.lora is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            save_adapters(state_dict or adapter_weights(self.lora.model), str(output_dir))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.lora is None or not self.splits:
            super().save_model(output_dir, _internal_call)
        else:
            self._save(output_dir, adapter_weights(self.lora.model, gathered))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.lora is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_adapters(self.lora.model, resume_from_checkpoint, like)

    # Logging.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Append one record to metrics.jsonl. Trainer's summary at the end is not recorded."""
        if "loss" not in logs:
            return
        self.last_record = {
            "step": self.state.global_step,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": logs["grad_norm"],
            **self.totals(),
            **self.step_metrics(),
        }
        if self.is_world_process_zero():
            record_metrics(self.out_dir / "metrics.jsonl", self.last_record)

    def step_metrics(self) -> dict[str, Any]:
        """Return additional fields for the record of this step."""
        return {}

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # otherwise Trainer counts operations over all parameters at every step

    def save_final(self, processor: Any, folder: Path) -> None:
        """Write the trained model as a Hugging Face folder through a separate folder, then remove
        the checkpoints.

        Merges adapters first, and leaves the model in eval mode with nothing frozen. A sharded model
        keeps its adapters, and what they froze: a complete copy has them merged.
        """
        model: Any = self.model
        if self.lora is not None and not self.splits:
            self.lora.merge_and_unload()
            self.lora = None
        if self.lora is None:
            model.requires_grad_(True)
        model.eval()
        staging = folder.parent / f".{folder.name}.partial"
        with room_on_disk(staging, folder, self.model, optimizer=False, kept=self._last_whole):
            self._write_final(processor, folder, staging)

    def _write_final(self, processor: Any, folder: Path, staging: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with _quiet():
            # every process takes part, since the weights may be sharded
            if self.lora is None:
                self.save_model(str(staging))
            else:
                self._write_merged(staging)
        if self.args.should_save:
            save_processor(processor, staging)
            # a pickle; the settings are in the recipe
            (staging / "training_args.bin").unlink(missing_ok=True)
            open_to_others(staging)
            shutil.rmtree(folder, ignore_errors=True)
            staging.replace(folder)
            shutil.rmtree(self.checkpoints)
        self.accelerator.wait_for_everyone()

    def _write_merged(self, folder: Path) -> None:
        model, device = self.model, torch.device("cpu")
        copy = plain_copy(model, dtype=None, device=device, keep=self.args.should_save)
        if copy is not None:
            copy.save_pretrained(folder)


class _Advance(TrainerCallback):
    """Advance the progress line, and log at every save so that a resumed run averages its loss over
    the same steps."""

    def __init__(self, progress: Progress, trainer: AlignTrainer) -> None:
        self.progress, self.trainer = progress, trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        record = self.trainer.last_record
        self.progress.advance(1, note=f"loss {record['loss']:.4f}" if record else "")
        control.should_log = control.should_log or control.should_save
        return control


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Trainer's advice at the warning level and the progress bars of save_pretrained."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
