"""Peak memory and speed of building a mixture, by its size, against `datasets.Dataset.from_generator` doing the same.

    python benchmarks/mixture.py [--sizes 10000 100000 1000000] [--workers 2] [--sides ours datasets] [--json PATH]

Both read the same made-up files (questions with a tiny image in parquet, stored conversations; a tenth more than is
asked), turn records into conversations with the same functions, draw by weights, drop what repeats, keep out of
training 1% of the images and what looks like an image of an evaluation set, shuffle, and write parquet shards of 2,000.
Each is a command of its own, one after the other; the files of a size are deleted before the next. Memory is that of
the command and all processes it starts, polled: proportional set size, and the part of it that is no page of a file
(anonymous). The bytes on disk are in the folder for temporary files, about 9 GB at most for a million samples.
"""

import argparse
import hashlib
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from memory import family
from PIL import Image

from roboalign.conversations.conversation import (
    ROW,
    Conversation,
    Turn,
    row_of,
    shards,
    write_conversations,
)
from roboalign.core.files import write_json
from roboalign.mixture.builder import build
from roboalign.mixture.config import MixtureConfig
from roboalign.mixture.examine import Looked, content_of, held_out, look_at
from roboalign.mixture.keys import first_bytes, signed
from roboalign.mixture.leaks import (
    EVALUATED,
    Evaluated,
    evaluation_tasks,
    join_evaluation,
    read_evaluation,
)
from roboalign.mixture.looks import LOOK_DTYPE, SeenImages
from roboalign.mixture.parts import FRAME_BITS, Part, Wanted
from roboalign.mixture.sources.read import fetch, parts_of

WEIGHTS = {"qa-a": 0.25, "qa-b": 0.25, "qa-c": 0.15, "qa-d": 0.15, "talks": 0.2}
SHOWN = 500
"""Images of the evaluation set."""
SHARD = 2_000
EVERY = 1.0
"""Seconds between two looks at the memory."""
SIDES = {"ours": "RoboAlign", "datasets": "datasets.Dataset.from_generator"}


def picture(number: int) -> bytes:
    """A PNG of 16 x 16 pixels that no other number has."""
    colours = hashlib.blake2b(str(number).encode(), digest_size=48).digest()
    buffer = io.BytesIO()
    image = Image.frombytes("RGB", (4, 4), colours).resize((16, 16), Image.Resampling.BILINEAR)
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def conversation(number: int) -> Conversation:
    """A stored conversation of one turn."""
    question, answer = f"Where is object {number}, and what is beside it?", f"left of {number + 1}"
    reply = f"<think>I look for {number}.</think><answer>answer {answer}</answer>"
    turn = Turn("reasoning", "text", "think", question, reply, answer)
    return Conversation(
        f"talk-{number}", f"episode-{number // 8}", number % 8, "talk", (picture(number),), (turn,)
    )


def write_sources(folder: Path, size: int) -> dict[str, Any]:
    """Write files with a tenth more samples than `size`; return the settings of a mixture of `size`."""
    first, sources = 0, []
    folder.mkdir()
    for name, weight in WEIGHTS.items():
        count = int(size * weight * 1.1) + 20
        numbers = range(first, first + count)
        if name == "talks":
            for start in range(0, count, SHARD):
                part = numbers[start : start + SHARD]
                write_conversations(
                    folder / name / f"train-{start // SHARD:05d}.parquet", map(conversation, part)
                )
            sources.append({"name": name, "conversations": str(folder / name), "weight": weight})
        else:
            write_questions(folder / f"{name}.parquet", numbers)
            sources.append(
                {
                    "name": name,
                    "qa": str(folder / f"{name}.parquet"),
                    "layout": "pairs",
                    "weight": weight,
                }
            )
        first += count
    shown = [
        10**8 + n if n % 5 else n * first // SHOWN for n in range(SHOWN)
    ]  # a fifth are pictures of the sources
    held = (replace(conversation(n), episode_id=f"evaluated-{n}") for n in shown)
    write_conversations(folder / "evaluation" / "heldout.parquet", held)
    return {
        "name": "made",
        "total": size,
        "sources": sources,
        "heldout": {"share": 0.01},
        "shard_size": SHARD,
        "evaluation": [str(folder / "evaluation")],
    }


def write_questions(path: Path, numbers: range) -> None:
    """Records of id, question, answer and image."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("id", pa.string()), ("question", pa.string()), ("answer", pa.string()), ("image", image)]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(numbers), SHARD):
            rows = [
                {
                    "id": str(n),
                    "question": f"How far away is object {n}?",
                    "answer": f"About {n % 97} cm.",
                    "image": {"bytes": picture(n), "path": None},
                }
                for n in numbers[start : start + SHARD]
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


# The same with the datasets library -----------------------------------------------------------------------------------

FACTS = pa.schema(
    [
        ("source", pa.int64()),
        ("content", pa.int64()),
        ("held", pa.bool_()),
        ("leak", pa.bool_()),
        ("sha", pa.int64()),
        ("look", pa.int64()),
        ("thumb", pa.binary()),
    ]
)


def rows_of(parts: list[Part], config: MixtureConfig, work: Path) -> Iterator[dict[str, Any]]:
    """The samples of some files as they are stored, each with what decides about it."""
    evaluated = Evaluated(work, config.near)
    for part in parts:
        places = (
            Wanted(n << FRAME_BITS, 0, 0)
            for n in range(1, pq.read_metadata(part.file).num_rows + 1)
        )
        for _, draft in fetch(config, part, places, None):
            one = look_at(draft, evaluated)
            assert isinstance(one, Looked)
            facts = (
                part.source,
                content_of(one),
                held_out(config, one.group),
                one.leak is not None,
                first_bytes(one.sha),
                signed(one.look),
                one.thumb,
            )
            yield row_of(one.conversation) | dict(zip(FACTS.names, facts))


def with_datasets(config: MixtureConfig, folder: Path, workers: int) -> None:
    """Write the mixture to folder/out."""
    from datasets import Dataset, Features

    (folder / EVALUATED).mkdir()
    for task in evaluation_tasks(folder, 0, config.evaluation[0]):
        read_evaluation(*task)
    join_evaluation(folder, config.evaluation)
    parts = [
        part for number, source in enumerate(config.sources) for part in parts_of(number, source)[0]
    ]
    parts.sort(key=lambda part: -part.file.stat().st_size)
    parts = [
        part for worker in range(workers) for part in parts[worker::workers]
    ]  # each process gets as much
    found = Dataset.from_generator(
        rows_of,
        features=Features.from_arrow_schema(pa.schema([*ROW, *FACTS])),
        num_proc=workers,
        gen_kwargs={"parts": parts, "config": config, "work": folder},
        cache_dir=str(folder / "cache"),
    )
    numbers = found.with_format("numpy")
    source, content, held, leak, sha, look = (numbers[name][:] for name in FACTS.names[:-1])
    look = look.view(np.uint64)
    chance = np.random.default_rng(config.seed)
    order = chance.permutation(len(found))
    order = order[~leak[order]]
    order = order[np.sort(np.unique(content[order], return_index=True)[1])]
    good, out = order[~held[order]], order[held[order]]
    kept = np.concatenate(
        [good[source[good] == number][:asked] for number, asked in enumerate(config.asked())]
    )
    chance.shuffle(kept)

    thumbs = found.select_columns(["thumb"])
    images = np.zeros(len(out), dtype=LOOK_DTYPE)
    for place, number in enumerate(out.tolist()):
        images[place] = sha[number], look[number], np.frombuffer(thumbs[number]["thumb"], np.uint8)
    seen, shown = SeenImages(images, config.near.distance, config.near.difference), set()
    for number in kept.tolist():
        shown.update(seen.exact(int(sha[number])).tolist())
        if seen.alike(int(look[number])).size:
            shown.update(
                seen.near(
                    int(look[number]), np.frombuffer(thumbs[number]["thumb"], np.uint8)
                ).tolist()
            )
    out = np.delete(out, sorted(shown))

    plain = found.select_columns(ROW.names)
    (folder / "out").mkdir()
    plain.select(out).to_parquet(folder / "out" / "heldout.parquet")
    for first in range(0, len(kept), SHARD):
        plain.select(kept[first : first + SHARD]).to_parquet(
            folder / "out" / f"train-{first // SHARD:05d}.parquet"
        )


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(command: list[str]) -> dict[str, float]:
    """Peak memory in MiB (proportional, and its anonymous part), wall and CPU seconds of a command and its family."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process, peak = (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE),
        [0, 0],
    )
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()))
    reader.start()
    while process.poll() is None:
        found = [memory_of(pid) for pid in family(process.pid)]
        peak = [max(old, sum(one[k] for one in found)) for k, old in enumerate(peak)]
        time.sleep(EVERY)
    reader.join()
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(b"".join(errors[-40:]).decode(errors="replace"))
    return {
        "peak_mib": peak[0] / 1024,
        "anonymous_mib": peak[1] / 1024,
        "seconds": wall,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def memory_of(pid: int) -> tuple[int, int]:
    """KiB, shared pages divided among those that share them: all, and those that are of no file."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return found.get("Pss", 0), found.get("Pss_Anon", 0)


def run_one(side: str, folder: Path, workers: int) -> None:
    """One side, as a command of its own."""
    config = MixtureConfig.model_validate_json((folder / "config.json").read_text())
    if side == "ours":
        build(config, folder / side / "out", workers=workers)
    else:
        with_datasets(config, folder / side, workers)


def compare(size: int, sides: list[str], workers: int, root: Path) -> dict[str, dict[str, float]]:
    """Measure the sides at one size."""
    folder, results = root / str(size), {}
    write_json(folder / "config.json", write_sources(folder, size))
    for side in sides:
        (folder / side).mkdir()
        command = [
            sys.executable,
            __file__,
            "--side",
            side,
            "--folder",
            str(folder),
            "--workers",
            str(workers),
        ]
        results[side] = measure(command)
        written = sum(
            pq.read_metadata(path).num_rows for path in shards(folder / side / "out", "train")
        )
        assert written == size, (side, written)
        used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        results[side] |= {"samples_per_second": size / results[side]["seconds"]}
        print(
            f"{size:>9,} {side:8} {results[side]}  {used / 2**30:.1f} GiB on disk",
            file=sys.stderr,
            flush=True,
        )
        shutil.rmtree(folder / side)
    shutil.rmtree(folder)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_one(options.side, options.folder, options.workers)
        return
    results = {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as root:
            results[size] = compare(size, options.sides, options.workers, Path(root))
        if options.json:
            settings = {
                "workers": options.workers,
                "cores": os.cpu_count(),
                "datasets": version("datasets"),
            }
            write_json(options.json, {"settings": settings, "results": results})
    print(f"{options.workers} processes, {os.cpu_count()} cores, datasets {version('datasets')}\n")
    print(
        "| samples | | peak MiB | anonymous MiB | samples/s | s | CPU s |\n|---|---|---|---|---|---|---|"
    )
    for size, found in results.items():
        for side, r in found.items():
            print(
                f"| {size:,} | {SIDES[side]} | {r['peak_mib']:,.0f} | {r['anonymous_mib']:,.0f} | "
                f"{r['samples_per_second']:,.0f} | {r['seconds']:,.0f} | {r['cpu_seconds']:,.0f} |"
            )
    for size, found in results.items():
        if len(found) == len(SIDES):
            ratios = [
                found["datasets"][what] / found["ours"][what]
                for what in ("seconds", "cpu_seconds", "peak_mib")
            ]
            print(
                f"\n{size:,}: datasets takes {ratios[0]:.2f} times the time, {ratios[1]:.2f} times the CPU time and "
                f"{ratios[2]:.2f} times the memory"
            )


if __name__ == "__main__":
    main()
