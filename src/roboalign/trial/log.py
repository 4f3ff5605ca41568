"""Keep what happened in trials: an append-only file of JSON lines, each chained to the line before it.

A row is on disk before it is acknowledged. A line that a kill cut short was never acknowledged, and is
dropped. A line that was changed, removed or moved breaks the chain, and is named.
"""

import fcntl
import hashlib
import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import as_message, check_readable

MOST_BYTES = 100_000_000


class TrialLog:
    """The log of one plan, open for appending. One process has it at a time; threads take turns."""

    def __init__(self, path: str | Path, plan_sha256: str) -> None:
        """Open or make the log, and drop a last line that a kill cut short.

        Raises RoboAlignError if another process has it open, if it is another plan's, or if a row
        was changed.
        """
        self.path, self.plan_sha256 = Path(path), plan_sha256
        self._turn = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not os.path.lexists(self.path)
        if not is_new:
            check_readable(self.path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(self._file, self.path)
            data = self.path.read_bytes()
            self.rows, self._last, kept = parse_log(data, self.path, plan_sha256)
            if kept < len(data):
                os.ftruncate(self._file, kept)
                os.fsync(self._file)
            if is_new:
                _sync_folder(self.path.parent)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, event: str, **fields: Any) -> dict[str, Any]:
        """Write one row, and return it once it is on disk.

        Raises RoboAlignError if it cannot be written; the file is then as it was before.
        """
        with self._turn:
            if self._file < 0:
                raise RoboAlignError("the log is closed", where=str(self.path), fix="open it again")
            row = {
                "row": len(self.rows) + 1,
                "previous": self._last,
                "plan": self.plan_sha256,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "event": event,
                **fields,
            }
            line = json.dumps(row, allow_nan=False).encode()
            size = os.fstat(self._file).st_size
            try:
                _write_whole(self._file, line + b"\n")
                os.fsync(self._file)
            except OSError as error:
                os.ftruncate(self._file, size)
                error.filename = str(self.path)
                raise as_message(error) from None
            self.rows.append(row)
            self._last = hashlib.sha256(line).hexdigest()
            return row

    def close(self) -> None:
        """Let other processes have it."""
        with self._turn:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def __enter__(self) -> "TrialLog":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def read_log(path: str | Path, plan_sha256: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of a log, also of one that a process is writing.

    Raises RoboAlignError if it has no row, a row was changed, or it is another plan's.
    """
    check_readable(path)
    if Path(path).stat().st_size > MOST_BYTES:
        raise RoboAlignError(f"more than {MOST_BYTES:,} bytes: no log of trials", where=str(path))
    rows, _, _ = parse_log(Path(path).read_bytes(), Path(path), plan_sha256)
    if not rows:
        raise RoboAlignError("the log has no row", where=str(path), fix="give a log of trials")
    return rows


def parse_log(
    data: bytes, path: Path, plan_sha256: str | None
) -> tuple[list[dict[str, Any]], str, int]:
    """Return the rows, the sha256 of the last line, and the bytes up to its end.

    Raises RoboAlignError naming the line that breaks the chain.
    """
    *lines, cut = data.split(b"\n")
    rows: list[dict[str, Any]] = []
    last = ""
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            chained = row["row"] == number and row["previous"] == last
            plan, event = row["plan"], row["event"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RoboAlignError(
                "this is no row of a log of trials", where=where, fix="restore the file"
            ) from None
        if not chained or not isinstance(event, str):
            raise RoboAlignError(
                "this line or the one before it was changed after it was written",
                where=where,
                fix="restore the file; a row is corrected by another row only",
            )
        if plan != (plan_sha256 or rows[0]["plan"] if rows or plan_sha256 else plan):
            raise RoboAlignError(
                f"it is of another plan ({str(plan)[:12]})",
                where=where,
                fix="give the plan and the log that belong together, or a new log",
            )
        rows.append(row)
        last = hashlib.sha256(line).hexdigest()
    return rows, last, len(data) - len(cut)


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RoboAlignError(
            "another process is writing this log",
            where=str(path),
            fix="use its page or terminal, or end it first",
        ) from None


def _write_whole(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _sync_folder(folder: Path) -> None:
    """Make the name of a new file survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
