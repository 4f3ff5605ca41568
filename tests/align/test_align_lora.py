"""LoRA: what is trained and what is not, the merged model, the reference without adapters, SFT and its resume."""

import copy
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_grpo
import torch
from backbone_models import FRAMES, TURNS, model_of
from own_process import die_in_update, status_of
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_lora import (
    DROPPED,
    LAYERS,
    LORA,
    RL,
    SFT,
    assert_only_the_trained_changed,
    build,
    state_of,
    talks,
    weights,
)
from torch import Tensor

from roboalign.align.checkpoints import MANIFEST, _needed
from roboalign.align.dataset import pictures
from roboalign.align.engines.vllm.weights import write_policy
from roboalign.align.grpo import rollout as rollout_module
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.logprobs import completion_statistics
from roboalign.align.grpo.rollout import batch_of
from roboalign.align.grpo.train import train_grpo
from roboalign.align.lora import FILE, LoraConfig, adapted, adapters_off, add_lora, merged_state
from roboalign.align.sft import SftConfig, SftTrainer, train_sft
from roboalign.align.train_config import TrainConfig
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl, write_json
from roboalign.mllm.encode import collate, encode_conversation
from roboalign.mllm.load import Mllm, load_mllm, save_mllm

even_ids_rewarded = tiny_grpo.even_ids_rewarded


def logits(mllm: Mllm) -> Tensor:
    asked = tiny_grpo.prompts(1)[0]
    with torch.no_grad():
        return tiny_grpo.plain_logits(
            mllm, asked.turns[0].question, pictures(asked), [20, 430, 421, 50]
        )


def disturb(mllm: Mllm) -> None:
    """Stand-in for a training: all that is trained moves."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in mllm.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


# The model.


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_the_merged_model_is_the_model_with_adapters(family: str, tmp_path: Path) -> None:
    mllm, plain = build(family), build(family)
    before = state_of(mllm)
    assert torch.equal(logits(mllm), logits(plain))
    lora = add_lora(mllm, LORA, seed=0)
    assert torch.equal(logits(mllm), logits(plain)), "untrained adapters add nothing"
    disturb(mllm)
    wanted = logits(mllm)
    assert (wanted - logits(plain)).abs().max() > 0.1
    state = merged_state(mllm.model)
    # W + alpha / rank B A, by hand
    layer = mllm.model.get_decoder().layers[1].mlp.down_proj
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(state[name], before[name] + 8 / 4 * product)
    write_policy(mllm, tmp_path / "policy", 0)
    torch.testing.assert_close(logits(load_mllm(tmp_path / "policy")), wanted, atol=1e-5, rtol=1e-5)
    assert _needed(mllm.model, True) == 3 * 4 * sum(
        p.numel() for p in mllm.model.parameters() if p.requires_grad
    )
    assert adapted(mllm.model) and torch.equal(logits(mllm), wanted), (
        "publishing leaves the adapters as they are"
    )
    plain.model.load_state_dict(state)
    torch.testing.assert_close(logits(plain), wanted, atol=1e-5, rtol=1e-5)
    lora.merge_and_unload()
    torch.testing.assert_close(logits(mllm), wanted, atol=1e-5, rtol=1e-5)
    after = state_of(mllm)
    assert all(torch.equal(value, state[name]) for name, value in after.items())
    assert_only_the_trained_changed(before, after, mllm)
    assert not adapted(mllm.model) and type(mllm.model.get_output_embeddings()) is torch.nn.Linear


@pytest.mark.parametrize("name", ["smolvlm", "llava", "llava_onevision"])
def test_other_classes(name: str, tmp_path: Path) -> None:
    """The merged model's logits are those with adapters, and those of the folder that a vLLM server reads; nothing of
    the vision encoder or the projector has changed."""
    mllm = model_of(name)
    batch = collate(mllm, [encode_conversation(mllm, TURNS[:1], [FRAMES[0]])])
    before = state_of(mllm)
    lora = add_lora(mllm, LORA, seed=0)
    disturb(mllm)
    with torch.no_grad():
        wanted = mllm.model(**batch).logits
        write_policy(mllm, tmp_path / "policy", 0)
        published = load_mllm(tmp_path / "policy").model(**batch).logits
        torch.testing.assert_close(published, wanted, atol=2e-5, rtol=1e-4)
        lora.merge_and_unload()
        torch.testing.assert_close(mllm.model(**batch).logits, wanted, atol=2e-5, rtol=1e-4)
    changed = {
        name for name, value in state_of(mllm).items() if not torch.equal(value, before[name])
    }
    layers = {name for name in changed if ".layers." in name}
    assert len(layers) == len(LAYERS) * len(mllm.model.get_decoder().layers)
    assert {name.split(".")[-2] for name in layers} == set(LAYERS)
    assert {name.split(".")[-2] for name in changed - layers} == {"embed_tokens", "lm_head"}


def test_two_tables_have_rows_of_their_own() -> None:
    mllm = build("qwen2_5_vl")
    add_lora(mllm, LORA, seed=0)
    disturb(mllm)
    state, rows = merged_state(mllm.model), sorted(mllm.vocabulary.ids)
    assert not torch.equal(
        state["model.language_model.embed_tokens.weight"][rows], state["lm_head.weight"][rows]
    )
    trained = {name: p.numel() for name, p in mllm.model.named_parameters() if p.requires_grad}
    assert (
        sum(count for name, count in trained.items() if "token_adapter" in name)
        == 2 * len(rows) * 32
    )


def test_adapters_are_the_seeds() -> None:
    first, again, other = (build("qwen3_vl") for _ in range(3))
    drawn = torch.random.get_rng_state()
    for mllm, seed in ((first, 3), (again, 3), (other, 4)):
        add_lora(mllm, LORA, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    name = "model.language_model.layers.0.mlp.up_proj.lora_A.default.weight"
    matrices = [one.model.get_parameter(name) for one in (first, again, other)]
    assert torch.equal(matrices[0], matrices[1]) and not torch.equal(matrices[0], matrices[2])


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_without_adapters_it_is_the_initial_model_bit_by_bit(family: str) -> None:
    mllm, start = build(family), build(family)
    start.model.requires_grad_(
        False
    )  # as a copy for the KL is: torch's kernels for frozen weights round otherwise
    asked = tiny_grpo.prompts(2)
    rolled = rollout_module.roll_out(
        mllm,
        tiny_grpo.fast(),
        asked,
        samples=2,
        max_new_tokens=6,
        temperature=1.0,
        preset="paper",
        seed=0,
    )
    batch = batch_of(mllm, rolled, 0, 2)

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

    lora = add_lora(mllm, LORA, seed=0)
    disturb(mllm)
    moved, trained = (
        logp(mllm.model),
        {n for n, p in mllm.model.named_parameters() if p.requires_grad},
    )
    mllm.model.train()
    with adapters_off(lora):
        assert torch.equal(logp(mllm.model), logp(start.model)) and not mllm.model.training
    assert (
        mllm.model.training
        and {n for n, p in mllm.model.named_parameters() if p.requires_grad} == trained
    )
    assert torch.equal(logp(mllm.model.eval()), moved) and not torch.equal(moved, logp(start.model))


def test_a_bfloat16_model_trains_float32_adapters(tmp_path: Path, even_ids_rewarded: None) -> None:
    """AdamW's small steps would round to nothing in bfloat16; what is written has the model's type. SFT, then GRPO."""
    save_mllm(build("qwen2_5_vl"), tmp_path / "base", dtype=torch.bfloat16)
    mllm = load_mllm(tmp_path / "base", dtype=torch.bfloat16)
    add_lora(mllm, LORA, seed=0)
    kinds = {p.dtype for p in mllm.model.parameters() if p.requires_grad}
    assert kinds == {torch.float32} and mllm.model.dtype == torch.bfloat16
    mllm = load_mllm(tmp_path / "base", dtype=torch.bfloat16)
    train_sft(mllm, talks(), SftConfig(**{**SFT, "bf16": True}), tmp_path / "sft")
    losses = [record["loss"] for record in read_jsonl(tmp_path / "sft" / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    after = load_file(tmp_path / "sft" / "model" / "model.safetensors")
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    stored = load_file(tmp_path / "base" / "model.safetensors")
    names = {name for name, value in after.items() if not torch.equal(value, stored[name])}
    assert len(names) == 2 * len(LAYERS) + 2
    mllm = load_mllm(tmp_path / "sft" / "model", dtype=torch.bfloat16)
    settings = RlConfig(**{**RL, "bf16": True, "updates": 2, "gradient_checkpointing": True})
    train_grpo(mllm, tiny_grpo.fast(), tiny_grpo.prompts(), settings, tmp_path / "rl")
    first, second = read_jsonl(tmp_path / "rl" / "metrics.jsonl")
    assert abs(first["ratio"] - 1) < 0.02 and first["kl"] < 1e-3 < second["drift"]


def test_tables_that_cannot_be_told_apart_are_refused() -> None:
    mllm = build("qwen3_vl")
    mllm.model.config.tie_word_embeddings = False
    with pytest.raises(
        RoboAlignError, match="tie_word_embeddings is not set Fix: train all weights"
    ):
        add_lora(mllm, LORA, seed=0)
    mllm = build("qwen2_5_vl")
    mllm.model.lm_head.bias = torch.nn.Parameter(torch.zeros(mllm.model.lm_head.out_features))
    with pytest.raises(RoboAlignError, match="has a bias"):
        add_lora(mllm, LORA, seed=0)


# SFT.


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout, whose random numbers a resumed run must go on with."""
    folder = tmp_path_factory.mktemp("unbroken")
    train_sft(build("qwen3_vl"), talks(), DROPPED, folder)
    return folder


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_sft_writes_a_plain_folder(tmp_path: Path, family: str) -> None:
    mllm, start = build(family), build(family)
    ledger = train_sft(mllm, talks(), SftConfig(**SFT), tmp_path)
    found = load_mllm(tmp_path / "model")
    assert_only_the_trained_changed(state_of(start), state_of(found), found)
    assert torch.equal(logits(mllm), logits(found))
    assert all(p.requires_grad for p in mllm.model.parameters()) and not mllm.model.training
    assert type(mllm.model.get_input_embeddings()) is torch.nn.Embedding
    # width 32, feed-forward 32, keys and values 16, two layers, rank 4; and the rows
    by_hand = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 32))
    by_hand += len(mllm.vocabulary.ids) * 32 * (1 if family == "qwen3_vl" else 2)
    assert ledger["trainable"] == by_hand
    assert ledger["parameters"] == sum(p.numel() for p in start.model.parameters())
    losses = [record["loss"] for record in read_jsonl(tmp_path / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    assert {path.name for path in tmp_path.iterdir()} == {"model", "ledger.json", "metrics.jsonl"}


def test_a_model_without_action_tokens_trains_adapters_alone(tmp_path: Path) -> None:
    """As `distill/rl` does; with checkpointing, whose gradients are those without it."""
    found = []
    for checkpointing in (False, True):
        mllm = build("qwen3_vl")
        mllm.vocabulary = None
        before = state_of(mllm)
        settings = SftConfig(**{**SFT, "gradient_checkpointing": checkpointing, "max_steps": 2})
        train_sft(mllm, talks()[::2], settings, tmp_path / str(checkpointing))
        changed = {
            n for n, value in mllm.model.state_dict().items() if not torch.equal(value, before[n])
        }
        assert len(changed) == 2 * len(LAYERS) and all(".layers." in name for name in changed)
        found.append(weights(tmp_path / str(checkpointing)))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=1e-5)


def train_until_killed(folder: Path) -> None:
    die_in_update(SftTrainer, 4)
    train_sft(build("qwen3_vl"), talks(), DROPPED, folder)


def test_checkpoints_hold_the_adapters_and_a_killed_run_ends_like_an_unbroken_one(
    unbroken: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of update 5, in a process of its own; then the same call again."""
    assert status_of(train_until_killed, tmp_path) == -signal.SIGKILL
    checkpoint = tmp_path / "checkpoints" / "checkpoint-4"
    stored = load_file(checkpoint / FILE)
    assert len(stored) == 2 * 2 * len(LAYERS) + 1 and not list(checkpoint.glob("model*"))
    trained = sum(value.nbytes for value in stored.values())
    assert (
        checkpoint / "optimizer.pt"
    ).stat().st_size < 2 * trained + 30_000  # two moments, and torch's own
    whole = read_json(unbroken / "ledger.json")
    ledger = train_sft(build("qwen3_vl"), talks(), DROPPED, tmp_path)
    assert {**ledger, "seconds": 0} == {**whole, "seconds": 0}
    ours, theirs = weights(tmp_path), weights(unbroken)
    assert ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )


def interrupted(monkeypatch: pytest.MonkeyPatch, folder: Path, settings: SftConfig) -> None:
    """Train to the fifth update, then stop: checkpoints 2 and 4 are left."""

    def step(self: SftTrainer, *arguments: Any) -> Tensor:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return inner(self, *arguments)

    inner = SftTrainer.training_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SftTrainer, "training_step", step)
        train_sft(build("qwen3_vl"), talks(), settings, folder)


def test_a_checkpoint_of_other_adapters_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, tmp_path, SftConfig(**SFT))
    for other in (None, LoraConfig(rank=2, alpha=8)):
        with pytest.raises(RoboAlignError, match="another initial weights, lora"):
            train_sft(build("qwen3_vl"), talks(), SftConfig(**{**SFT, "lora": other}), tmp_path)


def test_a_checkpoint_from_before_lora_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SftConfig(**{**SFT, "lora": None})
    interrupted(monkeypatch, tmp_path, settings)
    manifest = tmp_path / "checkpoints" / "checkpoint-4" / MANIFEST
    written = read_json(manifest)
    del written["fingerprint"]["lora"]
    write_json(manifest, written)
    assert train_sft(build("qwen3_vl"), talks(), settings, tmp_path)["samples"] == 24


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValidationError, match=r"lora\.dropout is for SFT"):
        RlConfig(lora=LoraConfig(dropout=0.1))
    with pytest.raises(ValidationError, match=r"lora\.rank\n.*greater than or equal to 1"):
        SftConfig(lora={"rank": 0})  # type: ignore[arg-type]
    assert "lora" not in TrainConfig.model_fields, "the vision tower's pretraining has none"
    assert copy.deepcopy(SftConfig()).lora is None and RlConfig().lora is None
