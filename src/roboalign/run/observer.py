"""Who is told how a run goes: a protocol, and the plain lines that are printed where nobody else is given."""

import time
from collections.abc import Callable, Sequence
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Protocol

from roboalign.core.progress import format_seconds
from roboalign.run.stage import Stage


class Observer(Protocol):
    """Is told what a run does, in the process that leads it. No method may raise."""

    def run_started(self, stages_to_do: Sequence[Stage], done_before: Sequence[str]) -> None:
        """The run begins: the stages that it will do, in order, and the names of those that are done."""

    def stage_started(self, name: str, number: int, total: int) -> None:
        """A stage begins; it is number `number` (from 1) of the `total` stages to do."""

    def stage_finished(self, name: str, row: dict[str, Any]) -> None:
        """A stage has ended; `row` is its row of the ledger, with its `seconds`."""

    def note(self, text: str) -> None:
        """Something that the user should know, such as a result that was moved aside."""

    def run_ended(self, seconds: float, run_dir: Path) -> None:
        """All stages are done. A run that fails ends with its error instead."""

    def channel(self) -> "Queue[Any] | None":
        """The queue into which stages in other processes put their progress; None: they print it themselves.

        It must be made with the `spawn` context of multiprocessing: that is how the processes are started.
        """


class PlainLines:
    """One line for every event, each printed at once."""

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
        self.say(f"[run] {self.count} stages in {format_seconds(seconds)}, results in {run_dir}")

    def channel(self) -> None:
        return None


def _print(line: str) -> None:
    print(line, flush=True)
