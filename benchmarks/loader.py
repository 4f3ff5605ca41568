"""Samples per second and core from shards to collated tensors, against `datasets` and TRL's own collator: one command.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [--samples 128] [--size 448] [--batch 8] [--rounds 5] [--json PATH]

The shards hold JPEG images of `--size` pixels, one to three a conversation, with one to four turns. Both sides read
the same samples in the same random order from the same shards, in batches, with the same processor (Qwen3-VL's, PIL
images, patches of 16 pixels merged by two), in one thread. Theirs is `load_dataset("parquet")` and TRL's
DataCollatorForVisionLanguageModeling. Before anything is timed, ids and pixels of both are compared. The sides run in
turn; seconds are of the process (CPU), so other load on the machine matters less.
"""

import argparse
import io
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import trl
from PIL import Image
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from roboalign.align.dataset import Conversations, collate_conversations
from roboalign.conversations.conversation import Conversation, Turn, write_conversations
from roboalign.conversations.stored import StoredConversations
from roboalign.core.files import write_json
from roboalign.mllm.load import Mllm
from roboalign.mllm.tiny import TinyConfig, build_tiny

Batch = dict[str, torch.Tensor]
TEXT = "the red cube is left of a drawer that two arms can open with one handle near"
WORDS = TEXT.split()


def picture(rng: np.random.Generator, size: int) -> bytes:
    """Return a JPEG of smooth shapes and some noise, as a photograph has."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def conversation(number: int, size: int) -> Conversation:
    chance, rng = random.Random(number), np.random.default_rng(number)
    turns = tuple(
        Turn(
            "general",
            "words",
            "direct",
            " ".join(chance.choices(WORDS, k=40)) + "?",
            " ".join(chance.choices(WORDS, k=chance.randint(5, 60))),
            "x",
        )
        for _ in range(chance.randint(1, 4))
    )
    images = tuple(picture(rng, size) for _ in range(chance.choice((1, 1, 1, 2, 3))))
    return Conversation(f"talk-{number}", "episode", number, "task", images, turns)


def ours(mllm: Mllm, folder: Path) -> Callable[[list[int]], Batch]:
    samples = Conversations(mllm, StoredConversations(folder, "train"))
    return lambda numbers: collate_conversations(
        mllm, [samples[number] for number in numbers], neutral=False
    )


def theirs(mllm: Mllm, folder: Path) -> Callable[[list[int]], Batch]:
    files, copy = str(folder / "train-*.parquet"), str(folder / "copy")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=copy)
    rows = rows.select_columns(["messages", "images"])
    collator = DataCollatorForVisionLanguageModeling(mllm.processor)
    return lambda numbers: collator([rows[number] for number in numbers])


def batches(order: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(order), size):
        yield order[first : first + size]


def require_equal(mine: Batch, other: Batch) -> None:
    """Stop unless both sides made the same ids and pixels; theirs adds a line break at the end."""
    width = min(mine["input_ids"].shape[1], other["input_ids"].shape[1])
    mask = mine["attention_mask"][:, :width] == 1
    assert torch.equal(mine["input_ids"][:, :width][mask], other["input_ids"][:, :width][mask])
    assert torch.equal(mine["image_grid_thw"], other["image_grid_thw"])
    assert torch.equal(mine["pixel_values"], other["pixel_values"].to(mine["pixel_values"].dtype))


def seconds(make: Callable[[list[int]], Batch], order: list[int], size: int) -> float:
    began = time.process_time()
    for numbers in batches(order, size):
        make(numbers)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("samples", 128), ("size", 448), ("batch", 8), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        talks = [conversation(number, args.size) for number in range(args.samples)]
        write_conversations(folder / "train-00000.parquet", talks)
        shape = TinyConfig(image_size=args.size, patch_size=16, merge=2)
        mllm = build_tiny(shape, [turn.question for talk in talks for turn in talk.turns])
        sides = {"RoboAlign": ours(mllm, folder), "TRL": theirs(mllm, folder)}
        order = np.random.default_rng(0).permutation(args.samples).tolist()
        for numbers in batches(order[: 4 * args.batch], args.batch):  # this warms up as well
            require_equal(*(make(numbers) for make in sides.values()))
        rounds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(args.rounds):
            order = np.random.default_rng(number).permutation(args.samples).tolist()
            for name, make in sides.items():
                rounds[name].append(args.samples / seconds(make, order, args.batch))
    report(args, sum(len(talk.images) for talk in talks) / args.samples, rounds)


def report(args: argparse.Namespace, images: float, rounds: dict[str, list[float]]) -> None:
    print(
        f"{args.samples} samples, {images:.2f} images of {args.size} px each, batches of {args.batch}, {args.rounds} "
        f"rounds, trl {trl.__version__}, datasets {datasets.__version__}, load average {os.getloadavg()[0]:.1f}\n\n"
        "| | samples per CPU second, median (least to greatest) |\n|---|---|"
    )
    for name, rates in rounds.items():
        print(f"| {name} | {statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f}) |")
    ratios = [a / b for a, b in zip(rounds["RoboAlign"], rounds["TRL"])]
    print(
        f"\nRoboAlign / TRL: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    if args.json:
        told: dict[str, Any] = {"settings": {k: str(v) for k, v in vars(args).items()}} | rounds
        write_json(args.json, told)


if __name__ == "__main__":
    main()
