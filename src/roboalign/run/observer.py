"""Report how a run goes: the observer protocol, and the plain lines that are printed by default."""

import time
from collections.abc import Callable, Sequence
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Protocol

from roboalign.core.progress import format_seconds
from roboalign.run.stage import Stage


class Observer(Protocol):
    """Receive the events of a run, in the process that leads it. No method may raise."""

    def run_started(self, stages_to_do: Sequence[Stage], done_before: Sequence[str]) -> None:
        """Handle the start of the run: the stages to do, in order, and the names of those that are
        already done."""

    def stage_started(self, name: str, number: int, total: int) -> None:
        """Handle the start of a stage, number `number` (from 1) of the `total` stages to do."""

    def stage_finished(self, name: str, row: dict[str, Any]) -> None:
        """Handle the end of a stage; `row` is its row of the ledger, with its `seconds`."""

    def note(self, text: str) -> None:
        """Show something that the user should know, such as a result that was moved aside."""

    def run_ended(self, seconds: float, run_dir: Path) -> None:
        """Handle the end of all stages. A run that fails ends with its error instead."""

    def channel(self) -> "Queue[Any] | None":
        """Return the queue for progress from stages in other processes; None: they print it
        themselves.

        It must be made with the `spawn` context of multiprocessing, because no stage's process is
        forked from this one.
        """


class PlainLines:
    """Print one line for every event, immediately."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.say = say or _print
        self.began = time.monotonic()
        self.count = 0

    def run_started(self, stages_to_do: Sequence[Stage], done_before: Sequence[str]) -> None:
        for name in done_before:
            self.say(f"[{name}] done before, nothing to do")
        self.began = time.monotonic()
        self.count = len(stages_to_do)

    def stage_started(self, name: str, number: int, total: int) -> None:
        elapsed = format_seconds(time.monotonic() - self.began)
        self.say(f"[{name}] started at {elapsed}, stage {number} of {total}")

    def stage_finished(self, name: str, row: dict[str, Any]) -> None:
        self.say(f"[{name}] finished in {format_seconds(row['seconds'])}")

    def note(self, text: str) -> None:
        self.say(text)

    def run_ended(self, seconds: float, run_dir: Path) -> None:
        self.say(
            f"[run] {self.count} stage{'s' * (self.count != 1)} in {format_seconds(seconds)}, results in {run_dir}"
        )

    def channel(self) -> None:
        return None


def _print(line: str) -> None:
    print(line, flush=True)
