"""Report progress with an estimate: a log line every few seconds, or updates for a live view."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol


def format_seconds(seconds: float) -> str:
    """Format seconds: `95.2` -> `1:35`, `3725` -> `1:02:05`."""
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


@dataclass(frozen=True)
class Update:
    """The state of one counter."""

    stage: str
    """The stage that counts; "" outside a run."""
    label: str
    done: int
    total: int | None
    """None if it is not known in advance."""
    fresh: int
    """Units of `done` that this process did; an earlier process did the others."""
    elapsed: float
    """Seconds since this process began to count."""
    note: str
    """A few words, such as `loss 0.41`."""
    ended: bool

    @property
    def left(self) -> float | None:
        """Return the seconds left at the rate so far; None if unknown."""
        if self.total is None or not self.fresh:
            return None
        return self.elapsed / self.fresh * (self.total - self.done)

    @property
    def title(self) -> str:
        """Return the stage and any different label: `seed-0/sft`, `seed-0/head/sft features`."""
        if not self.stage or self.label == self.stage:
            return self.label
        known = {part for words in self.stage.split("/") for part in words.split("-")}
        known |= set(self.stage.split("/"))
        own = " ".join(word for word in self.label.split() if word not in known)
        return f"{self.stage} {own}".rstrip()

    def line(self) -> str:
        """Return a log line: `[seed-0/sft] 95/438  0:20 elapsed, 1:12 left  loss 0.41`."""
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
    """Where updates are sent: a multiprocessing queue, or an object of this process."""

    def put(self, update: Update | str, /) -> None:
        """Take an update, or a line to print."""


_channel: Channel | None = None
_stage = ""


def send_to(channel: Channel | None) -> None:
    """Send this process's updates to `channel` instead of printing them; None prints them again.

    The process does not wait for a multiprocessing queue: it ends even if nobody reads its last
    updates.
    """
    global _channel
    _channel = channel
    if channel is not None and hasattr(channel, "cancel_join_thread"):
        channel.cancel_join_thread()


@contextmanager
def of_stage(name: str) -> Iterator[None]:
    """Assign what this process counts inside the context to this stage."""
    global _stage
    before = _stage
    _stage = name
    try:
        yield
    finally:
        _stage = before


def say(text: str, label: str = "") -> None:
    """Print a line on standard error, or send it with the updates so that a live view stays intact.

    The line begins with the stage of this process or, outside a run, with `label`.
    """
    name = _stage or label
    line = f"[{name}] {text}" if name else text
    if _channel is not None:
        _channel.put(line)
        return
    # Write each line at once, so that lines of several processes do not mix.
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class Progress:
    """Count units of work and report done/total, elapsed time and the estimated time left.

        with Progress("sft", total=1000, start=resumed_from) as progress:
            progress.advance(32, note="loss 0.41")

    `start` units were done by an earlier run and do not count toward the rate. If the total is
    unknown (None), the rate is printed instead of an estimate. If several processes count the same
    units, only one is `shown`. `interval` is in seconds; updates to a channel are at most half a
    second apart.
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
            return  # The command itself says that it was stopped.
        self._say("stopped" if kind else "done", ended=True)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count `units` more; print a line if the last one is old enough."""
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
        # Write each line at once, so that lines of several processes do not mix.
        sys.stderr.write(f"{update.line()}\n")
        sys.stderr.flush()
