"""A tiny model, made conversations and the trainings of SFT that several tests run on them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_model import TINY

from roboalign.align.sft import SftConfig, SftTrainer, train_sft
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.mllm.load import Mllm
from roboalign.mllm.tiny import build_tiny

torch.set_num_threads(1)  # a process killed and its successor must add in the same order

CONFIG = {
    "learning_rate": 1e-3,
    "max_steps": 6,
    "batch_size": 4,
    "micro_batch_size": 2,
    "save_every": 2,
    "log_every": 1,
}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def talks(n: int) -> list[Conversation]:
    rng = np.random.default_rng(0)
    words = [
        "the",
        "gripper",
        "is",
        "left",
        "of",
        "red",
        "drawer",
        "handle",
        "move",
        "up",
        "down",
        "now",
    ]

    def turn() -> Turn:
        question = " ".join(rng.choice(words, rng.integers(3, 12)))
        word = str(rng.choice(words))
        return Turn(
            "general",
            "words",
            "direct",
            f"{question}? Answer directly.",
            f"<answer>{word}</answer>",
            word,
        )

    def talk(i: int) -> Conversation:
        image = png(rng.integers(0, 256, (16, 16, 3), np.uint8))
        return Conversation(
            f"talk-{i}",
            "episode",
            i,
            "task",
            (image,),
            tuple(turn() for _ in range(rng.integers(1, 4))),
        )

    return [talk(i) for i in range(n)]


def tiny() -> Mllm:
    return build_tiny(
        TINY, [turn.question + turn.answer for talk in talks(20) for turn in talk.turns]
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_equal_weights(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def stop_in_update_6(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    data: Sequence[Conversation] = (),
    config: SftConfig | None = None,
) -> None:
    """Train up to there, then fail: checkpoints 2 and 4 are left."""

    def step(self: SftTrainer, *arguments: Any) -> torch.Tensor:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return inner(self, *arguments)

    inner = SftTrainer.training_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SftTrainer, "training_step", step)
        train_sft(tiny(), data or talks(10), config or SftConfig(**CONFIG), folder)
    assert sorted(p.name for p in (folder / "checkpoints").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    ledger = train_sft(tiny(), talks(10), SftConfig(**CONFIG), folder)
    assert ledger["updates"] == 6 and ledger["samples"] == 24
    return folder
