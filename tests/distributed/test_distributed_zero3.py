"""SFT on a model that DeepSpeed splits over two processes (ZeRO-3, gloo), set up by the launch file: the weights and
records of one process, and checkpoints that serve split and whole models alike. Skipped where it is not installed."""

import importlib.util
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from two_ranks import (
    Ended,
    split_model,
    two_ranks,
    with_one_table,
)  # makes the modules of tests/align importable

import test_align_grpo as tiny_grpo  # isort: skip
import test_align_sft as tiny_sft  # isort: skip
import test_distributed_sft as sft_runs  # isort: skip
from safetensors.torch import load_file

from roboalign.align import sft as sft_module
from roboalign.align.answers import answer_loss
from roboalign.align.checkpoints import _needed
from roboalign.align.engines import zero3
from roboalign.align.engines.fsdp2 import whole_weights
from roboalign.align.grpo.trainer import RlConfig, train_grpo
from roboalign.align.sft import SftTrainer, train_sft
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl
from roboalign.mllm.load import Mllm, load_mllm

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)
# Vision tower and all: the settings of the launch that matter most on a GPU, and a norm that is always clipped.
ALL_ON = {
    "bf16": True,
    "gradient_checkpointing": True,
    "freeze_vision": True,
    "max_grad_norm": 0.05,
}


class Killed(Exception):
    """Stands for a kill of a training in the test's own process."""


def tied() -> Mllm:
    return with_one_table(tiny_sft.tiny())


def split_small_weights(patch: pytest.MonkeyPatch) -> None:
    """DeepSpeed keeps weights of less than 100,000 numbers whole by default: all that a tiny model has."""
    prepare = zero3.prepare_accelerator

    def all_split(accelerator: Any, model: torch.nn.Module, arguments: Any) -> None:
        prepare(accelerator, model, arguments)
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    patch.setattr(zero3, "prepare_accelerator", all_split)


def sft(folder: Path, stop_at: int = -1, split: bool = True, all_on: bool = False) -> int:
    """Six updates; in update `stop_at` it is killed."""
    torch.set_num_threads(1)
    mllm = tied() if all_on else tiny_sft.tiny()
    settings = sft_runs.SETTINGS.model_copy(update=ALL_ON if all_on else {})
    settings.choose_trained(mllm)
    room = _needed(mllm.model, optimizer=True)
    inner = SftTrainer.training_step

    def step(self: SftTrainer, model: torch.nn.Module, *arguments: Any) -> torch.Tensor:
        assert self.args.world_size == 1 + split
        if split:
            from deepspeed import DeepSpeedEngine

            assert isinstance(model, DeepSpeedEngine)
            assert all(
                p.ds_tensor.numel() <= (p.ds_numel + 1) // 2 for p in self.model.parameters()
            )
            assert sum(p.numel() for p in self.model.parameters()) < 0.1 * sum(
                p.ds_numel for p in model.parameters()
            )
            assert _needed(self.model, optimizer=True) == room
        if self.state.global_step == stop_at:
            if split:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed
        return inner(self, model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SftTrainer, "training_step", step)
        if split:
            split_model("zero3")
            split_small_weights(patch)
        train_sft(mllm, sft_runs.uneven(12), settings, folder)
    if split:
        dist.barrier()
    return 0


def assert_ended_well(ended: list[Ended]) -> None:
    assert [one.status for one in ended] == [0, 0], [one.stderr[-3000:] for one in ended]


def assert_same_training(folder: Path, alone: Path) -> None:
    sft_runs.assert_same_training(folder, alone)
    for record, expected in zip(
        read_jsonl(folder / "metrics.jsonl"), read_jsonl(alone / "metrics.jsonl"), strict=True
    ):
        assert record["lr"] == pytest.approx(expected["lr"], rel=1e-6), record["step"]
    ours, theirs = (read_json(one / "ledger.json") for one in (folder, alone))
    assert (ours["parameters"], ours["trainable"]) == (theirs["parameters"], theirs["trainable"])
    assert load_mllm(folder / "model").model.dtype == torch.float32
    assert not (folder / "checkpoints").exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    sft(folder, split=False)
    return folder


@needs_deepspeed
def test_killed_when_split_goes_on_split_and_whole(alone: Path, tmp_path: Path) -> None:
    ended = two_ranks(sft, tmp_path / "split", 5, logs=tmp_path)
    assert -signal.SIGKILL in [one.status for one in ended], ended
    checkpoints = sorted((tmp_path / "split" / "checkpoints").iterdir())
    assert [one.name for one in checkpoints if not one.name.startswith(".")] == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    written = {file.name for file in checkpoints[-1].iterdir()}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt"} <= written
    assert not [
        name for name in written if "zero" in name or "global_step" in name
    ]  # no file of DeepSpeed's own
    shutil.copytree(tmp_path / "split", tmp_path / "whole")
    ended = two_ranks(sft, tmp_path / "split", logs=tmp_path)
    assert_ended_well(ended)
    assert "resuming" in ended[0].stderr
    assert_same_training(tmp_path / "split", alone)
    sft(tmp_path / "whole", split=False)
    assert_same_training(tmp_path / "whole", alone)


@needs_deepspeed
def test_killed_when_whole_goes_on_split(alone: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        sft(tmp_path / "sft", stop_at=3, split=False)
    assert_ended_well(two_ranks(sft, tmp_path / "sft", logs=tmp_path))
    assert_same_training(tmp_path / "sft", alone)


@needs_deepspeed
def test_bfloat16_with_checkpointing_a_frozen_tower_and_a_tied_table(tmp_path: Path) -> None:
    """Rounding to bfloat16 differs, and where a gradient is near 0, Adam's step has the sign of that rounding: the
    updates are compared as a whole. Gradients are clipped in each."""
    assert_ended_well(two_ranks(sft, tmp_path / "split", -1, True, True, logs=tmp_path))
    sft(tmp_path / "whole", split=False, all_on=True)
    start = dict(tied().model.named_parameters())
    split, whole = (
        load_file(tmp_path / one / "model" / "model.safetensors") for one in ("split", "whole")
    )
    assert split.keys() == whole.keys() and {value.dtype for value in split.values()} == {
        torch.float32
    }
    for name, value in split.items():
        if "visual" in name:
            assert torch.equal(value, start[name]), name
    with torch.no_grad():
        moved = torch.cat([(whole[name] - start[name]).flatten() for name in whole]).norm()
        apart = torch.cat([(whole[name] - split[name]).flatten() for name in whole]).norm()
    assert moved > 0.1 and apart < 0.05 * moved
    ours, theirs = (read_jsonl(tmp_path / one / "metrics.jsonl") for one in ("split", "whole"))
    for record, expected in zip(ours, theirs, strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-2)
        assert (
            record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=5e-2)
            and record["grad_norm"] > 0.05
        )


def not_finite(folder: Path, what: str) -> int:
    """In the third update the loss, or its gradient alone, is no number; the weights are then those of the second."""
    torch.set_num_threads(1)
    split_model("zero3")
    calls = 0

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        value = answer_loss(outputs, labels, num_items_in_batch)
        if calls <= 4:  # two micro-batches an update
            return value
        zero = (outputs.logits * 0).sum()
        return value * float("nan") if what == "loss" else value + zero.abs().sqrt()

    mllm = tiny_sft.tiny()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft_module, "answer_loss", loss)
        split_small_weights(patch)
        with pytest.raises(RoboAlignError) as stopped:
            train_sft(mllm, sft_runs.uneven(12), sft_runs.SETTINGS, folder)
    print(stopped.value)
    weights = whole_weights(mllm.model, keep=True)
    stored = load_file(folder / "checkpoints" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in stored.items())
    dist.barrier()
    return 0


@needs_deepspeed
@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_number_that_is_none_stops_it_before_the_weights_change(
    tmp_path: Path, what: str
) -> None:
    ended = two_ranks(not_finite, tmp_path / "sft", what, logs=tmp_path)
    assert_ended_well(ended)
    for one in ended:
        assert f"sft, update 3: the {what} is " in one.stdout
        assert (
            "stopped before the weights changed, the weights of checkpoint-2 are kept" in one.stdout
        )


def grpo(folder: Path) -> int:
    split_model("zero3")
    with pytest.raises(
        RoboAlignError,
        match=r"^rl: GRPO gathers a model that is split by FSDP2, not by DeepSpeed Fix",
    ):
        train_grpo(
            tiny_grpo.tiny(),
            tiny_grpo.fast(),
            tiny_grpo.prompts(),
            RlConfig(**tiny_grpo.CONFIG),
            folder,
        )
    dist.barrier()
    return 0


@needs_deepspeed
def test_grpo_is_refused(tmp_path: Path) -> None:
    assert_ended_well(two_ranks(grpo, tmp_path / "rl", logs=tmp_path))


def test_without_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(zero3, "is_deepspeed_available", lambda: False)
    with pytest.raises(
        RoboAlignError,
        match="DeepSpeed, which is not installed Fix: install requirements-deepspeed",
    ):
        train_sft(tiny_sft.tiny(), sft_runs.uneven(12), sft_runs.SETTINGS, tmp_path)


def launched(stage: int = 3, processes: int = 2) -> Any:
    plugin = SimpleNamespace(zero_stage=stage)
    return SimpleNamespace(
        distributed_type="DEEPSPEED",
        num_processes=processes,
        state=SimpleNamespace(deepspeed_plugin=plugin),
    )


@pytest.mark.parametrize("asked", [launched(stage=2), launched(processes=1)])
def test_other_stages_and_one_process_are_refused(asked: Any) -> None:
    with pytest.raises(
        RoboAlignError, match="not for ZeRO-3 in several processes Fix: launch several"
    ):
        zero3.prepare_accelerator(asked, torch.nn.Linear(1, 1), SimpleNamespace())  # type: ignore[arg-type]


def test_bfloat16_weights_are_refused() -> None:
    model = torch.nn.Linear(1, 1).bfloat16()
    with pytest.raises(
        RoboAlignError,
        match=r"^hardware.dtype: ZeRO-3 trains float32 weights, and some are torch.bf",
    ):
        zero3.prepare_accelerator(launched(), model, SimpleNamespace())  # type: ignore[arg-type]
