"""Mixture shards as TRL's SFTTrainer and verl's data set read them: unchanged, with the same tokens as ours."""

import ast
import importlib.metadata
import io
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import trl
from PIL import Image
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from roboalign.align.dataset import pictures
from roboalign.conversations.conversation import Conversation, Turn, write_conversations
from roboalign.mllm.encode import encode_conversation
from roboalign.mllm.load import Mllm
from roboalign.mllm.tiny_classes import build_class

TEXTS = ["Where is the red block? Is it left of the box, or right?", "left right one two"] * 9


def image(seed: int, size: tuple[int, int], kind: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def talk(name: str, questions: list[str], *images: bytes) -> Conversation:
    turns = tuple(Turn("general", "text", "direct", q, "left", "left") for q in questions)
    return Conversation(name, "episode", 0, "task", images, turns)


PNG, JPEG, WEBP = (image(n, (32 + 16 * n, 48), k) for n, k in enumerate(("PNG", "JPEG", "WEBP")))
TALKS = [
    talk("none", ["Is it left?", "Or right?"]),
    talk("one", ["Where is the red block?", "Is it left?"], PNG),
    talk("two", ["Which is left?"], JPEG, WEBP),
    talk("inside", ["Is <image> left of <image>, or <image>?"], PNG, JPEG, WEBP),
    talk("late", ["Is it left?", "Where is <image>?"], JPEG),
]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture") / "train-00000.parquet"
    write_conversations(path, TALKS)
    return path


@pytest.fixture(scope="module")
def rows(shard: Path) -> datasets.Dataset:
    cache = str(shard.parent / "cache")
    return datasets.load_dataset("parquet", data_files=str(shard), cache_dir=cache, split="train")


def ours(mllm: Mllm, conversation: Conversation) -> list[int]:
    turns = [{"question": t.question, "answer": t.answer} for t in conversation.turns]
    return encode_conversation(mllm, turns, pictures(conversation)).input_ids.tolist()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_trl_makes_the_same_tokens_of_a_shard(name: str, rows: datasets.Dataset) -> None:
    mllm = build_class(name, TEXTS)
    collator = DataCollatorForVisionLanguageModeling(mllm.processor)
    for row, conversation in zip(rows, TALKS, strict=True):
        found = collator([row])
        assert found["input_ids"][0].tolist() == ours(mllm, conversation), conversation.id
        assert ("pixel_values" in found) == bool(conversation.images)


def test_trl_trains_on_a_shard(rows: datasets.Dataset, tmp_path: Path) -> None:
    """One update of an unmodified SFTTrainer, on conversations with one image, two and three."""
    mllm = build_class("qwen3_vl", TEXTS)
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=3,
        max_steps=1,
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = trl.SFTTrainer(
        mllm.model,
        args=arguments,
        train_dataset=rows.select([1, 2, 3]),
        processing_class=mllm.processor,
    )
    assert np.isfinite(trainer.train().training_loss)


def test_verl_builds_the_messages_of_a_shard(shard: Path) -> None:
    """verl's own method, taken out of the installed file: importing verl starts with Ray."""
    try:
        root = Path(str(importlib.metadata.distribution("verl").locate_file("verl")))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("verl is not installed: pip install --no-deps verl==0.9.1")
    path = root / "utils/dataset/multiturn_sft_dataset.py"
    names = {"_build_messages"}
    body = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name in names
    ]
    future = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
    module = ast.fix_missing_locations(ast.Module([future, *body], []))
    scope: dict = {
        "re": re,
        "process_image": lambda one, **_: one["bytes"],
        "convert_nested_value_to_list_recursive": lambda found: [dict(one) for one in found],
    }
    exec(compile(module, str(path), "exec"), scope)
    settings = type(
        "Settings",
        (),
        {
            "messages_key": "chat",
            "image_key": "images",
            "video_key": "videos",
            "processor": object(),
            "image_patch_size": 14,
        },
    )
    table = pq.read_table(shard).to_pandas()
    for (_, row), conversation in zip(table.iterrows(), TALKS, strict=True):
        found = scope["_build_messages"](settings, row.to_dict())
        assert [one["role"] for one in found] == ["user", "assistant"] * len(conversation.turns)
        parts = [part for one in found for part in one["content"]]
        shown = tuple(part["image"] for part in parts if part["type"] == "image")
        assert shown == conversation.images
        texts = "".join(part.get("text", "") for part in parts)
        assert texts == "".join(
            t.question.replace("<image>", "") + t.answer for t in conversation.turns
        )
