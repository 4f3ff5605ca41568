"""SFT: the loss, the order of the samples, exact resume after SIGKILL, and what stops a run."""

import io
import json
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_process import die_in_update, status_of
from PIL import Image
from small_disk import files_up_to
from tiny_sft import CONFIG, assert_equal_weights, stop_in_update_6, talks, tiny, weights

from roboalign.align import sft
from roboalign.align.answers import conversation_loss
from roboalign.align.checkpoints import MANIFEST, last_checkpoint
from roboalign.align.dataset import Conversations, sample_order
from roboalign.align.schedule import accumulation_of
from roboalign.align.sft import SftConfig, SftTrainer, train_sft
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from roboalign.mllm.encode import Prompt, collate
from roboalign.mllm.generate import generate
from roboalign.mllm.load import load_mllm

unbroken = tiny_sft.unbroken


def test_loss_at_answers_is_hugging_faces_loss() -> None:
    mllm = tiny()
    data = Conversations(mllm, talks(3))
    batch = collate(mllm, [data[i] for i in range(3)])
    torch.testing.assert_close(conversation_loss(mllm.model, batch), mllm.model(**batch).loss)


def test_first_update_is_a_hand_written_adamw_step(tmp_path: Path) -> None:
    """Accumulated micro-batches average over all answer tokens of the update, not over the micro-batches' means."""
    data, settings_ = (
        talks(4),
        SftConfig(**{**CONFIG, "max_steps": 1, "warmup_ratio": 0, "freeze_vision": False}),
    )
    ours, reference = tiny(), tiny()
    train_sft(ours, data, settings_, tmp_path)
    encoded = [Conversations(reference, data)[i] for i in range(4)]
    model = reference.model.train()
    model(**collate(reference, encoded)).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    # AdamW's first step moves each weight by about lr * sign(gradient): compare the weights with a clear gradient.
    decayed = {n for n, p in model.named_parameters() if p.ndim > 1}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    compared = 0
    for name, parameter in ours.model.named_parameters():
        gradient = dict(model.named_parameters())[name].grad
        if gradient is None:
            continue
        kept = before[name] * (1 - 1e-3 * 0.01) if name in decayed else before[name]
        expected = kept - 1e-3 * gradient / (gradient.abs() + 1e-8)
        clear = gradient.abs() > 1e-5
        compared += int(clear.sum())
        torch.testing.assert_close(parameter.detach()[clear], expected[clear], atol=2e-6, rtol=1e-4)
    assert compared > 1000


def test_vision_is_frozen(unbroken: Path) -> None:
    before, after = tiny().model.state_dict(), weights(unbroken)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and not any(".visual." in name for name in changed)
    assert all(p.requires_grad for p in load_mllm(unbroken / "model").model.parameters())


def test_the_folder_can_be_served(unbroken: Path) -> None:
    processor = json.loads((unbroken / "model" / "video_preprocessor_config.json").read_text())
    assert processor["video_processor_type"] == "Qwen3VLVideoProcessor"


def train_until_killed(folder: Path) -> None:
    die_in_update(SftTrainer, 4)
    train_sft(tiny(), talks(10), SftConfig(**CONFIG), folder)


def test_killed_run_ends_like_an_unbroken_one(unbroken: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of update 5, in a process of its own; then the same call again."""
    assert status_of(train_until_killed, tmp_path) == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    ledger = train_sft(tiny(), talks(10), SftConfig(**CONFIG), tmp_path)
    assert_equal_weights(weights(tmp_path), weights(unbroken))
    whole = json.loads((unbroken / "ledger.json").read_text())
    assert {**ledger, "seconds": 0} == {**whole, "seconds": 0}
    timeless = [
        [
            {k: v for k, v in record.items() if k != "seconds"}
            for record in read_jsonl(folder / "metrics.jsonl")
        ]
        for folder in (tmp_path, unbroken)
    ]
    assert timeless[0] == timeless[1] and [record["step"] for record in timeless[0]] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_damaged_last_checkpoint_is_passed_over(
    unbroken: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_in_update_6(monkeypatch, tmp_path)
    last = tmp_path / "checkpoints" / "checkpoint-4"
    (last / "optimizer.pt").write_bytes((last / "optimizer.pt").read_bytes()[:-100])
    train_sft(tiny(), talks(10), SftConfig(**CONFIG), tmp_path)
    printed = capsys.readouterr().err
    assert (
        "checkpoint-4: ignored, optimizer.pt has" in printed
        and "checkpoint-2 (update 2)" in printed
    )
    assert_equal_weights(weights(tmp_path), weights(unbroken))


def test_interrupted_write_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash while the optimizer is written: what stands under checkpoint-* is whole."""

    def crash(self: SftTrainer, folder: str) -> None:
        (Path(folder) / "optimizer.pt").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(SftTrainer, "_save_optimizer_and_scheduler", crash)
    with pytest.raises(OSError, match="disk full"):
        train_sft(tiny(), talks(10), SftConfig(**CONFIG), tmp_path)
    assert last_checkpoint(tmp_path / "checkpoints", {}) is None
    assert not list((tmp_path / "checkpoints").glob("checkpoint-*"))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_at_a_checkpoint(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It stops with one message, what was written before stays, and with room the run ends like an unbroken one."""

    def write(self: SftTrainer, *arguments: Any) -> None:
        if self.state.global_step < 4:
            return inner(self, *arguments)
        with files_up_to((tmp_path / "checkpoints" / "checkpoint-2" / name).stat().st_size - 1):
            return inner(self, *arguments)

    inner = SftTrainer._write_checkpoint
    expected = (
        r"checkpoints/checkpoint-4: cannot be written \(.+\): checkpoint-4 takes about 0\.00[01] GB, and "
        r"\d+\.\d+ GB are free Fix: free space.*resumes from checkpoint-2, which is complete\.$"
    )
    with monkeypatch.context() as patch, pytest.raises(RoboAlignError, match=expected):
        patch.setattr(SftTrainer, "_write_checkpoint", write)
        train_sft(tiny(), talks(10), SftConfig(**CONFIG), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").rglob("checkpoint-*")] == [
        "checkpoint-2"
    ]
    train_sft(tiny(), talks(10), SftConfig(**CONFIG), tmp_path)
    assert_equal_weights(weights(tmp_path), weights(unbroken))


def test_a_full_disk_at_the_end(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: SftTrainer, *arguments: Any) -> None:
        with files_up_to(50_000):
            inner(self, *arguments)

    inner = SftTrainer._write_final
    expected = r"model: cannot be written .*resumes from checkpoint-6, which is complete\.$"
    with monkeypatch.context() as patch, pytest.raises(RoboAlignError, match=expected):
        patch.setattr(SftTrainer, "_write_final", write)
        train_sft(tiny(), talks(10), SftConfig(**CONFIG), tmp_path)
    assert not (tmp_path / "model").exists() and not (tmp_path / ".model.partial").exists()
    ledger = train_sft(tiny(), talks(10), SftConfig(**CONFIG), tmp_path)
    assert_equal_weights(weights(tmp_path), weights(unbroken))
    assert ledger["samples"] == 24 and len(read_jsonl(tmp_path / "metrics.jsonl")) == 6


def test_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_in_update_6(monkeypatch, tmp_path)
    assert (
        json.loads((tmp_path / "checkpoints" / "checkpoint-4" / MANIFEST).read_text())["step"] == 4
    )
    with pytest.raises(RoboAlignError, match=r"another learning_rate.*start over"):
        train_sft(tiny(), talks(10), SftConfig(**{**CONFIG, "learning_rate": 2e-3}), tmp_path)
    with pytest.raises(RoboAlignError, match="another conversations"):
        train_sft(tiny(), talks(9), SftConfig(**CONFIG), tmp_path)
    other = tiny()
    other.model.get_input_embeddings().weight.data += 1
    with pytest.raises(RoboAlignError, match="another initial weights"):
        train_sft(other, talks(10), SftConfig(**CONFIG), tmp_path)
    train_sft(
        tiny(), talks(10), SftConfig(**{**CONFIG, "log_every": 2, "threads": 1}), tmp_path
    )  # these do not matter
    assert not (tmp_path / "checkpoints").exists()


def test_another_micro_batch_goes_on_from_a_checkpoint(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another number of processes does: it changes how sums round, and no more."""
    stop_in_update_6(monkeypatch, tmp_path)
    ledger = train_sft(tiny(), talks(10), SftConfig(**{**CONFIG, "micro_batch_size": 4}), tmp_path)
    assert ledger["samples"] == 24
    ours, theirs = weights(tmp_path), weights(unbroken)
    assert (
        max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5
    )  # an update moves them by 1e-3


def test_nan_stops_before_the_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mllm, calls = tiny(), [0]
    inner = sft.answer_loss

    def poisoned(
        outputs: object, labels: torch.Tensor, num_items_in_batch: torch.Tensor
    ) -> torch.Tensor:
        calls[0] += 1
        loss = inner(outputs, labels, num_items_in_batch)
        return (
            loss * math.nan if calls[0] == 2 * 3 + 1 else loss
        )  # the first micro-batch of update 4

    monkeypatch.setattr(sft, "answer_loss", poisoned)
    with pytest.raises(
        RoboAlignError,
        match=r"sft, update 4: the loss is nan.*checkpoint-2 are kept.*learning_rate",
    ):
        train_sft(mllm, talks(10), SftConfig(**CONFIG), tmp_path)
    assert all(torch.isfinite(p).all() for p in mllm.model.parameters())
    assert [record["step"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_infinite_gradient_stops(tmp_path: Path) -> None:
    mllm = tiny()
    mllm.model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        RoboAlignError, match=r"update 1: the gradient norm is (nan|inf).*no checkpoint"
    ):
        train_sft(mllm, talks(10), SftConfig(**CONFIG), tmp_path)


def test_learns(tmp_path: Path) -> None:
    """Two conversations by heart: the loss falls to near nothing, and greedy decoding repeats the answers."""
    mllm = tiny()
    data = [talk for talk in talks(20) if len(talk.turns) == 1][:2]
    config = SftConfig(
        learning_rate=1e-2, max_steps=50, batch_size=2, micro_batch_size=2, freeze_vision=False
    )
    train_sft(mllm, data, config, tmp_path)
    assert read_jsonl(tmp_path / "metrics.jsonl")[-1]["loss"] < 0.05
    prompts = [
        Prompt(talk.turns[0].question, (np.asarray(Image.open(io.BytesIO(talk.images[0]))),))
        for talk in data
    ]
    spoken = generate(mllm, prompts, max_new_tokens=20, temperature=0)
    for talk, answers in zip(data, spoken.tokens):
        assert talk.turns[0].answer in mllm.tokenizer.decode(answers[0])


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(RoboAlignError, match="no conversation"):
        train_sft(tiny(), [], SftConfig(**CONFIG), tmp_path)
    with pytest.raises(
        RoboAlignError, match="4 conversations per update cannot be split into micro-batches of 3"
    ):
        train_sft(tiny(), talks(4), SftConfig(**{**CONFIG, "micro_batch_size": 3}), tmp_path)
    assert accumulation_of(32, 4, 2) == 4


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=60),
    batch=st.integers(1, 8),
    updates=st.integers(1, 30),
    seed=st.integers(0, 3),
)
def test_order_visits_every_item_once_a_pass(
    lengths: list[int], batch: int, updates: int, seed: int
) -> None:
    order = sample_order(lengths, batch, updates, seed)
    assert len(order) == batch * updates
    counts = np.bincount(order, minlength=len(lengths))
    assert counts.max() - counts.min() <= 1
    assert order == sample_order(lengths, batch, updates, seed)


def test_order_groups_by_length() -> None:
    lengths = np.random.default_rng(0).integers(10, 300, 2000)
    batches = lengths[sample_order(list(lengths), 20, 100, 0)].reshape(100, 20)
    padding = 1 - batches.mean() / batches.max(axis=1).mean()
    assert padding < 0.05  # a random order pads 46%
    means = batches.mean(axis=1)
    assert (
        abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3
    )  # and long batches do not come in a row


@pytest.mark.parametrize("damage", ["flipped", "empty", "list", "no totals", "other step"])
def test_a_damaged_checkpoint_is_passed_over(
    damage: str,
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A flipped block keeps the size of a file; only its hash tells. The checkpoint before is used."""
    stop_in_update_6(monkeypatch, tmp_path)
    last = tmp_path / "checkpoints" / "checkpoint-4"
    manifest = json.loads((last / MANIFEST).read_text())
    if damage == "flipped":
        data = bytearray((last / "optimizer.pt").read_bytes())
        data[len(data) // 2] ^= 255
        (last / "optimizer.pt").write_bytes(data)
    else:
        other = {
            "empty": manifest | {"files": {}},
            "list": manifest | {"files": []},
            "no totals": manifest | {"totals": {}},
            "other step": manifest | {"step": 2},
        }
        (last / MANIFEST).write_text(json.dumps(other[damage]))
    train_sft(tiny(), talks(10), SftConfig(**CONFIG), tmp_path)
    said = capsys.readouterr().err
    assert "checkpoint-4: ignored" in said and "resuming from" in said and "checkpoint-2" in said
    assert_equal_weights(weights(tmp_path), weights(unbroken))
