"""SFT in two processes (gloo): the weights of one process, and a run killed in two goes on in one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sft_process import train_until_4, train_with_a_budget, uneven
from test_align_sft import CONFIG, tiny
from two_ranks import two_ranks

from roboalign.align.sft import SftConfig, train_sft
from roboalign.core.files import read_json, read_jsonl

MADE = Path(__file__).parents[1] / "made"
SETTINGS = SftConfig(**{**CONFIG, "micro_batch_size": 1})


def torchrun(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    folders = [str(MADE), str(MADE.parent / "align"), str(MADE.parent)]
    paths = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*command, str(MADE / "sft_process.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
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


def test_two_processes_of_torchrun_train_as_one(alone: Path, tmp_path: Path) -> None:
    done = torchrun(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training(tmp_path, alone)


def test_two_processes_with_a_budget_of_tokens_train_as_one_without(
    alone: Path, tmp_path: Path
) -> None:
    ended = two_ranks(train_with_a_budget, tmp_path, logs=tmp_path / "logs")
    assert [rank.status for rank in ended] == [0, 0], ended
    assert_same_training(tmp_path, alone)


def test_killed_in_two_processes_goes_on_in_one(alone: Path, tmp_path: Path) -> None:
    killed = two_ranks(train_until_4, tmp_path, logs=tmp_path / "logs")
    assert all(rank.status for rank in killed)
    assert [p.name for p in sorted((tmp_path / "checkpoints").glob("checkpoint-*"))] == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    train_sft(tiny(), uneven(12), SETTINGS, tmp_path)
    assert_same_training(tmp_path, alone)
