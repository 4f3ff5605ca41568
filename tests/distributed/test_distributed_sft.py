"""SFT in two processes (gloo): the weights of one process, and a run killed in two goes on in one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from roboalign.core.files import read_json, read_jsonl

MADE = Path(__file__).parents[1] / "made"
from sft_process import uneven  # noqa: E402
from test_align_sft import CONFIG, tiny  # noqa: E402

from roboalign.align.sft import SftConfig, train_sft  # noqa: E402

SETTINGS = SftConfig(**{**CONFIG, "micro_batch_size": 1})


def torchrun(folder: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(MADE / "sft_process.py"),
        str(folder),
        "2",
        *settings,
    ]
    folders = [str(MADE), str(MADE.parent / "align"), str(MADE.parent)]
    paths = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    train_sft(tiny(), uneven(12), SETTINGS, folder)
    return folder


def assert_same_training(folder: Path, alone: Path) -> None:
    ours, theirs = weights(folder), weights(alone)
    assert ours.keys() == theirs.keys()
    start = dict(tiny().model.named_parameters())
    moved = max(float((theirs[name] - start[name]).abs().max()) for name in theirs if name in start)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    assert moved > 1e-3
    assert apart < 0.01 * moved, f"{apart} apart after moving by {moved}"
    for record, expected in zip(
        read_jsonl(folder / "metrics.jsonl"), read_jsonl(alone / "metrics.jsonl"), strict=True
    ):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-3), record["step"]
        assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-2), record["step"]
    one, two = read_json(alone / "ledger.json"), read_json(folder / "ledger.json")
    for name in ("updates", "samples", "tokens", "answer_tokens", "turns"):
        assert two[name] == one[name], name


def test_two_processes_train_as_one(alone: Path, tmp_path: Path) -> None:
    done = torchrun(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training(tmp_path, alone)


def test_two_processes_with_a_budget_of_tokens_train_as_one_without(
    alone: Path, tmp_path: Path
) -> None:
    done = torchrun(tmp_path, "tokens_per_micro_batch=75")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training(tmp_path, alone)


def test_killed_in_two_processes_goes_on_in_one(alone: Path, tmp_path: Path) -> None:
    killed = torchrun(tmp_path, STOP_AT="4")
    assert killed.returncode != 0
    assert [p.name for p in sorted((tmp_path / "checkpoints").glob("checkpoint-*"))] == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    train_sft(tiny(), uneven(12), SETTINGS, tmp_path)
    assert_same_training(tmp_path, alone)
