"""Writing so that a killed process never leaves a half-written file, and reading it back."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SAYS_NO_ROOM = re.compile(
    r"No space left on device|Disk quota exceeded|File too large"
)  # safetensors quotes these
SAYS_CUT_SHORT = re.compile(
    r"PytorchStreamWriter failed|unexpected pos|iostream error"
)  # torch does not quote them


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on failure removed.

    Works for a file and for a folder. A folder that stands at `path` is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():
            temporary.unlink()


def no_room(error: BaseException) -> str:
    """Why a file could not be written, where the disk is full or a quota is used up; "" for any other error."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in NO_ROOM else ""
    found = SAYS_NO_ROOM.search(str(error))
    if found:
        return found[0]
    return "a file could not be written to its end" if SAYS_CUT_SHORT.search(str(error)) else ""


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold `folder`, which is made where it is missing, for this process alone; a killed process lets go of it.

    Raises RoboAlignError where another process holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "wait until it has ended, or give another folder with --out"
            raise RoboAlignError(
                "another command is at work in this folder", where=str(folder), fix=fix
            ) from None
        yield


def write_text(path: str | Path, text: str) -> None:
    """Write `text` beside `path`, then rename."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON beside `path`, then rename. NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path, *, fix: str = "") -> Any:
    """Read a JSON file. Raises RoboAlignError naming the file where it is missing or broken."""
    path = Path(path)
    if not path.is_file():
        raise RoboAlignError("the file does not exist", where=str(path), fix=fix)
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise RoboAlignError(f"not valid JSON ({error})", where=str(path), fix=fix) from None


def append_jsonl(path: str | Path, record: dict[str, Any]) -> None:
    """Append one record as one line. A line that an earlier kill cut short is removed first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Records of a jsonl file; [] where the file does not exist. A last line cut by a kill is dropped.

    A line counts once its end is written, so that what is read here is what `append_jsonl` keeps.
    """
    path = Path(path)
    if not path.exists():
        return []
    *lines, _ = path.read_text().split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError:
            raise RoboAlignError(
                "not valid JSON", where=f"{path}, line {number}", fix="remove that line"
            ) from None
    return records


def hash_file(path: str | Path) -> str:
    """sha256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_tree(folder: str | Path, keep: Callable[[Path], bool] = lambda path: True) -> str:
    """sha256 over the names and bytes of every file below `folder` for which `keep` holds."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and keep(p)):
        digest.update(
            str(path.relative_to(folder)).encode() + b"\0" + hash_file(path).encode() + b"\n"
        )
    return digest.hexdigest()
