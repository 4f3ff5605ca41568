"""Memory and time of reading an SFT mixture from its shards, against holding all of it: one command.

    python benchmarks/sft_reading.py [--conversations 2280000] [--image-bytes 50000] [--json PATH]

The shards hold 2,000 conversations of one to five turns in row groups of 100, as `roboalign data mix` writes them, with
random bytes for images; one shard is written, the others are links to it. The list is measured on a twentieth of the
conversations (it would not fit otherwise) and each side runs in a process of its own. Random reads are timed with the
files in the page cache: what is left is decoding.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from roboalign.conversations.conversation import (
    Conversation,
    Turn,
    read_conversations,
    write_conversations,
)
from roboalign.conversations.stored import StoredConversations
from roboalign.core.files import read_json, write_json

SHARD, GROUP, READS, REPEATS = 2000, 100, 400, 5


def conversation(number: int, image_bytes: int) -> Conversation:
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
        f"talk-{number}", "episode", number, "task", (rng.randbytes(image_bytes),), turns
    )


def write_mixture(folder: Path, count: int, image_bytes: int) -> None:
    """One shard of SHARD conversations in row groups of GROUP, and links to it."""
    first = folder / "train-000000.parquet"
    write_conversations(first, (conversation(number, image_bytes) for number in range(SHARD)))
    pq.write_table(pq.read_table(first), first, row_group_size=GROUP, use_dictionary=False)
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


def measure(side: str, folder: Path) -> dict[str, Any]:
    """MiB above that of the libraries, seconds until the first sample can be read, milliseconds of a random read."""
    before, began = peak(), time.perf_counter()
    found = (
        StoredConversations(folder, "train")
        if side == "shards"
        else read_conversations(folder, "train")
    )
    opened, times = time.perf_counter() - began, []
    for repeat in range(REPEATS):
        chosen = np.random.default_rng(repeat).integers(len(found), size=READS).tolist()
        began = time.perf_counter()
        assert all(found[index].images for index in chosen)
        times.append((time.perf_counter() - began) / READS * 1000)
    spread = {
        "read_ms": statistics.median(times),
        "read_ms_least": min(times),
        "read_ms_greatest": max(times),
    }
    return {"conversations": len(found), "mib": peak() - before, "open_seconds": opened, **spread}


def run(side: str, count: int, image_bytes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mixture(folder, count, image_bytes)
        command = [
            sys.executable,
            __file__,
            "--side",
            side,
            "--json",
            str(folder / "found.json"),
            "--folder",
            name,
        ]
        subprocess.run(command, check=True)
        return read_json(folder / "found.json")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conversations", type=int, default=2_280_000)
    parser.add_argument("--image-bytes", type=int, default=50_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("shards", "list"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        write_json(options.json, measure(options.side, options.folder))
        return
    whole, part = options.conversations, options.conversations // 20
    rows = {
        "the list": run("list", part, options.image_bytes),
        "shards": run("shards", part, options.image_bytes),
        "shards, all": run("shards", whole, options.image_bytes),
    }
    print(
        f"images of {options.image_bytes:,} bytes, shards of {SHARD}, row groups of {GROUP}, {READS} random reads, "
        f"median of {REPEATS} (least to greatest)\n"
    )
    print(
        "| | conversations | memory, MiB | to open, s | a random read, ms |\n|---|---|---|---|---|"
    )
    for name, row in rows.items():
        spread = (
            f"{row['read_ms']:.2f} ({row['read_ms_least']:.2f} to {row['read_ms_greatest']:.2f})"
        )
        print(
            f"| {name} | {row['conversations']:,} | {row['mib']:,.0f} | {row['open_seconds']:.1f} | {spread} |"
        )
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
