"""Memory, disk and time of reading an SFT mixture from its shards, against `datasets` and a list: one command.

    python benchmarks/sft_reading.py [--conversations 20000] [--all 2280000] [--image-bytes 50000] [--images 1]

The shards hold 2,000 conversations of one to five turns, as they are written here, with random bytes for images; one
shard is written, the others are links to it. `datasets` reads the same shards (`load_dataset("parquet")`), which
writes an Arrow copy of them first, and returns a row with its image as bytes. Each side runs in a process of its own,
several times in turn. Random reads are timed with the files in the page cache: what is left is finding and decoding.
`--all` repeats ours with that many conversations (0: not at all).
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.conversations.conversation import (
    Conversation,
    Turn,
    read_conversations,
    write_conversations,
)
from roboalign.conversations.stored import StoredConversations
from roboalign.core.files import read_json, write_json

SHARD, READS, ROUNDS = 2000, 400, 5


def conversation(number: int, image_bytes: int, images: int) -> Conversation:
    rng = random.Random(number)
    turns = tuple(
        Turn(
            "general",
            "words",
            "direct",
            f"Where is object {number} of {turn}? " * rng.randint(1, 4),
            "<answer>left of the red drawer</answer>" * rng.randint(1, 3),
            "left",
        )
        for turn in range(rng.randint(1, 5))
    )
    return Conversation(
        f"talk-{number}",
        "episode",
        number,
        "task",
        tuple(rng.randbytes(image_bytes) for _ in range(images)),
        turns,
    )


def write_mixture(folder: Path, count: int, image_bytes: int, images: int) -> None:
    """One shard of SHARD conversations, and links to it."""
    first = folder / "train-000000.parquet"
    write_conversations(
        first, (conversation(number, image_bytes, images) for number in range(SHARD))
    )
    for number in range(1, count // SHARD):
        os.link(first, folder / f"train-{number:06d}.parquet")


def peak() -> float:
    """MiB, the most that this process has held at a time."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) / 1024


def opened(side: str, folder: Path) -> Any:
    """Return a sequence of the mixture's samples, as this side reads it."""
    if side == "a list":
        return read_conversations(folder, "train")
    if side == "shards":
        return StoredConversations(folder, "train")
    from datasets import Image, List, load_dataset

    files = str(folder / "train-*.parquet")
    found = load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "copy"))
    return found.cast_column("images", List(Image(decode=False)))


def images_of(sample: Any) -> list[bytes]:
    if isinstance(sample, Conversation):
        return list(sample.images)
    return [image["bytes"] for image in sample["images"]]


def measure(side: str, folder: Path, seed: int) -> dict[str, float]:
    """MiB above that of the libraries, MiB written, seconds to open, milliseconds of a random read."""
    before, began = peak(), time.perf_counter()
    found = opened(side, folder)
    ready = time.perf_counter() - began
    chosen = np.random.default_rng(seed).integers(len(found), size=READS).tolist()
    began, busy = time.perf_counter(), time.process_time()
    assert all(len(images_of(found[index])[0]) for index in chosen)
    read, used = time.perf_counter() - began, time.process_time() - busy
    written = sum(path.stat().st_size for path in folder.glob("copy/**/*") if path.is_file())
    return {
        "conversations": len(found),
        "mib": peak() - before,
        "written_mib": written / 2**20,
        "open_seconds": ready,
        "read_ms": read / READS * 1000,
        "cpu_ms": used / READS * 1000,
    }


def run(side: str, folder: Path, seed: int) -> dict[str, float]:
    """Measure one side in a process of its own, and remove what it wrote."""
    told = folder / "found.json"
    asked = ["--side", side, "--seed", str(seed), "--json", str(told), "--folder", str(folder)]
    quiet = os.environ | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run([sys.executable, __file__, *asked], check=True, env=quiet)
    shutil.rmtree(folder / "copy", ignore_errors=True)
    return read_json(told)


def spread(values: list[float], digits: int = 2) -> str:
    middle, *ends = (round(f(values), digits) for f in (statistics.median, min, max))
    return f"{middle:,} ({ends[0]:,} to {ends[1]:,})"


def compare(
    sides: list[str], count: int, image_bytes: int, images: int, rounds: int
) -> dict[str, Any]:
    """Measure the sides in turn on one mixture; print a line for each, and the ratios to the first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mixture(folder, count, image_bytes, images)
        shards = sum(path.stat().st_size for path in folder.glob("*.parquet")) / 2**20
        found = {side: [] for side in sides}
        for number in range(rounds):
            for side in sides:
                found[side].append(run(side, folder, number))
    for side, rows in found.items():
        told = {key: [row[key] for row in rows] for key in rows[0]}
        print(
            f"| {side} | {rows[0]['conversations']:,} | {spread(told['mib'], 0)} "
            f"| {shards:,.0f} + {told['written_mib'][0]:,.0f} "
            f"| {spread(told['open_seconds'], 1)} | {spread(told['read_ms'])} | {spread(told['cpu_ms'])} |",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conversations", type=int, default=20_000)
    parser.add_argument("--all", type=int, default=2_280_000)
    parser.add_argument("--image-bytes", type=int, default=50_000)
    parser.add_argument("--images", type=int, default=1, help="of each conversation")
    parser.add_argument("--json", type=Path)
    for hidden in ("--side", "--folder", "--seed"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        row = measure(options.side, Path(options.folder), int(options.seed))
        write_json(options.json, row)
        return
    print(
        f"{options.images} images of {options.image_bytes:,} bytes a sample, shards of {SHARD}, {READS} random reads "
        f"a round, {ROUNDS} rounds in turn, median (least to greatest), load average {os.getloadavg()[0]:.1f}\n"
    )
    print(
        "| | conversations | memory, MiB | disk, MiB: shards + copy | to open, s | a random read, ms | of it CPU |\n"
        "|---|---|---|---|---|---|---|"
    )
    sides = ["shards", "datasets", "a list"]
    found = compare(sides, options.conversations, options.image_bytes, options.images, ROUNDS)
    if options.all:
        found["all"] = compare(["shards"], options.all, options.image_bytes, options.images, 1)[
            "shards"
        ]
    for key, what in {"read_ms": "wall", "cpu_ms": "CPU", "open_seconds": "wall, to open"}.items():
        pairs = zip(found["shards"], found["datasets"])
        print(
            f"ours / datasets, {what}: {spread([ours[key] / theirs[key] for ours, theirs in pairs])}"
        )
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
