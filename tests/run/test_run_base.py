"""Stages tokenizer, mix and base: what they leave, where the base comes from, and a base that was killed."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stage_run import context, do, recipe

from roboalign.align.sft import train_sft
from roboalign.conversations.conversation import Conversation, read_conversations
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file, read_json
from roboalign.mllm import shipped
from roboalign.mllm.load import Mllm, load_mllm, save_mllm
from roboalign.mllm.tiny import build_tiny
from roboalign.mllm.tiny_classes import build_class
from roboalign.run.folder import mixture_folder, read_demonstrations, run_action_tokens
from roboalign.run.graph import plan_stages
from roboalign.run.recipe import BackboneConfig
from roboalign.run.stage import in_style
from roboalign.run.stages import base as stage


def test_tokens_decode_to_the_actions_that_were_encoded(run_dir: Path) -> None:
    tokens = run_action_tokens(run_dir)
    described = read_json(run_dir / "tokenizer" / "tokenizer.json")
    heldout = set(read_json(mixture_folder(run_dir) / "manifest.json")["splits"]["heldout"])
    episodes = [e for e in read_demonstrations(run_dir, "align") if e.episode_id not in heldout]
    assert 0 < len(heldout) < 24 and described["chunks"] == 12 * len(
        episodes
    )  # the held-out episodes are not fitted
    chunks = tokens.stats.normalize(np.concatenate([episode.chunks(4) for episode in episodes]))
    decoded = np.stack(tokens.fast.decode_batch(tokens.fast.encode(chunks)))
    assert np.abs(decoded - chunks).mean() == pytest.approx(
        described["reconstruction_l1"], abs=1e-4
    )
    np.testing.assert_allclose(tokens.mean_chunk, chunks.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_the_mixtures_ledger_counts_what_is_in_it(run_dir: Path) -> None:
    row = read_json(run_dir / "mix" / "stage.json")
    train, rl = (read_conversations(mixture_folder(run_dir), split) for split in ("train", "rl"))
    assert row["conversations"] == len(train) == 120 and row["rl_samples"] == len(rl)
    assert row["samples"] == sum(len(one.turns) for one in train)
    assert (
        0 < row["rl_share"] == pytest.approx(len(rl) / row["samples"], rel=1e-3)
        and row["rl_share"] < 0.01
    )


def test_the_base_knows_the_action_tokens_and_has_not_been_trained_on_them(run_dir: Path) -> None:
    pretrained, base = (load_mllm(run_dir / "base" / name) for name in ("pretrain/model", "model"))
    row = read_json(run_dir / "base" / "stage.json")
    assert len(base.tokenizer.encode("<ACTION_START><FAST_0><ACTION_END>")) == 3
    assert row["fast_tokens"] == run_action_tokens(run_dir).fast.vocab_size
    assert row["parameters"] == sum(p.numel() for p in base.model.parameters())
    assert row["source"] == "train" and row["updates"] == 2 and row["vision_updates"] == 2
    rows = pretrained.model.get_input_embeddings().num_embeddings
    name = "model.visual.blocks.0.attn.qkv.weight"
    assert torch.equal(
        dict(pretrained.model.named_parameters())[name], dict(base.model.named_parameters())[name]
    )
    assert base.model.get_input_embeddings().num_embeddings >= rows
    for part in ("vision", "pretrain"):
        assert not (run_dir / "base" / part / "checkpoints").exists(), (
            "checkpoints of what is done are disk space only"
        )


def test_a_base_that_was_killed_after_its_vision_does_not_repeat_it(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("collect", "tokenizer", "mix"):
        (tmp_path / part).symlink_to(run_dir / part)
    shutil.copytree(run_dir / "base" / "vision", tmp_path / "base" / "vision")
    monkeypatch.setattr(
        stage, "pretrain_vision", lambda *arguments: pytest.fail("vision pretraining again")
    )
    stages = {one.name: one for one in plan_stages(recipe())}
    row = do(stages, tmp_path, "base", recipe())
    assert row["vision_updates"] == 2
    assert hash_file(tmp_path / "base/model/model.safetensors") == hash_file(
        run_dir / "base/model/model.safetensors"
    )


def test_a_folder_from_outside_is_the_base(run_dir: Path, tmp_path: Path) -> None:
    for part in ("collect", "tokenizer", "mix"):
        (tmp_path / part).symlink_to(run_dir / part)
    torch.manual_seed(7)
    save_mllm(
        build_tiny(recipe().backbone.tiny, ["Where is the puck? Answer directly."] * 20),
        tmp_path / "mine",
    )
    settings = recipe(backbone={"source": str(tmp_path / "mine"), "layer": 1})
    stages = {one.name: one for one in plan_stages(settings)}
    assert stages["base"].settings.keys() == {"action_start", "dtype", "weights"}
    row = do(stages, tmp_path, "base", settings)
    assert row["source"] == str(tmp_path / "mine") and "updates" not in row
    mine, base = load_mllm(tmp_path / "mine"), load_mllm(tmp_path / "base" / "model")
    assert torch.equal(
        mine.model.model.visual.patch_embed.proj.weight,
        base.model.model.visual.patch_embed.proj.weight,
    )
    assert len(base.tokenizer) > len(mine.tokenizer)


def test_a_connector_is_trained_first_alone_and_on_words(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("collect", "tokenizer", "mix"):
        (tmp_path / part).symlink_to(run_dir / part)
    save_mllm(build_class("llava", ["Where is the puck? Answer directly."] * 20), tmp_path / "mine")
    backbone = {"source": str(tmp_path / "mine"), "layer": 1}
    plain = {one.name: one for one in plan_stages(recipe(backbone=backbone))}
    connector = {"max_steps": 2, "batch_size": 2, "micro_batch_size": 2}
    settings = recipe(backbone={**backbone, "connector": connector})
    stages = {one.name: one for one in plan_stages(settings)}
    assert (
        stages["base"].settings.keys() == {*plain["base"].settings, "connector"}
        and stages["base"].together
    )
    assert not plain["base"].together
    kinds = set()

    def look(
        mllm: Mllm, conversations: list[Conversation], *rest: Any, **named: Any
    ) -> dict[str, Any]:
        kinds.update(turn.kind for one in conversations for turn in one.turns)
        return train_sft(mllm, conversations, *rest, **named)

    monkeypatch.setattr(stage, "train_sft", look)
    row = do(stages, tmp_path, "base", settings)
    assert kinds and kinds <= set(stage.LANGUAGE)
    before = dict(load_mllm(tmp_path / "mine").model.named_parameters())
    after = dict(load_mllm(tmp_path / "base" / "connector" / "model").model.named_parameters())
    changed = {
        name for name, parameter in after.items() if not torch.equal(parameter, before[name])
    }
    projector = {name for name in before if "multi_modal_projector" in name}
    assert changed == projector and len(projector) == 4
    assert row["updates"] == 2 and row["trainable"] == sum(
        before[name].numel() for name in projector
    )
    base = load_mllm(tmp_path / "base" / "model")
    assert base.vocabulary and torch.equal(
        dict(base.model.named_parameters())[min(projector)], after[min(projector)]
    )
    monkeypatch.setattr(
        stage, "train_sft", lambda *rest, **named: pytest.fail("the connector was trained again")
    )
    shutil.rmtree(tmp_path / "base" / "model")  # killed after the connector
    assert do(stages, tmp_path, "base", settings)["updates"] == 2


def test_a_connector_needs_a_model_that_has_one(run_dir: Path, tmp_path: Path) -> None:
    for part in ("collect", "tokenizer", "mix"):
        (tmp_path / part).symlink_to(run_dir / part)
    save_mllm(
        build_tiny(recipe().backbone.tiny, ["Where is the puck? Answer directly."] * 20),
        tmp_path / "mine",
    )
    settings = recipe(backbone={"source": str(tmp_path / "mine"), "layer": 1, "connector": {}})
    with pytest.raises(RoboAlignError, match="no projector apart from its vision encoder"):
        stage.base(context(tmp_path, "base", settings))


def test_action_start_moves_one_embedding_only(run_dir: Path) -> None:
    weights = {}
    for start in ("mean", "labels"):
        mllm = stage.with_action_tokens(
            load_mllm(run_dir / "base" / "pretrain/model"), 8, start, {"planning": 1.0}
        )
        weights[start] = mllm.model.get_input_embeddings().weight
    point = mllm.tokenizer.encode("point", add_special_tokens=False)
    changed = (weights["mean"] != weights["labels"]).any(dim=1).nonzero().flatten().tolist()
    assert mllm.vocabulary and changed == [mllm.vocabulary.start_id]
    apart = [
        (rows[mllm.vocabulary.start_id] - rows[point].mean(dim=0)).norm()
        for rows in weights.values()
    ]
    assert apart[1] < apart[0]  # "point" is a label
    traced = stage.with_action_tokens(
        load_mllm(run_dir / "base" / "pretrain/model"), 8, "labels", {"trace": 1.0}
    )
    assert not torch.equal(
        traced.model.get_input_embeddings().weight, weights["labels"]
    )  # so is "trace", where asked


def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RoboAlignError, match=r"backbone.source, .*no such file or folder"):
        plan_stages(recipe(backbone={"source": "./models/none", "layer": 1}))
    monkeypatch.setattr(shipped, "pretrained_folder", lambda: tmp_path / "nothing")
    with pytest.raises(RoboAlignError, match="shipped base model is missing") as missing:
        plan_stages(recipe(backbone=BackboneConfig().model_dump()))
    assert str(tmp_path / "nothing") in str(missing.value)


def test_a_mixture_cut_short_is_one_clear_error(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").symlink_to(run_dir / "tokenizer")
    shutil.copytree(run_dir / "mix", tmp_path / "mix")
    shard = mixture_folder(tmp_path) / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        RoboAlignError, match=r"its sha256 is not the one in manifest\.json"
    ) as error:
        stage.base(context(tmp_path, "base", recipe()))
    assert error.value.where == str(shard) and "build the mixture again" in error.value.fix


def test_demonstrations_cut_short_are_one_clear_error(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir / "collect", tmp_path / "collect")
    data = next((tmp_path / "collect" / "align" / "data").rglob("*.parquet"))
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    stages = {one.name: one for one in plan_stages(recipe())}
    with pytest.raises(RoboAlignError) as error:
        stages["tokenizer"].work(context(tmp_path, "tokenizer", recipe()))
    assert data.name in str(error.value)
    assert not (tmp_path / "tokenizer" / "stats.json").exists()


def test_the_base_carries_the_prompt_style_and_refuses_another(
    run_dir: Path, tmp_path: Path
) -> None:
    folder = run_dir / "base" / "model"
    assert load_mllm(folder).prompts == "labelled"
    pretrained = load_mllm(run_dir / "base" / "pretrain" / "model")
    assert pretrained.prompts is None and in_style(pretrained, "paper").prompts == "paper"
    save_mllm(pretrained, tmp_path / "paper")
    again = load_mllm(tmp_path / "paper")
    assert again.prompts == "paper"
    with pytest.raises(RoboAlignError) as error:
        in_style(again, "labelled")
    assert error.value.problem == "the model has prompts of the style `paper`, not `labelled`"
    assert error.value.where == str(tmp_path / "paper")
    # A model with action tokens that names no style was trained before there were two.
    old = load_mllm(folder)
    del old.model.config.prompt_style
    with pytest.raises(RoboAlignError, match="style `labelled`, not `paper`"):
        in_style(old, "paper")
    assert in_style(old, "labelled").prompts == "labelled"
