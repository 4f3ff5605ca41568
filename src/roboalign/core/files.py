"""Write files so that a killed process never leaves one half-written, and read them back."""

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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SAYS_NO_ROOM = re.compile(
    r"No space left on device|Disk quota exceeded|File too large"
)  # safetensors quotes these messages of the system
SAYS_CUT_SHORT = re.compile(
    r"PytorchStreamWriter failed|unexpected pos|iostream error"
)  # torch does not quote the system's message

FREE_SPACE = "free space, then run the same command again: it continues from here"
PARTIAL = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}\.partial")
"""Name of what `atomic_path` writes to; the number is the process id."""
_writing: set[str] = set()
"""Names of the temporary files that this process is writing."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` on success, remove it on failure.

    Works for a file and for a folder. An existing folder at `path` is replaced. A killed process's
    leftovers for the same name are removed. Raises OSError that names `path`, and RoboAlignError if
    another library ran out of disk space.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_partial(path.parent, f".{path.name}.")
    temporary = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
    _writing.add(temporary.name)
    try:
        with _naming(path, temporary):
            yield temporary
            open_to_others(temporary)
            if temporary.is_dir() and path.is_dir():
                shutil.rmtree(path)
            temporary.replace(path)
    finally:
        _writing.discard(temporary.name)
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():
            temporary.unlink()


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Make errors name `path`: those of an open file name nothing, others the temporary."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own error, with its own text
            raise
        named = str(error.filename or "")
        if not named or named.startswith(str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise
    except RoboAlignError:
        raise
    except Exception as error:  # safetensors and torch have their own error types
        if not (reason := no_room(error)):
            raise
        raise RoboAlignError(
            f"cannot be written ({reason})", where=str(path), fix=FREE_SPACE
        ) from None


def remove_partial(folder: str | Path) -> None:
    """Remove half-written files that killed processes of this machine left below `folder`."""
    for place, _, _ in os.walk(folder):
        _remove_partial(Path(place), ".")


def _remove_partial(folder: Path, start: str) -> None:
    """Remove partial files whose names begin with `start` and whose writer has ended."""
    for entry in os.scandir(folder):
        found = PARTIAL.fullmatch(entry.name) if entry.name.startswith(start) else None
        if found is None or entry.name in _writing or _alive(int(found[1])):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with suppress(OSError):
                Path(entry.path).unlink()


def _alive(process: int) -> bool:
    """Return whether another process with this id is running; this process tracks its own files."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def open_to_others(path: Path) -> None:
    """Give new files the mode of the umask: safetensors lets only the owner read its files."""
    mode = 0o666 & ~_umask()
    files = [path] if path.is_file() else path.rglob("*") if path.is_dir() else []
    for file in files:
        if file.is_file() and not file.is_symlink():
            file.chmod(mode | file.stat().st_mode & 0o111)


def _umask() -> int:
    """Return this process's umask. Calling os.umask would briefly change it for other threads."""
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
    """Return why a file could not be written if the disk or quota is full; "" otherwise."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in NO_ROOM else ""
    found = SAYS_NO_ROOM.search(str(error))
    if found:
        return found[0]
    return "a file could not be written to its end" if SAYS_CUT_SHORT.search(str(error)) else ""


def as_message(error: OSError) -> RoboAlignError:
    """Return an error of the file system as one message that names the path and the fix."""
    path = str(error.filename or "")
    reason = error.strerror or " ".join(str(error).split())[:300] or type(error).__name__
    if no_room(error):
        return RoboAlignError(f"cannot be written ({reason})", where=path, fix=FREE_SPACE)
    if not path or error.errno is None:
        return RoboAlignError(f"the system refused ({reason})", where=path)
    fix = {
        errno.EACCES: "allow it (chmod, chown), or give another path",
        errno.EPERM: "allow it (chmod, chown), or give another path",
        errno.EROFS: "give a path on a disk that can be written",
        errno.ENOENT: "check the path, and where its links lead",
        errno.ENOTDIR: "a file is where a folder belongs: move it, or give another path",
        errno.EEXIST: "a file or a link to nowhere is where a folder belongs: move it",
        errno.EISDIR: "a folder is where a file belongs: move it, or give another path",
        errno.ELOOP: "its links lead in a circle: remove them",
        errno.ENAMETOOLONG: "give a shorter name",
    }.get(error.errno, "check the path and its disk")
    return RoboAlignError(f"{_verb(error, path)} ({reason})", where=path[:300], fix=fix)


def _verb(error: OSError, path: str) -> str:
    """Return whether reading or writing was refused; Python does not say."""
    if error.errno == errno.EROFS:
        return "cannot be written"
    if error.errno in (errno.EACCES, errno.EPERM):
        if not os.path.lexists(path) or os.access(path, os.R_OK):
            return "cannot be written"
        return "cannot be read" if os.access(path, os.W_OK) else "cannot be opened"
    return "cannot be used"


def check_output(
    folder: str | Path, *, sources: Iterable[str | Path] = (), marks: Iterable[str] | None = None
) -> None:
    """Raise RoboAlignError if a command may not write to `folder`; call it before any work.

    Refused are a file, a folder that cannot be created or written, a source, and a folder inside a
    source. With `marks`, files relative to the folder, a folder that is not empty but contains none
    of them is refused too: another command wrote it.
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
    """Return whether a file is below `folder`; names that begin with a dot do not count."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(not name.startswith(".") for name in files):
            return True
    return False


def check_source(path: str | Path, within: Path, *, links: bool = False) -> None:
    """Raise RoboAlignError if `path`, named by the index of the data set `within`, is outside it.

    Links are followed first; see `is_inside`. With `links` every location is allowed.
    """
    if links or is_inside(path, within):
        return
    raise RoboAlignError(
        f"it is outside of the data set, at {_resolved(path)}",
        where=str(path),
        fix="pass --read links=true if that is meant",
    )


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Return whether a path is in the folder after links are followed.

    The Hugging Face cache keeps a data set as `snapshots/REVISION`, whose files are links to the
    neighboring `blobs`: these belong to it. Raises RoboAlignError on a link that leads to itself.
    """
    target, home = _resolved(path), _resolved(folder)
    if target.is_relative_to(home):
        return True
    parts = home.parts
    if "snapshots" not in parts:
        return False
    repository = Path(*parts[: len(parts) - 1 - parts[::-1].index("snapshots")])
    return target.is_relative_to(repository / "blobs")


def _resolved(path: str | Path) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError):  # RuntimeError until Python 3.12
        raise RoboAlignError("it is a link that leads to itself", where=str(path)) from None


def check_readable(path: str | Path, *, fix: str = "") -> None:
    """Raise RoboAlignError if `path` is missing, unreadable, or a folder, FIFO or device."""
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
    """Lock `folder` for this process, creating it if missing; a killed process releases its lock.

    Raises RoboAlignError if another process holds it.
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
        remove_partial(folder)
        yield


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to a temporary file next to `path`, then rename it."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON next to `path`, then rename. NaN is refused: not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path, *, fix: str = "") -> Any:
    """Read a JSON file, with or without a byte-order mark.

    Raises RoboAlignError naming the file if it is missing, unreadable or broken.
    """
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
    """Return the records of a jsonl file; [] if it does not exist. Drops a last line cut by a kill.

    A line counts once its newline is written, so this reads exactly what `append_jsonl` keeps.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return []
    check_readable(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RoboAlignError(f"not text ({error})", where=str(path), fix="restore it") from None
    *lines, _ = text.split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise RoboAlignError(
                "not valid JSON", where=f"{path}, line {number}", fix="remove that line"
            ) from None
        if not isinstance(record, dict):
            raise RoboAlignError(
                "a record is a mapping", where=f"{path}, line {number}", fix="remove that line"
            )
        records.append(record)
    return records


def hash_file(path: str | Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_tree(folder: str | Path, keep: Callable[[Path], bool] = lambda path: True) -> str:
    """Return the sha256 over names and bytes of the files below `folder` that `keep` accepts."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and keep(p)):
        digest.update(
            str(path.relative_to(folder)).encode() + b"\0" + hash_file(path).encode() + b"\n"
        )
    return digest.hexdigest()
