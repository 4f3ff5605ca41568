"""Small random models, and replies that a test writes instead of a model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import roboalign.bench.measure as measure
from roboalign.mllm.encode import Encoded
from roboalign.mllm.generate import Generation
from roboalign.mllm.load import Mllm, save_mllm
from roboalign.mllm.tiny import TinyConfig, build_tiny

SMALL = TinyConfig(
    width=48,
    heads=4,
    kv_heads=2,
    mlp_width=96,
    depth=2,
    vision_width=32,
    vision_depth=2,
    vision_heads=2,
    deepstack=(0,),
    image_size=32,
    vocab_size=500,
)
TEXTS = ["Which color does the square have?", "Options: A: red, B: green", "(0.5, 0.25)"]


def small_model(folder: Path | None = None) -> Mllm:
    """A random model of Qwen3-VL's class; saved into `folder` where one is given."""
    mllm = build_tiny(SMALL, TEXTS)
    if folder is not None:
        save_mllm(mllm, folder)
    return mllm


def script(
    patch: pytest.MonkeyPatch, reply: Callable[[str, int], str]
) -> list[tuple[str, tuple[int, ...]]]:
    """Answer with `reply(question, images)`; the list returned fills with what was asked."""
    asked: list[tuple[str, tuple[int, ...]]] = []

    def generate(mllm: Mllm, prompts: Sequence[Encoded], **options: object) -> Generation:
        tokens = []
        for prompt in prompts:
            text = mllm.tokenizer.decode(prompt.input_ids)
            question = text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
            question = question.rpartition("<|vision_end|>")[2]
            asked.append((question, tuple(int(image.mean()) for image in prompt.images)))
            ids = mllm.tokenizer(reply(question, len(prompt.images)))["input_ids"]
            tokens.append([[*ids, mllm.tokenizer.eos_token_id]])
        count = len(prompts)
        return Generation(tokens, [[[]]] * count, [[True]] * count, 0, 0)

    patch.setattr(measure, "generate", generate)
    return asked


def as_datasets_writes(folder: Path, *pictures: str) -> None:
    """Rewrite parquet files as `datasets` stores them, with their image columns marked."""
    from datasets import Dataset, Image

    for path in sorted(folder.rglob("*.parquet")):
        table = Dataset.from_parquet(str(path), cache_dir=str(folder / "cache"))
        for name in pictures:
            table = table.cast_column(name, Image())
        table.to_parquet(str(path))
