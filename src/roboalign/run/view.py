"""Show a live view of a run on a terminal: stages done, running and waiting, and the estimated
end."""

import contextlib
import multiprocessing
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from roboalign.core import progress
from roboalign.core.processes import deaf
from roboalign.core.progress import Update, format_seconds
from roboalign.run.forecast import AnyStage, Forecast, kind_of
from roboalign.run.observer import Observer, PlainLines

_WIDE = 96
"""Minimum columns at which a running stage's note, such as its loss, is shown."""
NAME_WIDTH = 34
MARKS = {"done": "✓", "running": "▸", "waiting": "·"}
PLAIN_MARKS = {"done": "+", "running": ">", "waiting": "."}


@contextmanager
def watch(at_once: int, *, live: bool = True) -> Iterator[Observer]:
    """Yield the observer of a run on this process's standard error: the live view on a terminal,
    elsewhere plain lines.

    `at_once`: how many stages run side by side. The view is closed however the run ends. If `live`
    is false, print plain lines on a terminal too, for example when several processes share it.
    """
    console = Console(stderr=True)
    if not live or not console.is_terminal or console.is_dumb_terminal:
        yield PlainLines()
        return
    view = LiveView(at_once, console)
    try:
        yield view
    finally:
        view.close()


class LiveView:
    """Show a run on `console`; an Observer."""

    def __init__(self, at_once: int, console: Console) -> None:
        self.console = console
        self.at_once = at_once
        self.forecast = Forecast([], at_once)
        self.done_before = 0
        self.began = time.monotonic()
        self.ended: float | None = None
        self.lock = threading.Lock()
        self.marks = MARKS if console.encoding.startswith("utf") else PLAIN_MARKS
        self.live: Live | None = None
        self.queue: Queue[Update | str] | None = None

    def run_started(self, stages_to_do: Sequence[AnyStage], done_before: Sequence[str]) -> None:
        self.forecast = Forecast(stages_to_do, self.at_once)
        self.done_before = len(done_before)
        self.began = time.monotonic()
        progress.send_to(self)
        self.live = Live(
            console=self.console,
            get_renderable=self.render,
            refresh_per_second=4,
            redirect_stdout=sys.stdout.isatty(),
            vertical_overflow="ellipsis",
        )
        self.live.start(refresh=True)

    def stage_started(self, name: str, number: int, total: int) -> None:
        with self.lock:
            self.forecast.start(name)

    def stage_finished(self, name: str, row: dict[str, Any]) -> None:
        with self.lock:
            self.forecast.finish(name, row["seconds"])

    def note(self, text: str) -> None:
        # As Text: in a string, `[seed-0/sft]` would be read as markup and dropped.
        self.console.print(Text(text), soft_wrap=True)

    def run_ended(self, seconds: float, run_dir: Path) -> None:
        self.ended = seconds
        self.close()

    def channel(self) -> "Queue[Update | str]":
        """Return the queue for stages in other processes; one thread here reads it."""
        if self.queue is None:
            with deaf():
                self.queue = multiprocessing.get_context("spawn").Queue()
            threading.Thread(target=self._read, args=(self.queue,), daemon=True).start()
        return self.queue

    def put(self, update: Update | str) -> None:
        """Take an update or a line, from a stage in this process or from the queue."""
        if isinstance(update, str):
            self.note(update)
            return
        with self.lock:
            self.forecast.updates[update.stage] = update

    def close(self) -> None:
        """Leave the last state on the screen; a second call does nothing."""
        progress.send_to(None)
        if self.live is not None:
            self.live.stop()
            self.live = None
        if self.queue is not None:
            self.queue.close()
            self.queue.cancel_join_thread()
            self.queue = None

    def _read(self, updates: "Queue[Update | str]") -> None:
        # A worker that is ended while it writes leaves half a message; nothing after it matters.
        with contextlib.suppress(EOFError, OSError, ValueError, TypeError):
            while self.queue is updates:
                with contextlib.suppress(queue.Empty):
                    self.put(updates.get(timeout=0.5))

    def render(self) -> RenderableType:
        """Return the current view."""
        with self.lock:
            return Group(self._heading(), self._table())

    def _heading(self) -> Text:
        done = len(self.forecast.seconds)
        count = len(self.forecast.stages)
        if self.ended is not None:
            words = f"run: {done} stage{'s' * (done != 1)} in {format_seconds(self.ended)}"
        else:
            elapsed = format_seconds(time.monotonic() - self.began)
            left = self.forecast.left()
            ahead = "estimating the rest" if left is None else f"about {format_seconds(left)} left"
            words = f"run: {done} of {count} stages done, {elapsed} elapsed, {ahead}"
        before = f" ({self.done_before} were done before)" if self.done_before else ""
        return Text(words + before, style="bold", no_wrap=True, overflow="ellipsis")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(width=NAME_WIDTH, no_wrap=True, overflow="ellipsis")
        table.add_column(width=14)
        table.add_column(justify="right", no_wrap=True, min_width=9)
        table.add_column(justify="right", no_wrap=True, min_width=15)
        wide = self.console.width >= _WIDE
        if wide:
            table.add_column(no_wrap=True, overflow="ellipsis")
        kinds: dict[str, list[AnyStage]] = {}
        for stage in self.forecast.stages:
            kinds.setdefault(kind_of(stage.name), []).append(stage)
        for kind, stages in kinds.items():
            for row in self._rows(kind, [stage.name for stage in stages]):
                table.add_row(*(row if wide else row[:5]))
        return table

    def _rows(self, kind: str, names: list[str]) -> Iterator[tuple[RenderableType, ...]]:
        """Yield one row for each running stage of a kind, and one for all the others of that
        kind."""
        running = [name for name in names if name in self.forecast.began]
        done = [name for name in names if name in self.forecast.seconds]
        waiting = [name for name in names if name not in running and name not in done]
        title = names[0] if len(names) == 1 else f"{kind}, {len(names)} stages"
        if len(done) == len(names):
            took = format_seconds(sum(self.forecast.seconds[name] for name in done))
            yield Text(self.marks["done"], "green"), title, "", "", took, ""
            return
        for name in running:
            yield self._running(name)
        if len(names) > 1 or waiting:
            guesses = [self.forecast.left_of(name) for name in waiting]
            known = [guess for guess in guesses if guess is not None]
            about = f"about {format_seconds(sum(known))}" if known else ""
            count = f"{len(done)} done" if done else ""
            yield Text(self.marks["waiting"], "dim"), Text(title, "dim"), "", count, about, ""

    def _running(self, name: str) -> tuple[RenderableType, ...]:
        mark = Text(self.marks["running"], "cyan")
        elapsed = format_seconds(time.monotonic() - self.forecast.began[name])
        update = self.forecast.updates.get(name)
        left = self.forecast.left_of(name)
        # 0 is not an estimate: the stage has taken longer than predicted.
        ahead = f"{elapsed}, {format_seconds(left)} left" if left else elapsed
        if update is None:
            return mark, name, "", "", ahead, ""
        if update.total is None:
            return mark, update.title, "", str(update.done), ahead, update.note
        bar = ProgressBar(total=max(1, update.total), completed=update.done, width=14)
        return mark, update.title, bar, f"{update.done}/{update.total}", ahead, update.note
