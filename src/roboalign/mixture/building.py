"""Build the folder of a mixture, whatever is in it: the one builder of a run and of `data mix`.

What a mixture holds is said by its plan: samples drawn from any sources (builder.py), or the frames
of a run's demonstrations (demonstrations.py).
"""

import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from roboalign import __version__
from roboalign.conversations.conversation import SPLITS
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_output, hash_file, locked, read_json, write_json
from roboalign.mixture.tasks import processes, run_tasks

WriteLengths = Callable[[Path, Path], None]
"""Write the tokenized lengths of the samples of a shard (first path) to the second path."""
ShardRows = dict[str, dict[str, Any]]
"""Shards that are written: name -> what `write.write_shard` returns."""


class Building:
    """A mixture being built: its working folder, its worker processes and what it must equal."""

    def __init__(
        self, work: Path, pool: Executor | None, workers: int, expected: dict[str, Any] | None
    ) -> None:
        self.work, self.pool, self.workers, self.expected = work, pool, workers, expected

    def run(
        self, label: str, function: Callable[..., Any], tasks: list[tuple[Any, ...]]
    ) -> list[Any]:
        """Return the results of independent tasks."""
        return run_tasks(f"mix: {label}", self.pool, function, tasks, self.workers)


class ShardTask(NamedTuple):
    """A shard to write: `write(work, name, *arguments)` returns its sha256 and counts."""

    name: str
    write: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


class MixturePlan(Protocol):
    """What a mixture holds."""

    settings: dict[str, Any]
    """The settings as the manifest has them."""
    sources: list[str]
    """Paths that are read, in which the mixture may not be written."""

    def is_of(self, manifest: dict[str, Any]) -> bool:
        """Return whether a finished mixture is this one."""
        ...

    def fingerprint(self) -> str:
        """Return a digest of what is read: unfinished work of another one is discarded."""
        ...

    def prepare(self, building: Building) -> None:
        """Decide what the shards hold."""
        ...

    def shards(self, building: Building, split: str, written: ShardRows) -> list[ShardTask]:
        """Return the shards of a split, in order. Those of earlier splits are `written`."""
        ...

    def describe(self, building: Building, written: ShardRows) -> dict[str, Any]:
        """Write the files that accompany the shards; return the manifest."""
        ...


def build_folder(
    plan: MixturePlan,
    out: str | Path,
    *,
    workers: int = 1,
    lengths: WriteLengths | None = None,
    expected: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the mixture to the folder `out`, which appears complete; return its manifest.

    Repeating a killed call continues it. `expected` is a manifest to rebuild: the shards must match
    its shards. Raises RoboAlignError if `out` exists and is another mixture, if a shard is not what
    `expected` lists, and whatever the plan raises.
    """
    out = Path(out)
    work = out.parent / f".{out.name}.building"
    if out.exists():
        there = read_json(out / "manifest.json") if (out / "manifest.json").is_file() else None
        if isinstance(there, dict) and plan.is_of(there):
            shutil.rmtree(
                work, ignore_errors=True
            )  # left by a kill between the last rename and this line
            return there
        raise RoboAlignError(
            "the folder is there already", where=str(out), fix="give another --out, or remove it"
        )
    check_output(out, sources=plan.sources)
    with locked(work), processes(workers) as pool:
        building = Building(work, pool, workers, expected)
        _begin(plan, work)
        plan.prepare(building)
        written: ShardRows = {}
        for split in SPLITS:
            tasks = plan.shards(building, split, written)
            rows = building.run(split, _write, [(work, *task) for task in tasks])
            written |= {task.name: row for task, row in zip(tasks, rows)}
        manifest = plan.describe(building, written)
        check_same("shard", manifest["shards"], expected and expected["shards"])
        if lengths:
            _add_lengths(building, lengths, manifest)
        check_same("file of lengths", manifest["lengths"], expected and expected["lengths"])
        write_json(work / "out" / "manifest.json", manifest)
        (work / "out").replace(out)
        shutil.rmtree(work)
    return manifest


def _write(
    work: Path, name: str, write: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]
) -> dict[str, Any]:
    return write(work, name, *arguments)


def _begin(plan: MixturePlan, work: Path) -> None:
    """Empty the working folder if its settings or what is read have changed."""
    stamp = {
        "settings": plan.settings,
        "version": __version__,
        "sources": plan.fingerprint(),
    }
    kept = work / "settings.json"
    if not kept.exists() or read_json(kept) != stamp:
        for path in work.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(kept, stamp)
    (work / "out").mkdir(exist_ok=True)


def _add_lengths(building: Building, lengths: WriteLengths, manifest: dict[str, Any]) -> None:
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
