"""Build a mixture from any sources, in two passes with an index on disk between them.

The manifest can rebuild it.
"""

import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from roboalign import __version__
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_output, hash_file, hash_tree, locked, read_json, write_json
from roboalign.core.hub import resolve
from roboalign.core.outcomes import Fault
from roboalign.mixture import draw as choose
from roboalign.mixture import write
from roboalign.mixture.config import MixtureConfig
from roboalign.mixture.describe import describe_mixture, dump
from roboalign.mixture.examine import (
    examine_part,
    examined_file,
    held_out,
    scan_part,
    scanned_file,
)
from roboalign.mixture.leaks import (
    EVALUATED,
    evaluation_tasks,
    join_evaluation,
    read_evaluation,
)
from roboalign.mixture.parts import Part
from roboalign.mixture.sources.read import parts_of, require_stored_style, taught_files
from roboalign.mixture.sources.robot import chunks_at
from roboalign.mixture.store import SampleStore
from roboalign.mixture.tasks import processes, run_tasks
from roboalign.mixture.tokens import check_same_actions, make_tokens

_Lengths = Callable[[Path, Path], None]
"""Write the tokenized lengths of the samples of a shard (first path) to the second path."""


class Building:
    """A mixture being built: its settings, parts, folder, index and worker processes."""

    def __init__(
        self, config: MixtureConfig, work: Path, pool: Executor | None, workers: int
    ) -> None:
        self.config, self.work, self.pool, self.workers = config, work, pool, workers
        found = parts_of_all(config)
        self.parts: list[Part] = [part for parts, _ in found for part in parts]
        self.missing: list[tuple[int, Fault]] = [
            (n, fault) for n, (_, faults) in enumerate(found) for fault in faults
        ]

    def run(
        self, label: str, function: Callable[..., Any], tasks: list[tuple[Any, ...]]
    ) -> list[Any]:
        """Return the results of independent tasks."""
        return run_tasks(f"mix: {label}", self.pool, function, tasks, self.workers)


def build(
    config: MixtureConfig,
    out: str | Path,
    *,
    workers: int = 1,
    lengths: _Lengths | None = None,
    expected: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the mixture to the folder `out`, which appears complete; return its manifest.

    Written are train-*.parquet, and rl.parquet, heldout.parquet, tokenizer/ and *.lengths.npy if
    requested, with dropped.jsonl, rl-ids.txt and manifest.json. Repeating a killed call continues
    it. `expected` is a manifest to rebuild: the shards must match its shards.

    Raises RoboAlignError if a source cannot be read or has fewer samples than requested, if `out`
    exists, and if a source or a shard is not what `expected` lists.
    """
    out = Path(out)
    work = out.parent / f".{out.name}.building"
    if out.exists():
        there = read_json(out / "manifest.json") if (out / "manifest.json").is_file() else None
        if isinstance(there, dict) and there.get("settings") == dump(config):
            shutil.rmtree(
                work, ignore_errors=True
            )  # left by a kill between the last rename and this line
            return there
        raise RoboAlignError(
            "the folder is there already", where=str(out), fix="give another --out, or remove it"
        )
    given = [source.robot or source.conversations for source in config.sources]
    check_output(out, sources=[path for path in given if path])
    with locked(work), processes(workers) as pool:
        building = Building(config, work, pool, workers)
        begin(building)
        with SampleStore.index(work / "index.sqlite") as index:
            fingerprints = _scan(building, index)
            fingerprints |= {name: hash_file(path) for name, path in taught_files(config)}
            check_same("source file", fingerprints, expected and expected["files"])
            choose.check_enough(index, config)
            evaluation = evaluate(building)
            check_same(
                "file of what is evaluated on",
                _digest_of(evaluation),
                expected and _digest_of(expected.get("evaluation")),
            )
            tokens = _fit(building, index)
            if not index.is_done("placed"):
                examine(building, index)
                choose.place_drawn(index, config, work)
            choose.check_some(index)
            shards = _write_all(building, index)
            manifest = describe_mixture(
                config, work, index, fingerprints, evaluation, tokens, shards
            )
        check_same("shard", manifest["shards"], expected and expected["shards"])
        if lengths:
            add_lengths(building, lengths, manifest)
        check_same("file of lengths", manifest["lengths"], expected and expected["lengths"])
        write_json(work / "out" / "manifest.json", manifest)
        (work / "out").replace(out)
        shutil.rmtree(work)
    return manifest


def parts_of_all(config: MixtureConfig) -> list[tuple[list[Part], list[Fault]]]:
    """Return `parts_of` of every source.

    Raises the RoboAlignError of the first unreadable source, naming the others.
    """
    found, errors = [], []
    for number, source in enumerate(config.sources):
        try:
            found.append(parts_of(number, source))
            require_stored_style(source, config.prompts)
        except RoboAlignError as error:
            errors.append((source.name, error))
    if errors:
        first, others = errors[0][1], ", ".join(name for name, _ in errors[1:])
        more = f" (nor can {others} be read)" if others else ""
        raise RoboAlignError(first.problem + more, where=first.where, fix=first.fix)
    return found


def begin(building: Building) -> None:
    """Empty the working folder if its settings or files have changed.

    The images of question-answering sources are not checked: a change to them during the build goes
    unnoticed.
    """
    config, digest = building.config, hashlib.sha256()
    given = [
        *(part.file for part in building.parts),
        *(resolve(one.path, "data set", where="evaluation") for one in config.evaluation),
        *(path for _, path in taught_files(config)),
    ]
    if config.tokenizer and config.tokenizer.path:
        given.append(resolve(config.tokenizer.path, "tokenizer", where="tokenizer.path"))
    for root in given:
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.is_file():
                state = path.stat()
                digest.update(
                    f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(
                        "utf-8", "surrogateescape"
                    )
                )
    stamp = {"settings": dump(config), "version": __version__, "sources": digest.hexdigest()}
    kept = building.work / "settings.json"
    if not kept.exists() or read_json(kept) != stamp:
        for path in building.work.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(kept, stamp)
    (building.work / "out").mkdir(exist_ok=True)


def _scan(building: Building, index: SampleStore) -> dict[str, str]:
    """Run the first pass: find the samples. Returns the fingerprint of each file."""
    work, config = building.work, building.config
    found = building.run(
        "what there is", scan_part, [(work, config, part) for part in building.parts]
    )
    if not index.is_done("scanned"):
        with index.transaction("scanned"):
            for part in building.parts:
                index.take_scanned(part, scanned_file(work, part))
            for place, (source, fault) in enumerate(building.missing):
                index.add_missing(source, place, fault.where, fault.problem)
            index.sort_items()
    return {
        f"{config.sources[part.source].name}/{part.name}".rstrip("/"): digest
        for part, digest in zip(building.parts, found)
    }


def evaluate(building: Building) -> dict[str, Any] | None:
    """Read the evaluation sets; return their entry in the manifest."""
    if not building.config.evaluation:
        return None
    told = building.work / "evaluation.json"
    if not told.exists():
        (building.work / EVALUATED).mkdir(exist_ok=True)
        sets = building.config.evaluation
        tasks = [
            task for n, one in enumerate(sets) for task in evaluation_tasks(building.work, n, one)
        ]
        building.run("evaluation sets", read_evaluation, tasks)
        join_evaluation(building.work, sets)
    return {"sets": read_json(told)["sets"], "sha256": hash_file(building.work / "evaluation.bin")}


def _digest_of(evaluation: dict[str, Any] | None) -> dict[str, str]:
    """Return the fingerprint of all evaluation images, as `check_same` takes it."""
    return {"images": evaluation["sha256"]} if evaluation else {}


def _fit(building: Building, index: SampleStore) -> dict[str, Any] | None:
    """Fit or load the action tokens, on the first chunks that are drawn and not held out."""
    config, folder = building.config, building.work / "tokenizer"
    if config.tokenizer is None:
        return None
    if not folder.exists():
        robots = [(n, source) for n, source in enumerate(config.sources) if source.robot]
        asked = config.asked()
        whole = sum(asked[n] for n, _ in robots)
        found = []
        for number, source in robots:
            most = max(1, min(asked[number], config.tokenizer.chunks * asked[number] // whole))
            wanted = index.first_drawn(number, most)
            found.append(
                chunks_at(
                    source,
                    wanted,
                    config.tokenizer.horizon,
                    lambda group: held_out(config, group),
                )
            )
        notes = check_same_actions(found, mixed=config.tokenizer.mixed)
        raw = np.concatenate([one.chunks for one in found])
        make_tokens(config.tokenizer, raw, folder, notes)
    described = read_json(folder / "tokenizer.json")
    return {name: value for name, value in described.items() if name != "mean_chunk"} | {
        "sha256": hash_tree(folder)
    }


def examine(building: Building, index: SampleStore) -> None:
    """Run the second pass: examine what is drawn.

    It repeats in rounds until no source lacks a sample or has more to examine.
    """
    config, work = building.config, building.work
    turn = index.rounds()
    while True:
        if not index.is_done(f"round {turn}"):
            index.settle(config.asked())
            if not any(choose.missing_of(index, config)):
                return
            choose.draw(index, config, turn)
        drawn = index.chosen_parts(turn)
        parts = [part for part in building.parts if (part.source, part.number) in drawn]
        slices = [(part, k) for part in parts for k in range(part.slices)]
        threads = max(1, building.workers // max(1, len(slices)))
        building.run(
            "images", examine_part, [(work, config, part, turn, k, threads) for part, k in slices]
        )
        with index.transaction(f"looked {turn}"):
            for part, k in slices:
                index.take_examined(part, examined_file(work, part, turn, k))
        turn += 1


def _write_all(building: Building, index: SampleStore) -> dict[str, dict[str, Any]]:
    """Write the shards of every split; return name -> sha256 and counts."""
    tasks: list[tuple[Any, ...]] = []
    for split in ("train", "rl", "heldout"):
        count = index.placed(split)
        if split == "train":
            size = building.config.shard_size
            for n, first in enumerate(range(0, count, size)):
                ends = (f"train-{n:05d}.parquet", first, min(first + size, count))
                tasks.append((building.work, split, *ends, building.config.prompts))
        elif getattr(building.config, split) is not None:
            ends = (f"{split}.parquet", 0, count)
            tasks.append((building.work, split, *ends, building.config.prompts))
    return {
        task[2]: row for task, row in zip(tasks, building.run("shards", write.write_shard, tasks))
    }


def add_lengths(building: Building, lengths: _Lengths, manifest: dict[str, Any]) -> None:
    """Write the tokenized length of every training sample next to its shard."""
    out = building.work / "out"
    pairs = [
        (out / name, out / f"{Path(name).stem}.lengths.npy")
        for name in manifest["shards"]
        if name[:5] == "train"
    ]
    building.run("lengths", lengths, [pair for pair in pairs if not pair[1].exists()])
    manifest["lengths"] = {path.name: hash_file(path) for _, path in pairs}


def check_same(what: str, found: dict[str, str], expected: dict[str, str] | None) -> None:
    """Raise RoboAlignError if a file differs from the manifest to rebuild."""
    if expected is None or found == expected:
        return
    name = next(
        name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)
    )
    state = (
        "is missing"
        if name not in found
        else "is not in the manifest"
        if name not in expected
        else "differs"
    )
    fix = {
        "source file": "say with --at NAME=PATH where the same file is",
        "file of what is evaluated on": "say with --at evaluation.0=PATH where the same data is",
        "file of lengths": "say with --at model=PATH where the same model is",
    }.get(what, "an image of a source has changed, or use the versions that the manifest lists")
    raise RoboAlignError(
        f"the {what} {name} {state}: this would be another mixture", where="manifest.json", fix=fix
    )
