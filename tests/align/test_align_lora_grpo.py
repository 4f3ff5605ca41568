"""LoRA in GRPO: what is rewarded, the reference without a second model, resume, a server's weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_grpo
import torch
from fake_vllm import FakeVllm
from safetensors.torch import load_file
from tiny_lora import RL, assert_only_the_trained_changed, build, state_of, weights
from torch import Tensor

from roboalign.align.engines.vllm.client import VllmConfig
from roboalign.align.grpo import rollout as rollout_module
from roboalign.align.grpo import trainer as grpo
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.logprobs import completion_statistics
from roboalign.align.grpo.rollout import Rollout, batch_of
from roboalign.align.grpo.train import train_grpo
from roboalign.align.grpo.trainer import GrpoTrainer
from roboalign.align.lora import FILE
from roboalign.core.files import read_jsonl
from roboalign.mllm.load import load_mllm

even_ids_rewarded = tiny_grpo.even_ids_rewarded


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    rolled: list[Rollout] = []
    inner = rollout_module.roll_out
    monkeypatch.setattr(
        grpo,
        "roll_out",
        lambda *given, **named: rolled.append(inner(*given, **named)) or rolled[-1],
    )
    return rolled


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_grpo_raises_what_was_rewarded_with_no_second_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, even_ids_rewarded: None, family: str
) -> None:
    rolled = recorded(monkeypatch)
    monkeypatch.setattr(
        grpo, "reference_model", None
    )  # would be called: the reference is the policy without adapters
    mllm, start = build(family), build(family)
    train_grpo(
        mllm, tiny_grpo.fast(), tiny_grpo.prompts(), RlConfig(**{**RL, "updates": 2}), tmp_path
    )
    batch = batch_of(mllm, rolled[0], 0, 4)

    def logp(model: Any) -> Tensor:
        with torch.no_grad():
            return completion_statistics(
                model,
                batch.prompts,
                batch.completions,
                batch.mask,
                images=batch.images,
                temperature=1.0,
            ).logp

    gained = (logp(mllm.model) - logp(start.model)) * batch.mask
    assert float((gained.sum(1) * batch.advantages).sum()) > 0.1
    first, second = read_jsonl(tmp_path / "metrics.jsonl")
    assert first["kl"] == pytest.approx(0, abs=1e-9) and first["ratio"] == pytest.approx(
        1, abs=1e-5
    )
    assert second["kl"] > 1e-6 and second["grad_norm"] > 0
    assert_only_the_trained_changed(state_of(start), state_of(load_mllm(tmp_path / "model")), mllm)


def test_the_reference_is_that_of_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, even_ids_rewarded: None
) -> None:
    """KL over three rollouts: log-probabilities of the start at every rollout, to the last bit."""
    pairs: list[tuple[Tensor, Tensor]] = []
    start, inner = build("qwen2_5_vl").model.requires_grad_(False), GrpoTrainer.reference_logp

    def both(self: GrpoTrainer, batch: Any) -> Tensor:
        with torch.no_grad():
            pairs.append((inner(self, batch), self.statistics(start, batch).logp))
        return pairs[-1][0]

    monkeypatch.setattr(GrpoTrainer, "reference_logp", both)
    train_grpo(build("qwen2_5_vl"), tiny_grpo.fast(), tiny_grpo.prompts(), RlConfig(**RL), tmp_path)
    assert len(pairs) == 3 * 4 and all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_interrupted_grpo_ends_like_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, even_ids_rewarded: None
) -> None:
    def step(self: GrpoTrainer, *arguments: Any) -> Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return inner(self, *arguments)

    inner = GrpoTrainer.training_step
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GrpoTrainer, "training_step", step)
        train_grpo(build("qwen3_vl"), tiny_grpo.fast(), tiny_grpo.prompts(), RlConfig(**RL), broken)
    assert [
        path.name for path in (broken / "checkpoints" / "checkpoint-2").glob("*.safetensors")
    ] == [FILE]
    for folder in (broken, unbroken):
        train_grpo(build("qwen3_vl"), tiny_grpo.fast(), tiny_grpo.prompts(), RlConfig(**RL), folder)
    ours, theirs = weights(broken), weights(unbroken)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert tiny_grpo.timeless(broken, "samples.jsonl") == tiny_grpo.timeless(
        unbroken, "samples.jsonl"
    )
    assert tiny_grpo.timeless(broken, "metrics.jsonl") == tiny_grpo.timeless(
        unbroken, "metrics.jsonl"
    )


def test_a_server_gets_merged_weights(tmp_path: Path, even_ids_rewarded: None) -> None:
    """It draws with our own random numbers: were its weights not the policy's, the two trainings would part."""
    server, models = FakeVllm(), []
    config = VllmConfig(
        url=server.url,
        weights=str(tmp_path / "policy"),
        concurrency=3,
        timeout=60.0,
        patience=0.3,
        tolerance=1e-3,
    )
    for vllm in (None, config):
        models.append(build("qwen3_vl"))
        settings = RlConfig(**{**RL, "updates": 4, "vllm": vllm})
        train_grpo(
            models[-1],
            tiny_grpo.fast(),
            tiny_grpo.prompts(),
            settings,
            tmp_path / str(vllm is None),
        )
    server.stop()
    ours, theirs = (state_of(model) for model in models)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4
    policy, plain = (
        json.loads((tmp_path / "policy/model/config.json").read_text()),
        load_mllm(tmp_path / "True/model"),
    )
    stored = load_file(tmp_path / "policy" / "model" / "model.safetensors")
    assert (
        stored.keys() == plain.model.state_dict().keys() and policy["tie_word_embeddings"] is False
    )
