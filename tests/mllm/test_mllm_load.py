import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers.video_processing_utils import BaseVideoProcessor

from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import collate, encode_prompt
from roboalign.mllm.load import load_mllm, save_mllm
from roboalign.mllm.tiny import (
    REPLY_TOKENS,
    SPECIAL_TOKENS,
    WHOLE_NUMBERS,
    TinyConfig,
    build_tiny,
    train_tokenizer,
)
from roboalign.mllm.tiny_classes import build_class

TEXTS = ["Where is the red block? The gripper moves left."] * 9


def logits(mllm, prompts):
    batch = collate(mllm, [encode_prompt(mllm, p.question, p.images) for p in prompts])
    with torch.no_grad():
        return mllm.model(**batch).logits


def test_round_trip_through_a_folder(any_mllm, prompts, tmp_path):
    save_mllm(any_mllm, tmp_path / "model")
    loaded = load_mllm(tmp_path / "model")
    assert not loaded.model.training
    assert loaded.folder == tmp_path / "model"
    assert torch.equal(logits(loaded, prompts), logits(any_mllm, prompts))
    assert loaded.vocabulary is None


@pytest.mark.parametrize(("name", "kind"), [("qwen2_5_vl", "Qwen2VL"), ("qwen3_vl", "Qwen3VL")])
def test_a_qwen_folder_has_what_the_stock_processor_asks_for(name, kind, tmp_path):
    """The stock class needs a video half, which is built where torchvision is; its settings are read without."""
    mllm = build_class(name, TEXTS)
    save_mllm(mllm, tmp_path / "model")
    settings, _ = BaseVideoProcessor.get_video_processor_dict(
        tmp_path / "model", local_files_only=True
    )
    assert settings["video_processor_type"] == f"{kind}VideoProcessor"
    assert (settings["patch_size"], settings["image_std"]) == (
        8,
        list(mllm.processor.image_processor.image_std),
    )
    image = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert image["image_processor_type"] == "Qwen2VLImageProcessor" and image["patch_size"] == 8
    assert (
        load_mllm(tmp_path / "model").processor.image_processor.to_dict()
        == mllm.processor.image_processor.to_dict()
    )
    processor = json.loads((tmp_path / "model" / "processor_config.json").read_text())
    assert {settings["processor_class"], image["processor_class"]} == {processor["processor_class"]}


@pytest.mark.parametrize(
    ("name", "kind"), [("smolvlm", "SmolVLM"), ("llava_onevision", "LlavaOnevision")]
)
def test_so_have_the_other_folders_whose_stock_processor_has_a_video_half(name, kind, tmp_path):
    mllm = build_class(name, TEXTS)
    save_mllm(mllm, tmp_path / "model")
    settings, _ = BaseVideoProcessor.get_video_processor_dict(
        tmp_path / "model", local_files_only=True
    )
    image = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert settings["video_processor_type"] == f"{kind}VideoProcessor"
    assert image["image_processor_type"] == f"{kind}ImageProcessor"
    assert all(settings[part] == image[part] for part in ("size", "image_mean"))
    assert (
        load_mllm(tmp_path / "model").processor.image_processor.to_dict()
        == mllm.processor.image_processor.to_dict()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk(qwen3, prompts, tmp_path, dtype):
    save_mllm(qwen3, tmp_path / "whole")
    save_mllm(qwen3, tmp_path / "half", dtype=dtype)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load_mllm(tmp_path / "half")
    assert loaded.model.dtype == torch.float32
    assert qwen3.model.dtype == torch.float32
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, qwen3.model.state_dict()[name].to(dtype).float()), name


def test_vocabulary_is_found_again(prompts, tmp_path):
    mllm = build_tiny(TinyConfig(vocab_size=600, depth=1, vision_depth=1, deepstack=(0,)), TEXTS)
    mllm.vocabulary = extend_tokenizer(mllm.tokenizer, 7)
    extend_model(mllm.model, mllm.tokenizer, mllm.vocabulary)
    save_mllm(mllm, tmp_path / "model")
    loaded = load_mllm(tmp_path / "model")
    assert loaded.vocabulary == mllm.vocabulary
    assert len(loaded.vocabulary.fast_ids) == 7
    assert torch.equal(logits(loaded, prompts), logits(mllm, prompts))


def test_saving_replaces_a_folder_whole(qwen3, tmp_path):
    save_mllm(qwen3, tmp_path / "model")
    (tmp_path / "model" / "stale.txt").write_text("old")
    save_mllm(qwen3, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "stale.txt").exists()


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "lost weight":
        tensors = load_file(weights)
        del tensors["model.language_model.layers.0.mlp.up_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif how == "no weights":
        weights.unlink()
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "broken config":
        (folder / "config.json").write_text("{")
    elif how == "text model":
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


@pytest.mark.parametrize(
    "how",
    ["cut weights", "lost weight", "no weights", "no tokenizer", "broken config", "text model"],
)
def test_damaged_folders_are_named(qwen3, tmp_path, how):
    save_mllm(qwen3, tmp_path / "model")
    damage(tmp_path / "model", how)
    with pytest.raises(RoboAlignError, match="model"):
        load_mllm(tmp_path / "model")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(RoboAlignError, match=r"config\.json does not exist"):
        load_mllm(tmp_path)


def test_tiny_is_small_tied_and_reproducible():
    first, second = (build_tiny(TinyConfig(), TEXTS) for _ in range(2))
    n_parameters = sum(weight.numel() for weight in first.model.parameters())
    assert 2 * n_parameters < 9.5e6  # bytes at 16 bits
    assert first.model.get_output_embeddings().weight is first.model.get_input_embeddings().weight
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
    other = build_tiny(TinyConfig(seed=1), TEXTS)
    assert not torch.equal(other.model.lm_head.weight, first.model.lm_head.weight)


def test_tokenizer_keeps_numbers_and_reply_tags_whole():
    tokenizer = train_tokenizer(TEXTS, 600)
    assert len(tokenizer) <= 600
    for text in [f" {number}" for number in WHOLE_NUMBERS] + [*SPECIAL_TOKENS, *REPLY_TOKENS]:
        assert len(tokenizer(text)["input_ids"]) == 1, text
    reply = "<think>left</think><answer> 12 63</answer>"
    assert tokenizer.decode(tokenizer(reply)["input_ids"], skip_special_tokens=True) == reply


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 60},
        {"heads": 5},
        {"deepstack": (9,)},
        {"vision_heads": 3},
        {"vocab_size": 10},
        {"colour": 1},
    ],
)
def test_shapes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValidationError):
        TinyConfig(**wrong)


def test_a_vocabulary_too_small_for_the_numbers_is_refused():
    with pytest.raises(RoboAlignError, match="vocab_size"):
        train_tokenizer(TEXTS, 300)
