"""GRPO in two processes (gloo): one process's samples, weights and records; killed in two, it goes on in one."""

from pathlib import Path

import pytest
from grpo_ranks import assert_same_training, train
from two_ranks import two_ranks


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(folder)
    return folder


def test_two_processes_train_as_one(alone: Path, tmp_path: Path) -> None:
    ended = two_ranks(train, tmp_path / "rl", -1, 2, logs=tmp_path)
    assert [one.status for one in ended] == [0, 0], ended
    assert_same_training(tmp_path / "rl", alone)


def test_killed_in_two_processes_goes_on_in_one(alone: Path, tmp_path: Path) -> None:
    ended = two_ranks(train, tmp_path / "rl", 3, 2, logs=tmp_path)
    assert 9 in [one.status for one in ended], ended
    assert [p.name for p in (tmp_path / "rl" / "checkpoints").glob("checkpoint-*")] == [
        "checkpoint-2"
    ]
    train(tmp_path / "rl")
    assert_same_training(tmp_path / "rl", alone)
