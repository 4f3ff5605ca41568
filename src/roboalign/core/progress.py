"""Progress with an estimate: a plain line every few seconds, or updates for who shows the progress of a whole run."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol


def format_seconds(seconds: float) -> str:
    """`95.2` -> `1:35`, `3725` -> `1:02:05`."""
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


@dataclass(frozen=True)
class Update:
    """How far one count is."""

    stage: str
    """The stage that counts, "" outside a run."""
    label: str
    done: int
    total: int | None
    """None where it is not known beforehand."""
    fresh: int
    """Units of `done` that this process did; the others are an earlier process's."""
    elapsed: float
    """Seconds since this process began to count."""
    note: str
    """A few words, as `loss 0.41`."""
    ended: bool

    @property
    def left(self) -> float | None:
        """Seconds until the total at the rate so far; None where that is not known."""
        if self.total is None or not self.fresh:
            return None
        return self.elapsed / self.fresh * (self.total - self.done)

    @property
    def title(self) -> str:
        """The stage and, where it says more, the label: `seed-0/sft`, `seed-0/head/sft features`."""
        if not self.stage or self.label == self.stage:
            return self.label
        known = {part for words in self.stage.split("/") for part in words.split("-")}
        known |= set(self.stage.split("/"))
        own = " ".join(word for word in self.label.split() if word not in known)
        return f"{self.stage} {own}".rstrip()

    def line(self) -> str:
        """As in a log: `[seed-0/sft] 95/438  0:20 elapsed, 1:12 left  loss 0.41`."""
        stage, _, label = self.title.partition(" ") if self.stage else (self.title, "", "")
        of = "" if self.total is None else f"/{self.total}"
        if self.total is None:
            ahead = f"{self.fresh / self.elapsed if self.elapsed else 0:.1f} a second"
        else:
            ahead = f"{'?' if self.left is None else format_seconds(self.left)} left"
        counted = f"{label} {self.done}{of}".strip()
        elapsed = format_seconds(self.elapsed)
        return f"[{stage}] {counted}  {elapsed} elapsed, {ahead}  {self.note}".rstrip()


class Channel(Protocol):
    """Where updates can be put: a queue of multiprocessing, or an object of this process."""

    def put(self, update: Update | str, /) -> None:
        """Take an update, or a line to print."""


_channel: Channel | None = None
_stage = ""


def send_to(channel: Channel | None) -> None:
    """Send this process's updates there instead of printing them; None: print them again.

    A queue of multiprocessing is not waited for: a process ends although nobody reads its last updates.
    """
    global _channel
    _channel = channel
    if channel is not None and hasattr(channel, "cancel_join_thread"):
        channel.cancel_join_thread()


@contextmanager
def of_stage(name: str) -> Iterator[None]:
    """Within, what this process counts is counted for this stage."""
    global _stage
    before = _stage
    _stage = name
    try:
        yield
    finally:
        _stage = before


def say(text: str, label: str = "") -> None:
    """Print a line on standard error, or send it where the updates go, so that a live view is not broken.

    It begins with the stage of this process, or, outside a run, with `label`.
    """
    name = _stage or label
    line = f"[{name}] {text}" if name else text
    if _channel is not None:
        _channel.put(line)
        return
    # One write a line, so that lines of several processes do not mix.
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class Progress:
    """Counts units of work and says done/total, elapsed and the estimated time left.

        with Progress("sft", total=1000, start=resumed_from) as progress:
            progress.advance(32, note="loss 0.41")

    `start` units were done by an earlier run; they do not enter the rate. Where the total is not known beforehand
    (None), the rate is printed in place of an estimate. Of several processes that count the same, one is `shown`.
    `interval` is in seconds; where the updates are sent, they are at most half a second apart.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        start: int = 0,
        interval: float = 5.0,
        shown: bool = True,
    ) -> None:
        self.label = label
        self.total = total
        self.done = start
        self.start = start
        self.interval = interval if _channel is None else min(interval, 0.5)
        self.shown = shown
        self.began = time.monotonic()
        self.said = 0.0

    def __enter__(self) -> "Progress":
        if _channel is not None:
            self._say("")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            return  # The command says that it was stopped.
        self._say("stopped" if kind else "done", ended=True)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count `units` more; say so where the last line is old enough."""
        self.done += units
        if time.monotonic() - self.said >= self.interval:
            self._say(note)

    def _say(self, note: str, *, ended: bool = False) -> None:
        if not self.shown:
            return
        self.said = time.monotonic()
        update = Update(
            stage=_stage,
            label=self.label,
            done=self.done,
            total=self.total,
            fresh=self.done - self.start,
            elapsed=self.said - self.began,
            note=note,
            ended=ended,
        )
        if _channel is not None:
            _channel.put(update)
            return
        # One write a line, so that lines of several processes do not mix.
        sys.stderr.write(f"{update.line()}\n")
        sys.stderr.flush()
