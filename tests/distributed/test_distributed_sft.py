"""SFT in two processes (gloo): the weights of one process, and a run killed in two goes on in one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sft_process import (
    SETTINGS,
    assert_same_training,
    train_until_4,
    train_with_a_budget,
    uneven,
)
from tiny_sft import tiny
from two_ranks import two_ranks

from roboalign.align.sft import train_sft

MADE = Path(__file__).parents[1] / "made"


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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    train_sft(tiny(), uneven(12), SETTINGS, folder)
    return folder


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
