"""Cache paid answers in an append-only jsonl file.

If a run is killed, at most the last line is incomplete.
"""

import fcntl
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError


def request_key(body: dict[str, Any]) -> str:
    """Return the sha256 of a request, in hex.

    It covers the model, the prompt, the image and every other setting of the request.
    """
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Map key -> record. Memory holds the location of each record, not the records.

    Threads may share an instance, processes may not. `prompt_tokens` and `completion_tokens` are
    the sums over all records: the cost of the answers.
    """

    def __init__(self, path: str | Path) -> None:
        """Open or create the file, removing a last line that a kill cut short.

        Raises RoboAlignError if another line is not a record, or another process has the file open.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        self.places: dict[str, tuple[int, int]] = {}  # first byte and length
        self.prompt_tokens = self.completion_tokens = 0
        self.file = self.path.open("ab+", buffering=0)
        try:
            fcntl.flock(
                self.file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # released when the file is closed
        except BlockingIOError:
            fix = "wait until it has ended, or give another folder with --out"
            raise RoboAlignError(
                "another command is at work with this file", where=str(path), fix=fix
            ) from None
        end = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                self._count(self._record(line, number), end, len(line))
                end += len(line)
        self.file.truncate(end)

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
            tokens = record["prompt_tokens"] + record["completion_tokens"]
            if isinstance(record["key"], str) and isinstance(tokens, int):
                return record
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise RoboAlignError(
            "not a record of an answer", where=f"{self.path}, line {number}", fix="remove that line"
        )

    def _count(self, record: dict[str, Any], place: int, length: int) -> None:
        self.places[record["key"]] = place, length
        self.prompt_tokens += record["prompt_tokens"]
        self.completion_tokens += record["completion_tokens"]

    def __len__(self) -> int:
        return len(self.places)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record of this key, or None."""
        with self.lock:
            if key not in self.places:
                return None
            place, length = self.places[key]
            return json.loads(os.pread(self.file.fileno(), length, place))

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Append a record, which contains both token counts; it is on disk before this returns.

        Raises RoboAlignError if it cannot be written.
        """
        record = {"key": key, **record}
        line = (json.dumps(record) + "\n").encode()
        with self.lock:
            place = self.file.seek(0, os.SEEK_END)
            try:
                write_whole(self.file.fileno(), line)
            except OSError as error:
                self.file.truncate(place)  # otherwise the next record would follow half a line
                raise RoboAlignError(
                    f"an answer cannot be written ({error.strerror})",
                    where=str(self.path),
                    fix="make room on the disk; the same command continues from here",
                ) from None
            self._count(record, place, len(line))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def write_whole(descriptor: int, line: bytes) -> None:
    """Append the line, and wait until it is on disk."""
    while line:
        line = line[os.write(descriptor, line) :]
    os.fsync(descriptor)
