"""Read back small files that the program wrote, and check them: damage gives one message.

    row = read_state(folder / "started.json", Started, fix="remove it")

A `State` class names the fields that a reader relies on; other contents of a file are kept
unchanged.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from roboalign.core.config import validated
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file, read_json, read_jsonl


class State(BaseModel):
    """The fields of one record. Types are not converted.

    "no" is not a boolean, and true is not a number.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


def read_state(path: str | Path, kind: type[State], fix: str = "") -> dict[str, Any]:
    """Return the record in a JSON file. Raises RoboAlignError naming the file, field and `fix`."""
    record: dict[str, Any] = read_json(path, fix=fix)
    validated(kind, record, where=str(path), fix=fix)
    return record


def read_records(path: str | Path, kind: type[State], fix: str = "") -> list[dict[str, Any]]:
    """Return the records of a jsonl file; [] if it does not exist.

    Raises RoboAlignError that also names the line.
    """
    records = read_jsonl(path)
    for number, record in enumerate(records, start=1):
        validated(kind, record, where=f"{path}, record {number}", fix=fix or "remove that line")
    return records


LARGE_FILES = (
    "model/*.safetensors",
    "policy/*.safetensors",
    "mixture/*.parquet",
    "*/data/*/*.parquet",
)
"""Files that `digests` describes by size alone: whoever uses one checks its sha256 then."""


def digests(folder: Path, leave_out: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Describe a stage's folder by file name.

    Gives the sha256 of each JSON file directly in it, the lines of each jsonl file, and the bytes
    of LARGE_FILES.
    """
    left_out = set(leave_out)
    found: dict[str, dict[str, Any]] = {}
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]):
        if path.name in left_out or not path.is_file():
            continue
        found[path.name] = {"sha256": hash_file(path)}
        if path.suffix == ".jsonl":
            found[path.name]["lines"] = len(read_jsonl(path))
    for path in sorted(path for pattern in LARGE_FILES for path in folder.glob(pattern)):
        found[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size}
    return found


def check_digests(folder: Path, files: dict[str, dict[str, Any]], fix: str) -> None:
    """Raise RoboAlignError if a file differs from `digests`; name it and lines lost or added."""
    for name, described in files.items():
        path = folder / name
        if not path.is_file():
            raise RoboAlignError("the file is missing", where=str(path), fix=fix)
        if "bytes" in described:
            if (size := path.stat().st_size) != described["bytes"]:
                problem = f"it has {size:,} bytes, and {described['bytes']:,} were written"
                raise RoboAlignError(problem, where=str(path), fix=fix)
            continue
        if hash_file(path) == described["sha256"]:
            continue
        wanted, lines = described.get("lines"), 0
        if wanted is not None and (lines := len(read_jsonl(path))) != wanted:
            raise RoboAlignError(
                f"it has {lines} records, and {wanted} were written", where=str(path), fix=fix
            )
        raise RoboAlignError(
            "it is not as it was written: its sha256 differs", where=str(path), fix=fix
        )
