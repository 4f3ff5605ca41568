"""Mix samples from any sources, in two passes with an index on disk between them."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file, hash_tree, read_json
from roboalign.core.hub import resolve
from roboalign.core.outcomes import Fault
from roboalign.mixture import draw as choose
from roboalign.mixture import write
from roboalign.mixture.building import (
    Building,
    ShardRows,
    ShardTask,
    WriteLengths,
    build_folder,
    check_same,
)
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
from roboalign.mixture.tokens import check_same_actions, make_tokens


def build(
    config: MixtureConfig,
    out: str | Path,
    *,
    workers: int = 1,
    lengths: WriteLengths | None = None,
    expected: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the mixture of sources to the folder `out`, as `build_folder`; return its manifest.

    Written are train-*.parquet, and rl.parquet, heldout.parquet, tokenizer/ and *.lengths.npy if
    requested, with dropped.jsonl, rl-ids.txt and manifest.json.

    Raises RoboAlignError if a source cannot be read or has fewer samples than requested, if `out`
    exists, and if a source or a shard is not what `expected` lists.
    """
    plan = DrawnSamples(config)
    return build_folder(plan, out, workers=workers, lengths=lengths, expected=expected)


class DrawnSamples:
    """The plan of a mixture file: what is drawn from its sources."""

    def __init__(self, config: MixtureConfig) -> None:
        self.config, self.settings = config, dump(config)
        given = [source.robot or source.conversations for source in config.sources]
        self.sources = [path for path in given if path]
        self._found: list[tuple[list[Part], list[Fault]]] | None = None
        self.files: dict[str, str] = {}
        self.evaluation: dict[str, Any] | None = None
        self.tokens: dict[str, Any] | None = None

    def is_of(self, manifest: dict[str, Any]) -> bool:
        """Return whether a finished mixture has the same settings."""
        return manifest.get("settings") == self.settings

    @property
    def found(self) -> list[tuple[list[Part], list[Fault]]]:
        """The parts of every source and those that are missing, looked up once."""
        if self._found is None:
            self._found = parts_of_all(self.config)
        return self._found

    @property
    def parts(self) -> list[Part]:
        """The parts of all sources."""
        return [part for parts, _ in self.found for part in parts]

    def fingerprint(self) -> str:
        """Return a digest of the names, sizes and times of the files that are read.

        The images of question-answering sources are not checked: a change to them during the build
        goes unnoticed.
        """
        config, digest = self.config, hashlib.sha256()
        given = [
            *(part.file for part in self.parts),
            *(resolve(one.path, "data set", where="evaluation") for one in config.evaluation),
            *(path for _, path in taught_files(config)),
        ]
        if config.tokenizer and config.tokenizer.path:
            given.append(resolve(config.tokenizer.path, "tokenizer", where="tokenizer.path"))
        for root in given:
            for path in [root] if root.is_file() else sorted(root.rglob("*")):
                if path.is_file():
                    state = path.stat()
                    line = f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n"
                    digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def prepare(self, building: Building) -> None:
        """Find the samples, examine those that are drawn, and order each split."""
        config, expected = self.config, building.expected
        with SampleStore.index(building.work / "index.sqlite") as index:
            self.files = self._scan(building, index)
            self.files |= {name: hash_file(path) for name, path in taught_files(config)}
            check_same("source file", self.files, expected and expected["files"])
            choose.check_enough(index, config)
            self.evaluation = self._evaluate(building)
            check_same(
                "file of what is evaluated on",
                _digest_of(self.evaluation),
                expected and _digest_of(expected.get("evaluation")),
            )
            self.tokens = self._fit(building, index)
            if not index.is_done("placed"):
                self._examine(building, index)
                choose.place_drawn(index, config, building.work)
            choose.check_some(index)

    def shards(self, building: Building, split: str, written: ShardRows) -> list[ShardTask]:
        """Return the shards of a split: of `train` several, of the others one if it is asked for."""
        with SampleStore.reading(building.work / "index.sqlite") as index:
            count = index.placed(split)
        if split != "train":
            if getattr(self.config, split) is None:
                return []
            last = (split, 0, count, self.config.prompts)
            return [ShardTask(f"{split}.parquet", write.write_placed, last)]
        size = self.config.shard_size
        ends = [(first, min(first + size, count)) for first in range(0, count, size)]
        return [
            ShardTask(
                f"train-{n:05d}.parquet", write.write_placed, (split, *pair, self.config.prompts)
            )
            for n, pair in enumerate(ends)
        ]

    def describe(self, building: Building, written: ShardRows) -> dict[str, Any]:
        """Write dropped.jsonl, rl-ids.txt and tokenizer/; return the manifest."""
        with SampleStore.index(building.work / "index.sqlite") as index:
            return describe_mixture(
                self.config,
                building.work,
                index,
                self.files,
                self.evaluation,
                self.tokens,
                written,
            )

    def _scan(self, building: Building, index: SampleStore) -> dict[str, str]:
        """Run the first pass: find the samples. Returns the fingerprint of each file."""
        work, config = building.work, self.config
        found = building.run(
            "what there is", scan_part, [(work, config, part) for part in self.parts]
        )
        if not index.is_done("scanned"):
            with index.transaction("scanned"):
                for part in self.parts:
                    index.take_scanned(part, scanned_file(work, part))
                missing = [(n, fault) for n, (_, gone) in enumerate(self.found) for fault in gone]
                for place, (source, fault) in enumerate(missing):
                    index.add_missing(source, place, fault.where, fault.problem)
                index.sort_items()
        return {
            f"{config.sources[part.source].name}/{part.name}".rstrip("/"): digest
            for part, digest in zip(self.parts, found)
        }

    def _evaluate(self, building: Building) -> dict[str, Any] | None:
        """Read the evaluation sets; return their entry in the manifest."""
        if not self.config.evaluation:
            return None
        told = building.work / "evaluation.json"
        if not told.exists():
            (building.work / EVALUATED).mkdir(exist_ok=True)
            sets = self.config.evaluation
            tasks = [
                task
                for n, one in enumerate(sets)
                for task in evaluation_tasks(building.work, n, one)
            ]
            building.run("evaluation sets", read_evaluation, tasks)
            join_evaluation(building.work, sets)
        return {
            "sets": read_json(told)["sets"],
            "sha256": hash_file(building.work / "evaluation.bin"),
        }

    def _fit(self, building: Building, index: SampleStore) -> dict[str, Any] | None:
        """Fit or load the action tokens, on the first chunks that are drawn and not held out."""
        config, folder = self.config, building.work / "tokenizer"
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

    def _examine(self, building: Building, index: SampleStore) -> None:
        """Run the second pass: examine what is drawn.

        It repeats in rounds until no source lacks a sample or has more to examine.
        """
        config, work = self.config, building.work
        turn = index.rounds()
        while True:
            if not index.is_done(f"round {turn}"):
                index.settle(config.asked())
                if not any(choose.missing_of(index, config)):
                    return
                choose.draw(index, config, turn)
            drawn = index.chosen_parts(turn)
            parts = [part for part in self.parts if (part.source, part.number) in drawn]
            slices = [(part, k) for part in parts for k in range(part.slices)]
            threads = max(1, building.workers // max(1, len(slices)))
            building.run(
                "images",
                examine_part,
                [(work, config, part, turn, k, threads) for part, k in slices],
            )
            with index.transaction(f"looked {turn}"):
                for part, k in slices:
                    index.take_examined(part, examined_file(work, part, turn, k))
            turn += 1


def _digest_of(evaluation: dict[str, Any] | None) -> dict[str, str]:
    """Return the fingerprint of all evaluation images, as `check_same` takes it."""
    return {"images": evaluation["sha256"]} if evaluation else {}


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
