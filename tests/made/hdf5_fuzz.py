"""Damage files of robomimic's and LIBERO's layout in many places, and read each through `open_robot_data`.

    python tests/data/robot/hdf5_fuzz.py --seeds 3000 [--first 0] [--batch 100]

A seed names a file, a kind of damage and its place. Batches are read in child processes, whose processor time and
memory are limited. Prints how many files ended how; where one brings its process down, or raises anything but a
RoboAlignError, its seed is named and the exit status is 1.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.formats import robomimic
from roboalign.episodes.formats.hdf5_walk import endless
from roboalign.episodes.open import open_robot_data

STATES = {
    "libero": {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2},
    "robomimic": {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2},
}
BASES = (
    ("robomimic", None, "earliest"),
    ("libero", None, "earliest"),
    ("libero", "gzip", "latest"),
)
"""Observations, compression and version of the file format (the latest has checksums of its own)."""
DAMAGES = ("cut", "bit", "bits", "block")
SCRIPT = [sys.executable, __file__]
"""What reads a batch."""
WALK, CPU, MEMORY = 1.0, 60, 4 << 30
"""Processor seconds of a walk through a demonstration and of a batch, bytes of memory."""
Contents = list[tuple[str, str, bytes, bytes, bytes]]


def write_base(path: Path, layout: str, compression: str | None, version: str) -> None:
    """Two demonstrations of three steps with one camera."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w", libver=(version, "latest")) as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "env_kwargs": {"control_freq": 20}}
        )
        for n in range(2):
            demo = data.create_group(f"demo_{n}")
            demo.attrs["num_samples"] = 3
            demo["actions"], demo["rewards"] = rng.normal(size=(3, 7)), [0, 0, 1]
            for name, width in STATES[layout].items():
                demo[f"obs/{name}"] = rng.normal(size=(3, width))
            frames = rng.integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
            demo.create_dataset("obs/agentview_rgb", data=frames, compression=compression)


def damaged(whole: bytes, seed: int) -> bytes:
    """The file with the damage of this seed."""
    rng, kind = np.random.default_rng(seed), DAMAGES[seed // len(BASES) % len(DAMAGES)]
    data, place = bytearray(whole), int(np.random.default_rng([seed, 1]).integers(len(whole)))
    if kind == "cut":
        return bytes(data[:place])
    if kind == "block":
        data[place : place + 8] = rng.bytes(min(8, len(data) - place))
        return bytes(data)
    for _ in range(1 if kind == "bit" else 4):
        data[place] ^= 1 << int(rng.integers(8))
        place = min(place + int(rng.integers(1, 40)), len(data) - 1)
    return bytes(data)


def contents(path: Path) -> tuple[Contents, int]:
    """What is read of a file, and how much of it is faulty. Raises RoboAlignError where it cannot be opened."""
    data, found, faults = open_robot_data(path), [], 0
    for item in data.read():
        if isinstance(item, Fault):
            faults += 1
            continue
        try:
            frames = b"".join(
                item.frame(name, t).tobytes() for name in item.cameras for t in range(len(item))
            )
            found.append(
                (item.instruction, item.task, item.actions.tobytes(), item.state.tobytes(), frames)
            )
        except RoboAlignError:
            faults += 1
    return found, faults


def ended(path: Path, sound: Contents) -> str:
    """How reading a damaged file ended."""
    try:
        found, faults = contents(path)
    except RoboAlignError as error:
        return "endless, refused" if "does not come to an end" in error.problem else "refused"
    if faults:
        return "in part: faults"
    return "read, as it was written" if found == sound else "read, with other contents"


def read_batch(seeds: Iterable[int], folder: Path) -> None:
    """Print a seed before its file is read and how that ended after it, a line each."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    robomimic.endless = partial(endless, seconds=WALK)  # type: ignore[assignment]
    sound, files = [], {}
    for n, base in enumerate(BASES):
        write_base(folder / f"base{n}.hdf5", *base)
        sound.append(contents(folder / f"base{n}.hdf5")[0])
    assert all(len(one) == 2 for one in sound)
    for seed in seeds:
        files[seed] = folder / f"{seed}.hdf5"
        files[seed].write_bytes(
            damaged((folder / f"base{seed % len(BASES)}.hdf5").read_bytes(), seed)
        )
    robomimic.endless(files.values())  # in one process for all
    for seed, file in files.items():
        print(seed, flush=True)
        print(f"= {ended(file, sound[seed % len(BASES)])}", flush=True)


def fuzz(first: int, seeds: int, batch: int) -> tuple[Counter[str], list[str]]:
    """How many files ended how, and what went wrong."""
    how: Counter[str] = Counter()
    wrong: list[str] = []
    while seeds > 0:
        with tempfile.TemporaryDirectory() as folder:
            asked = ["--first", str(first), "--seeds", str(min(batch, seeds)), "--in", folder]
            done = subprocess.run([*SCRIPT, *asked], capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        results = [line[2:] for line in lines if line.startswith("= ")]
        how.update(results)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            wrong.append(f"seed {first + len(results)}: exit status {done.returncode} {last}")
            results.append("wrong")  # and on with the next
        first, seeds = first + len(results), seeds - len(results)
        print(f"{how.total():,} files, {len(wrong)} wrong", file=sys.stderr, flush=True)
    return how, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, required=True)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        read_batch(range(options.first, options.first + options.seeds), options.folder)
        return 0
    how, wrong = fuzz(options.first, options.seeds, options.batch)
    for result, count in how.most_common():
        print(f"{count:>7,} {result}")
    print(
        "\n".join(wrong) or f"{how.total():,} files: no crash, no hang, no other exception",
        flush=True,
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
