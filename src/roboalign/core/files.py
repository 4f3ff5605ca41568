"""Writing so that a killed process never leaves a half-written file, and reading it back."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
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
        open_to_others(temporary)
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():
            temporary.unlink()


def open_to_others(path: Path) -> None:
    """Give new files the mode that the umask asks for: safetensors makes its files readable to their owner alone."""
    mode = 0o666 & ~_umask()
    files = [path] if path.is_file() else path.rglob("*") if path.is_dir() else []
    for file in files:
        if file.is_file() and not file.is_symlink():
            file.chmod(mode | file.stat().st_mode & 0o111)


def _umask() -> int:
    """This process's umask. Reading it through os.umask would change it for other threads for a moment."""
    status = Path("/proc/self/status")
    found = (
        re.search(r"^Umask:\s+([0-7]+)$", status.read_text(), re.MULTILINE)
        if status.exists()
        else None
    )
    if found:
        return int(found[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def no_room(error: BaseException) -> str:
    """Why a file could not be written, where the disk is full or a quota is used up; "" for any other error."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in NO_ROOM else ""
    found = SAYS_NO_ROOM.search(str(error))
    if found:
        return found[0]
    return "a file could not be written to its end" if SAYS_CUT_SHORT.search(str(error)) else ""


def check_output(
    folder: str | Path, *, sources: Iterable[str | Path] = (), marks: Iterable[str] | None = None
) -> None:
    """Raise RoboAlignError where a command may not write to `folder`; called before any work.

    Refused are a file, a folder that cannot be made or written, a source itself or a folder inside one. With `marks`,
    files relative to the folder, so is a folder that holds something but none of them: it is not this command's.
    """
    folder = Path(folder)
    fix = "pass --out with another folder"
    target = folder.resolve()
    for source in sources:
        root = Path(source).resolve()
        if target == root or root in target.parents:
            where_from = "the source itself" if target == root else f"inside the source {source}"
            raise RoboAlignError(f"the output is {where_from}", where=str(folder), fix=fix)
    there = target
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        what = "the output" if there == target else "a parent of the output"
        raise RoboAlignError(f"{what} is a file, not a folder", where=str(there), fix=fix)
    if not os.access(there, os.W_OK | os.X_OK):
        problem = f"this folder cannot be written, so {folder} cannot be made"
        if there == target:
            problem = "this folder cannot be written"
        raise RoboAlignError(problem, where=str(there), fix=fix)
    if marks is None or there != target:
        return
    marks = list(marks)
    if holds_files(target) and not any((target / mark).is_file() for mark in marks):
        raise RoboAlignError(
            "the folder holds other files, and nothing that this command wrote",
            where=str(folder),
            fix="pass --out with an empty folder",
        )


def holds_files(folder: Path) -> bool:
    """Whether a file is below `folder`; names that begin with a dot do not count."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(not name.startswith(".") for name in files):
            return True
    return False


def check_source(path: str | Path, within: Path, *, links: bool = False) -> None:
    """Raise RoboAlignError where `path`, named by the index of the data set `within`, is outside of it.

    Links are followed first. A snapshot of the Hugging Face cache may link to the blobs of its own repository.
    `links` allows every place.
    """
    if links:
        return
    try:
        root, target = within.resolve(), Path(path).resolve()
    except (OSError, RuntimeError):  # RuntimeError until Python 3.12
        raise RoboAlignError("it is a link that leads to itself", where=str(path)) from None
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parents[1] / "blobs")
    if not any(place == target or place in target.parents for place in allowed):
        raise RoboAlignError(
            f"it is outside of the data set, at {target}",
            where=str(path),
            fix="pass --read links=true if that is meant",
        )


def check_readable(path: str | Path, *, fix: str = "") -> None:
    """Raise RoboAlignError where `path` is missing, no plain file (a folder, FIFO or device), or may not be read."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise RoboAlignError("the file does not exist", where=str(path), fix=fix) from None
    except OSError as error:
        raise RoboAlignError(f"it cannot be read ({error.strerror})", where=str(path)) from None
    if not stat.S_ISREG(mode):
        raise RoboAlignError("this is not a plain file", where=str(path), fix=fix)
    if not os.access(path, os.R_OK):
        raise RoboAlignError(
            "it may not be read (Permission denied)", where=str(path), fix="allow it with chmod u+r"
        )


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
    """Read a JSON file, with or without a byte-order mark. Raises RoboAlignError naming the file where it is missing,
    may not be read, or is broken."""
    check_readable(path, fix=fix)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
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
