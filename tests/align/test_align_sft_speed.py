"""What makes SFT fast changes nothing: worker processes, compiled layers, bfloat16, Liger's kernels."""

import functools
import json
import os
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_sft
import torch
from tiny_sft import CONFIG, assert_equal_weights, stop_in_update_6, talks, tiny, weights
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import trainer

from roboalign.align import sft
from roboalign.align.answers import conversation_loss
from roboalign.align.dataset import Conversations
from roboalign.align.sft import SftConfig, train_sft
from roboalign.conversations.conversation import write_conversations
from roboalign.conversations.stored import StoredConversations
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import collate

unbroken = tiny_sft.unbroken


def test_worker_processes_change_nothing(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored shards and two workers: broken off in update 6, taken up again, with the weights of an unbroken run."""
    write_conversations(tmp_path / "mixture" / "train-00000.parquet", talks(7))
    write_conversations(tmp_path / "mixture" / "train-00001.parquet", talks(10)[7:])
    stored, parallel = (
        StoredConversations(tmp_path / "mixture", "train"),
        SftConfig(**CONFIG, workers=2),
    )
    stop_in_update_6(monkeypatch, tmp_path / "run", stored, parallel)
    train_sft(tiny(), stored, parallel, tmp_path / "run")
    assert_equal_weights(weights(tmp_path / "run"), weights(unbroken))
    ledgers = [
        json.loads((folder / "ledger.json").read_text()) for folder in (tmp_path / "run", unbroken)
    ]
    assert {**ledgers[0], "seconds": 0} == {**ledgers[1], "seconds": 0}


def test_compiled_layers_learn_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`aot_eager` traces as torch.compile's own backend does, which takes minutes on a CPU."""
    one = {**CONFIG, "max_steps": 1, "batch_size": 2, "warmup_ratio": 0}
    train_sft(tiny(), talks(2), SftConfig(**one), tmp_path / "eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    mllm = tiny()
    train_sft(mllm, talks(2), SftConfig(**one, compile=True), tmp_path / "compiled")
    assert not any("forward" in vars(module) for module in mllm.model.modules())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()
    ours, theirs = weights(tmp_path / "compiled"), weights(tmp_path / "eager")
    assert (
        max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5
    )  # an update moves them by 1e-3


def test_products_are_in_bfloat16_and_the_optimizer_is_fused(tmp_path: Path) -> None:
    """Under autocast no product of float32 matrices is left that TF32 could speed up."""
    types = Counter()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, _: Any, arguments: Any = (), named: Any = None
        ) -> Any:
            if function in (
                torch.ops.aten.mm.default,
                torch.ops.aten.addmm.default,
                torch.ops.aten.bmm.default,
            ):
                types[arguments[-1].dtype] += 1
            return function(*arguments, **(named or {}))

    mllm = tiny()
    data = Conversations(mllm, talks(2))
    with Watch(), torch.autocast("cpu", torch.bfloat16):
        conversation_loss(mllm.model, collate(mllm, [data[0], data[1]])).backward()
    assert set(types) == {torch.bfloat16} and types[torch.bfloat16] > 20
    trainer = sft.build_sft_trainer(
        mllm, talks(4), SftConfig(**CONFIG, workers=3), tmp_path, [0, 1, 2, 3], 1, "sft"
    )
    assert (
        trainer.args.optim == "adamw_torch_fused"
        and trainer.get_train_dataloader().num_workers == 3
    )


def test_liger_is_trainers_own_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, one error; with it, Trainer is asked for the kernels without the losses."""
    config = SftConfig(**{**CONFIG, "max_steps": 1}, liger=True)
    asked: list[Any] = []
    monkeypatch.setattr(sft, "is_liger_kernel_available", lambda: False)
    with pytest.raises(RoboAlignError, match=r"^sft\.liger: liger-kernel is not installed"):
        train_sft(tiny(), talks(4), config, tmp_path)
    monkeypatch.setattr(sft, "is_liger_kernel_available", lambda: True)
    monkeypatch.setattr(trainer, "apply_liger_kernel", lambda model, config: asked.append(config))
    train_sft(tiny(), talks(4), config, tmp_path)
    assert asked == [{"fused_linear_cross_entropy": False, "cross_entropy": False}]


def test_a_launch_for_deepspeed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the refusal, each process would train a whole copy of the model on a CPU."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(RoboAlignError, match="asks for DeepSpeed") as caught:
        train_sft(tiny(), talks(4), SftConfig(**CONFIG), tmp_path)
    assert "eight_gpus_fsdp2.yaml" in caught.value.fix


def test_a_workers_error_is_the_one_message(tmp_path: Path) -> None:
    broken = [replace(talk, images=(b"no image",)) for talk in talks(4)]
    messages = []
    for workers in (0, 1):
        with pytest.raises(RoboAlignError) as caught:
            train_sft(tiny(), broken, SftConfig(**CONFIG, workers=workers), tmp_path / str(workers))
        messages.append(
            re.sub("0x[0-9a-f]+", "", str(caught.value))
        )  # where the image lay in memory
    assert messages[0] == messages[1] and "build the mixture again" in messages[0]


def test_a_killed_worker_is_the_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Conversations, "__getitem__", lambda self, index: os.kill(os.getpid(), signal.SIGKILL)
    )
    with pytest.raises(
        RoboAlignError, match=r"^sft.workers: a process that .* has ended .*(killed|exited).*fewer"
    ):
        train_sft(tiny(), talks(4), SftConfig(**CONFIG, workers=1), tmp_path)
