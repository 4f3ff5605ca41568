"""Progress with an estimate: a plain line every few seconds, on a terminal, in a log and from parallel stages."""

import sys
import time
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Any

_channel: "Queue[Any] | None" = None


def send_to(channel: "Queue[Any]") -> None:
    """From now on, put the progress of this process into `channel`, as (label, done, total, elapsed seconds, note)."""
    global _channel
    _channel = channel


def format_seconds(seconds: float) -> str:
    """`95.2` -> `1:35`, `3725` -> `1:02:05`."""
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Progress:
    """Counts units of work and prints done/total, elapsed and the estimated time left.

        with Progress("sft", total=1000, start=resumed_from) as progress:
            progress.advance(32, note="loss 0.41")

    `start` units were done by an earlier run; they do not enter the rate. Where the total is not known beforehand
    (None), the rate is printed in place of an estimate. Of several processes that count the same, one is `shown`.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        start: int = 0,
        interval: float = 5.0,
        shown: bool = True,
    ) -> None:
        self.label, self.total, self.done, self.start = label, total, start, start
        self.interval, self.shown = interval, shown
        self.began = time.monotonic()
        self.printed = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._print("stopped" if kind else "done")

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count `units` more; print where the last line is old enough."""
        self.done += units
        if time.monotonic() - self.printed >= self.interval:
            self._print(note)

    def _print(self, note: str) -> None:
        if not self.shown:
            return
        elapsed = time.monotonic() - self.began
        self.printed = time.monotonic()
        if _channel is not None:
            _channel.put((self.label, self.done, self.total, elapsed, note))
            return
        fresh = self.done - self.start
        if self.total is None:
            ahead, of = f"{fresh / elapsed if elapsed else 0:.1f} a second", ""
        else:
            ahead = f"{format_seconds(elapsed / fresh * (self.total - self.done)) if fresh else '?'} left"
            of = f"/{self.total}"
        line = f"[{self.label}] {self.done}{of}  {format_seconds(elapsed)} elapsed, {ahead}  {note}"
        sys.stderr.write(f"{line.rstrip()}\n")
        sys.stderr.flush()
