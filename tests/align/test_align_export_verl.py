"""The export for verl and EasyR1: rows, settings, the folder, what is refused, and verl's own loaders."""

import asyncio
import importlib.metadata
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import verl_case
import yaml
from PIL import Image
from verl_case import RL

from roboalign.actions.normalize import ActionStats
from roboalign.align.export.verl import (
    check_verl_prompts,
    easyr1_config,
    easyr1_table,
    ground_truth,
    processor_files,
    reward_settings,
    verl_config,
    verl_table,
)
from roboalign.align.grpo.config import RlConfig
from roboalign.cli.export import verl_differences
from roboalign.cli.main import main
from roboalign.conversations.conversation import write_conversations
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_json
from roboalign.mllm.encode import collate, encode_prompt
from roboalign.mllm.load import load_mllm, save_mllm
from roboalign.run.recipe import Recipe

fast, mllm, conversations = verl_case.fast, verl_case.mllm, verl_case.conversations


VERL = "0.9.1"


@pytest.fixture(scope="module")
def run(mllm, fast, conversations, tmp_path_factory) -> Path:
    """What the export reads of a run."""
    folder = tmp_path_factory.mktemp("export") / "run"
    (folder / "tokenizer").mkdir(parents=True)
    recipe = Recipe.model_validate(
        {"name": "export", "rl": {**RL, "reward": "decoded", "updates": 6}, "seeds": [3]}
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    fast.save(folder / "tokenizer" / "fast")
    write_json(folder / "tokenizer" / "stats.json", ActionStats.fit(np.eye(2)).to_dict())
    write_json(
        folder / "tokenizer" / "tokenizer.json",
        {"horizon": 4, "action_dim": 2, "mean_chunk": [[0.0] * 2] * 4},
    )
    (folder / "mix" / "mixture").mkdir(parents=True)
    direct = replace(conversations[0], turns=(replace(conversations[0].turns[0], mode="direct"),))
    write_conversations(folder / "mix" / "mixture" / "rl.parquet", conversations[:4])
    write_conversations(folder / "mix" / "mixture" / "heldout.parquet", [conversations[4], direct])
    save_mllm(mllm, folder / "seed-3" / "sft" / "model")
    write_json(folder / "seed-3" / "sft" / "stage.json", {})
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    assert main(["export", "verl", str(run), "--out", str(out), "--gpus", "2"]) == 0
    return out


def test_rows(mllm, conversations):
    (row, *_) = verl_table(mllm, conversations).to_pylist()
    target = list(conversations[0].target)
    assert row["prompt"] == [
        {"role": "user", "content": "<image>" + conversations[0].turns[0].question}
    ]
    assert (
        row["reward_model"]["ground_truth"]
        == ground_truth(target)
        == " ".join(str(i) for i in target)
    )
    tokens = mllm.tokenizer.convert_ids_to_tokens(row["extra_info"]["target_token_ids"])
    assert tokens == ["<ACTION_START>", *(f"<FAST_{i}>" for i in target), "<ACTION_END>"]
    assert row["images"][0] == {
        "bytes": conversations[0].images[0],
        "min_pixels": 1024,
        "max_pixels": 1024,
    }
    (theirs, *_) = easyr1_table(conversations).to_pylist()
    assert theirs == {
        "prompt": row["prompt"][0]["content"],
        "images": [{"bytes": conversations[0].images[0]}],
        "answer": ground_truth(target),
        "id": "rl-0",
    }


def test_rows_hold_every_image_where_it_is_placed(mllm, conversations):
    first, second = conversations[:2]
    turn = replace(first.turns[0], question="Is <image> like <image>?")
    asked = replace(first, images=first.images + second.images, turns=(turn,))
    (row,) = verl_table(mllm, [asked]).to_pylist()
    assert row["prompt"][0]["content"] == "Is <image> like <image>?"
    assert [one["bytes"] for one in row["images"]] == [first.images[0], second.images[0]]
    (theirs,) = easyr1_table([asked]).to_pylist()
    assert theirs["images"] == [{"bytes": one} for one in asked.images]
    with pytest.raises(RoboAlignError, match=r"2 <image> markers and it has 1 images"):
        verl_table(mllm, [replace(asked, images=first.images)])


def test_the_papers_settings():
    """The defaults of RlConfig are the paper's: what both trainers are told."""
    verl = verl_config(RlConfig(), prompt_tokens=300, patch_size=14, gpus=8)
    actor, rollout = (verl["actor_rollout_ref"][name] for name in ("actor", "rollout"))
    assert (verl["data"]["train_batch_size"], rollout["n"], actor["ppo_mini_batch_size"]) == (
        512,
        5,
        128,
    )
    assert (actor["optim"]["lr"], actor["kl_loss_coef"], actor["kl_loss_type"]) == (
        1e-6,
        1e-2,
        "low_var_kl",
    )
    assert (actor["clip_ratio_low"], actor["clip_ratio_high"], actor["clip_ratio_c"]) == (
        0.2,
        0.3,
        3.0,
    )
    assert (
        actor["use_kl_loss"]
        and not verl["algorithm"]["use_kl_in_reward"]
        and rollout["temperature"] == 1.0
    )
    easy = easyr1_config(RlConfig(), prompt_tokens=300, gpus=8, images=2)
    actor = easy["worker"]["actor"]
    assert (easy["data"]["rollout_batch_size"], actor["global_batch_size"]) == (512, 128)
    assert (easy["worker"]["rollout"]["n"], actor["optim"]["lr"]) == (5, 1e-6)
    assert (easy["algorithm"]["kl_coef"], easy["algorithm"]["kl_penalty"]) == (1e-2, "low_var_kl")
    assert (actor["clip_ratio_low"], actor["clip_ratio_high"], actor["clip_ratio_dual"]) == (
        0.2,
        0.3,
        3.0,
    )
    assert easy["worker"]["reward"]["skip_special_tokens"] is False


def test_the_folder(exported, run):
    names = {path.name for path in exported.iterdir()} - {"__pycache__"}  # of tests that import it
    assert names == {
        "README.md",
        "reward.py",
        "reply.py",
        "reward.json",
        "verl.yaml",
        "easyr1.yaml",
        "model",
        *(f"{who}-{part}.parquet" for who in ("verl", "easyr1") for part in ("train", "heldout")),
    }
    assert [
        pq.read_metadata(exported / f"verl-{part}.parquet").num_rows
        for part in ("train", "heldout")
    ] == [4, 1]
    settings = yaml.safe_load((exported / "verl.yaml").read_text())
    assert settings["trainer"]["total_training_steps"] == 3  # 6 updates, two a rollout
    assert settings["trainer"]["n_gpus_per_node"] == 2 and settings["data"]["seed"] == 3
    assert not re.search(
        r"^(import|from) roboalign", (exported / "reward.py").read_text(), re.MULTILINE
    )
    opened = load_mllm(exported / "model")
    assert opened.vocabulary == load_mllm(run / "seed-3" / "sft" / "model").vocabulary
    written = json.loads((exported / "model" / "video_preprocessor_config.json").read_text())
    assert (written["video_processor_type"], written["patch_size"]) == ("Qwen3VLVideoProcessor", 16)


def test_an_export_replaces_an_export_and_nothing_else(exported, run, tmp_path, capsys):
    shutil.copytree(exported, out := tmp_path / "out")
    (out / "old.txt").touch()
    assert (
        main(["export", "verl", str(run), "--out", str(out)]) == 0
        and not (out / "old.txt").exists()
    )
    (tmp_path / "mine").mkdir()
    assert main(["export", "verl", str(run), "--out", str(tmp_path / "mine")]) == 2
    assert "something other than an export" in capsys.readouterr().err


def test_what_is_refused(run, mllm, fast, conversations, tmp_path, capsys):
    assert main(["export", "verl", str(tmp_path), "--out", str(tmp_path / "a")]) == 2
    assert "no run here" in capsys.readouterr().err
    assert main(["export", "verl", str(run), "--out", str(tmp_path / "a"), "--seed", "7"]) == 2
    assert "the SFT stage of seed 7 is not done" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    with pytest.raises(RoboAlignError, match="answers in words"):
        reward_settings(mllm, fast, "trace")
    with pytest.raises(RoboAlignError, match="5 RL prompts are fewer than the 512"):
        check_verl_prompts(conversations, conversations, fast, RlConfig())
    with pytest.raises(RoboAlignError, match="decodes to no chunk"):
        check_verl_prompts(
            [replace(conversations[0], target=(0,))] * 4, conversations, fast, RlConfig(**RL)
        )
    with pytest.raises(RoboAlignError, match="no held-out action question"):
        check_verl_prompts(conversations, [], fast, RlConfig(**RL))
    turn = replace(conversations[0].turns[0], question="Look at <video> here.")
    with pytest.raises(RoboAlignError, match="holds <video>"):
        easyr1_table([replace(conversations[0], turns=(turn,))])


def test_what_has_no_counterpart_is_said():
    assert not any("replay" in line for line in verl_differences(RlConfig()))
    assert any(
        "rl.replay_weight` 0.3" in line for line in verl_differences(RlConfig(replay_weight=0.3))
    )


@pytest.fixture(scope="module")
def verl_settings(exported):
    """verl.yaml over verl's own defaults, as its command composes them; skips where verl cannot be imported."""
    try:
        version = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"verl is not installed: pip install verl=={VERL}")
    if version != VERL:
        pytest.skip(f"verl {version} is installed, {VERL} is what the export is for")
    hydra = pytest.importorskip("hydra", reason="verl without its dependencies")
    for name in ("ray", "tensordict", "verl.utils.dataset.rl_dataset"):
        pytest.importorskip(name, reason="verl without its dependencies", exc_type=ImportError)
    with hydra.initialize_config_dir(config_dir=str(exported), version_base=None):
        return hydra.compose(config_name="verl", overrides=[f"folder={exported}"])


def test_verl_accepts_the_settings(verl_settings, exported):
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    validate_config(verl_settings, need_reference_policy(verl_settings), need_critic(verl_settings))
    actor = omega_conf_to_dataclass(verl_settings.actor_rollout_ref.actor)
    assert (actor.clip_ratio_high, actor.clip_ratio_c, actor.kl_loss_coef, actor.optim.lr) == (
        0.3,
        3.0,
        1e-2,
        1e-6,
    )
    assert verl_settings.actor_rollout_ref.model.path == str(exported / "model")


def test_verl_loads_and_calls_the_reward(verl_settings, exported, conversations):
    import torch
    from transformers import AutoTokenizer
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager

    tokenizer = AutoTokenizer.from_pretrained(exported / "model")
    rows = pq.read_table(exported / "verl-train.parquet").to_pylist()

    def data(row, text):
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        tensors = {
            "responses": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        named = {
            name: np.array([row[name]], dtype=object)
            for name in ("data_source", "reward_model", "extra_info")
        }
        return DataProto.from_dict(tensors=tensors, non_tensors=named)

    async def score(row, text):
        manager = load_reward_manager(verl_settings, tokenizer)
        manager.loop = asyncio.get_running_loop()
        return (await manager.run_single(data(row, text)))["reward_score"]

    right = conversations[0].turns[0].answer
    assert asyncio.run(score(rows[0], right)) == 1.0
    assert asyncio.run(score(rows[0], right.replace("Go.", ""))) == 0.0


def test_verls_prompt_is_ours(verl_settings, exported, conversations):
    """Ids and pixels that verl makes of a row are those that `encode_prompt` makes of the conversation."""
    pytest.importorskip(
        "qwen_vl_utils", reason="verl without qwen-vl-utils", exc_type=(ImportError, RuntimeError)
    )
    from transformers import AutoProcessor
    from verl.utils.dataset.rl_dataset import RLHFDataset

    processor = AutoProcessor.from_pretrained(exported / "model")
    dataset = RLHFDataset(
        verl_settings.data.train_files, processor.tokenizer, verl_settings.data, processor
    )
    assert len(dataset) == 4  # none longer than max_prompt_length
    messages = dataset[0]["raw_prompt"]
    patch = verl_settings.data.image_patch_size
    images, _ = asyncio.run(RLHFDataset.process_vision_info(messages, patch, verl_settings.data))
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    theirs = processor(text=[text], images=images, return_tensors="pt")
    mllm = load_mllm(exported / "model")
    one = conversations[0]
    mine = collate(
        mllm, [encode_prompt(mllm, one.turns[0].question, [Image.open(io.BytesIO(one.images[0]))])]
    )
    assert theirs["input_ids"].tolist() == mine["input_ids"].tolist()
    assert theirs["input_ids"].shape[1] == verl_settings.data.max_prompt_length
    assert (theirs["pixel_values"] - mine["pixel_values"]).abs().max() < 1e-5


def test_only_qwen_models_are_exported(mllm):
    assert set(processor_files(mllm)) == {
        "preprocessor_config.json",
        "video_preprocessor_config.json",
    }
    config = SimpleNamespace(model_type="idefics3")
    other = SimpleNamespace(processor=None, model=SimpleNamespace(config=config), folder="a/model")
    with pytest.raises(
        RoboAlignError, match=r"a/model: a model of type idefics3 cannot be exported.*rl\.vllm"
    ):
        processor_files(other)
