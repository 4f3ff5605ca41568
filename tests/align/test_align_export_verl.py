"""The export for verl and EasyR1: the reward against ours on the same answers, rows, settings, verl's own loaders."""

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
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.actions.vocabulary import extend_model, extend_tokenizer
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
from roboalign.align.rewards.actions import score_responses
from roboalign.cli.export import copy_reward, load_file, verl_differences
from roboalign.cli.main import main
from roboalign.conversations.conversation import Conversation, Turn, write_conversations
from roboalign.conversations.prompts import action_answer
from roboalign.conversations.reply import write_tagged
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_json
from roboalign.mllm.encode import collate, encode_prompt, end_ids, special_ids
from roboalign.mllm.load import load_mllm, save_mllm
from roboalign.mllm.tiny import TinyConfig, build_tiny
from roboalign.run.recipe import Recipe

LABELLED = STYLES["labelled"]

VERL = "0.9.1"
TINY = {
    "image_size": 32,
    "depth": 2,
    "width": 32,
    "heads": 2,
    "kv_heads": 1,
    "mlp_width": 64,
    "vision_width": 32,
    "vision_depth": 2,
    "vision_heads": 2,
    "vocab_size": 500,
}
RL = {
    "prompts_per_rollout": 4,
    "prompts_per_update": 2,
    "micro_batch_size": 2,
    "max_new_tokens": 60,
}


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def fast() -> FastTokenizer:
    rng = np.random.default_rng(0)
    steps = rng.uniform(-1, 1, size=(200, 1, 2)) * np.linspace(0.2, 1, 4)[None, :, None]
    return FastTokenizer.fit(steps, scale=3, vocab_size=40)


@pytest.fixture(scope="module")
def mllm(fast):
    question = LABELLED.action_question("open the door", "think")
    model = build_tiny(
        TinyConfig(**TINY), [question, "<think>Go up and left.</think><answer>moon</answer>"] * 3
    )
    model.vocabulary = extend_tokenizer(model.tokenizer, fast.vocab_size)
    extend_model(model.model, model.tokenizer, model.vocabulary)
    return model


@pytest.fixture(scope="module")
def conversations(fast):
    chunks = np.random.default_rng(1).uniform(-1, 1, (5, 4, 2)).astype(np.float32)
    question = LABELLED.action_question("open the door", "think")
    return [
        Conversation(
            f"rl-{n}",
            "synthetic/door/0",
            n,
            "door",
            (png(n),),
            target=tuple(target),
            chunk=chunks[n].tolist(),
            turns=(
                Turn(
                    "action",
                    "action",
                    "think",
                    question,
                    write_tagged(action_answer(target), "Go."),
                    "",
                ),
            ),
        )
        for n, target in enumerate(fast.encode(chunks))
    ]


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


@pytest.fixture(scope="module", params=["paper", "decoded"])
def reward(request, mllm, fast, tmp_path_factory):
    """The preset's name, and the exported function file, loaded as a file."""
    folder = tmp_path_factory.mktemp(request.param)
    copy_reward(folder)
    write_json(folder / "reward.json", reward_settings(mllm, fast, request.param))
    return request.param, load_file(folder / "reward.py")


def ours(mllm, fast, text: str, target, preset: str):
    """Our reward of the ids that `text` is read as, and the text that a trainer would hand over for them."""
    ids = mllm.tokenizer.encode(text, add_special_tokens=False)
    (scored,) = score_responses(
        [ids],
        [target],
        preset=preset,
        vocabulary=mllm.vocabulary,
        fast=fast,
        eos_ids=end_ids(mllm),
        special_ids=special_ids(mllm),
        decode_text=lambda row: str(mllm.tokenizer.decode(list(row), skip_special_tokens=False)),
    )
    return scored, str(mllm.tokenizer.decode(ids, skip_special_tokens=False))


def same(theirs: dict, scored) -> None:
    for name in ("format", "action", "prefix"):
        assert theirs[name] == pytest.approx(getattr(scored, name), abs=1e-6), name
    assert theirs["score"] == pytest.approx(scored.total, abs=1e-6)


PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<ACTION_START>",
        "<ACTION_END>",
        "<FAST_1>",
        "<FAST_39>",
        "<FAST_40>",
        "<FAST_01>",
        "<FAST_",
        ">",
        " ",
        "\n",
        "moon",
        "Go up.",
        "<|im_end|>",
        "<|im_start|>",
        "é",
        "5",
    ]
)


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(PIECES, max_size=9))
def test_any_text_earns_what_its_ids_earn(reward, mllm, fast, conversations, pieces):
    preset, module = reward
    target = conversations[0].target
    scored, text = ours(mllm, fast, "".join(pieces), target, preset)
    same(module.score(text, list(target)), scored)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_answers_near_the_target_earn_what_their_ids_earn(reward, mllm, fast, conversations, data):
    preset, module = reward
    target = list(data.draw(st.sampled_from(conversations)).target)
    of_another = list(data.draw(st.sampled_from(conversations)).target)
    kept = data.draw(st.integers(0, len(target)))
    other = data.draw(st.lists(st.integers(0, fast.vocab_size - 1), max_size=3))
    block = data.draw(
        st.sampled_from(
            [target, of_another, target[:kept] + other, target[:kept] + of_another[kept:]]
        )
    )
    reasoning = data.draw(
        st.sampled_from(["Go.", "", "  ", "a <answer>", "<FAST_2>", "\n up \n", "a<|im_start|>b"])
    )
    end = data.draw(st.sampled_from(["", "<|im_end|>", "<|im_end|><|im_end|>", " ", " x"]))
    text = f"<think>{reasoning}</think><answer>{mllm.vocabulary.text(block)}</answer>{end}"
    scored, written = ours(mllm, fast, text, target, preset)
    same(module.score(written, target), scored)


def test_the_rewards_by_hand(reward, conversations):
    preset, module = reward
    module.SETTINGS.update(n_fast=40)
    block = "".join(f"<FAST_{i}>" for i in (7, 8, 9))
    text = f"<think>a</think><answer><ACTION_START>{block}<ACTION_END></answer>"
    target = list(conversations[0].target)
    perfect = text.replace(block, "".join(f"<FAST_{i}>" for i in target))
    assert module.compute_score("any", perfect, ground_truth(target), {"index": 0})["score"] == 1.0
    # Without its tags the same block earns 0.5 as written, nothing where a chunk has to be well formed to be paid.
    bare = perfect.replace("<think>a</think>", "")
    assert module.score(bare, target)["score"] == {"paper": 0.5, "decoded": 0.0}[preset]
    assert module.score("no idea", target)["score"] == 0.0
    if preset == "paper":
        assert module.score(text, [7, 8, 1, 2])["score"] == (1 + 2 / 4) / 2
    batch = [
        {"response": perfect, "response_length": 9, "ground_truth": ground_truth(target)},
        {"response": "no idea", "response_length": 2, "ground_truth": ground_truth(target)},
    ]
    assert [one["overall"] for one in module.compute_scores(batch)] == [1.0, 0.0]


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
