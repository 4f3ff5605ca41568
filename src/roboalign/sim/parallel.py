"""Spread episodes over workers. If a worker dies, only its own episodes run again.

The queue knows only the protocol `Worker`. Here a worker is a process of this machine; `sim.ray`
has workers on other machines.
"""

import contextlib
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, Protocol, TypeVar

from roboalign.core.errors import RoboAlignError
from roboalign.core.processes import (
    JOIN_SECONDS,
    deaf,
    die_with_parent,
    end_processes,
    inherit,
    worker_context,
)
from roboalign.core.progress import Progress
from roboalign.sim.base import Benchmark
from roboalign.sim.rollout import Act, EnvironmentPool, EpisodeResult, RolloutConfig, rollout_batch

EpisodeKey = tuple[str, int]
"""(task, seed)."""
Message = EpisodeResult | RoboAlignError | str
"""What a worker sends: a result, or finally the error that ended it. A str is the traceback of any
other exception."""


class WorkerDied(Exception):
    """A worker died; the text says how."""


class Worker(Protocol):
    """One of the workers that share the queue."""

    open: list[EpisodeKey]
    """Episodes given to it whose results have not come back."""
    ready: bool
    """Whether it can take a batch. A worker that waits for room on a machine takes none from the
    others."""

    def give(self, batch: list[EpisodeKey]) -> None:
        """Give it a batch. If the worker has just died, `take` raises."""

    def take(self) -> Iterator[Message]:
        """Yield the messages that have arrived, without waiting. Raises WorkerDied after the last
        message of a dead worker."""

    def stop(self) -> None:
        """Stop it, whatever it is doing."""


AnyWorker = TypeVar("AnyWorker", bound=Worker)


@dataclass(frozen=True)
class Site(Generic[AnyWorker]):
    """Where workers run: the maximum number, how to start one, and how to wait until any has sent
    something."""

    limit: int
    start: Callable[[], AnyWorker]
    wait: Callable[[Sequence[AnyWorker]], None]


def evaluate_parallel(
    make_act: Callable[[], Act],
    benchmark: Benchmark,
    episodes: Sequence[EpisodeKey],
    config: RolloutConfig,
    *,
    workers: int,
    on_result: Callable[[EpisodeResult], None],
) -> None:
    """Run every (task, seed) once and call `on_result` in this process as each ends, in no fixed order.

    Each worker calls `make_act` once to load the policy in its own process, so it must be picklable. The caller
    appends results to a file and, after a kill, passes the episodes that are missing from it. Episodes of a worker that
    died run once more, each alone. An episode whose worker dies a second time is a crash. A RoboAlignError of
    `make_act` or of the policy stops everything and is raised here; any other exception is raised as a RuntimeError
    with its traceback.
    """
    site = Site(workers, lambda: _LocalWorker(*_start(make_act, benchmark, config)), _wait)
    with Progress("rollouts", total=len(episodes)) as progress:

        def finish(result: EpisodeResult) -> None:
            on_result(result)
            progress.advance(note=result.task)

        run_queue(site, episodes, config.batch_size, finish)


def run_queue(
    site: Site[AnyWorker],
    episodes: Sequence[EpisodeKey],
    batch_size: int,
    finish: Callable[[EpisodeResult], None],
) -> None:
    """Finish every episode once, with the workers of `site`. Raises what `evaluate_parallel`
    raises."""
    batches = _batches(episodes, batch_size, site.limit)
    retried: set[EpisodeKey] = set()
    crew: list[AnyWorker] = []
    try:
        while batches or any(worker.open for worker in crew):
            while len(crew) < site.limit and sum(not worker.open for worker in crew) < len(batches):
                crew.append(site.start())
            for worker in crew:
                if worker.ready and not worker.open and batches:
                    worker.open = batches.popleft()
                    worker.give(worker.open)
            site.wait(crew)
            for worker in list(crew):
                try:
                    _take_results(worker, finish)
                except WorkerDied as end:
                    crew.remove(worker)
                    _redistribute(worker.open, str(end), batches, retried, finish)
    finally:
        for worker in crew:
            worker.stop()


def _batches(episodes: Sequence[EpisodeKey], size: int, workers: int) -> deque[list[EpisodeKey]]:
    """Return batches, each of one task if possible so that its environments are reused, no larger
    than a fair share."""
    size = max(1, min(size, -(-len(episodes) // workers)))
    ordered = sorted(episodes)
    return deque(ordered[start : start + size] for start in range(0, len(ordered), size))


def _take_results(worker: Worker, finish: Callable[[EpisodeResult], None]) -> None:
    for message in worker.take():
        result = result_of(message)
        worker.open = [key for key in worker.open if key != (result.task, result.seed)]
        finish(result)


def result_of(message: Message) -> EpisodeResult:
    """Return the result in a message. Raises the policy's RoboAlignError, or RuntimeError with
    another error's traceback."""
    if isinstance(message, RoboAlignError):
        raise message
    if isinstance(message, str):
        raise RuntimeError(f"the policy failed in a rollout worker:\n{message}")
    return message


def _redistribute(
    episodes: Sequence[EpisodeKey],
    end: str,
    batches: deque[list[EpisodeKey]],
    retried: set[EpisodeKey],
    finish: Callable[[EpisodeResult], None],
) -> None:
    """Queue a dead worker's open episodes again, each alone. Those that have already been retried
    count as crashes."""
    for task, seed in episodes:
        if (task, seed) in retried:
            crash = f"the rollout process died twice ({end})"
            finish(EpisodeResult(task, seed, success=False, steps=0, crash=crash, seconds=0.0))
        else:
            retried.add((task, seed))
            batches.append([(task, seed)])


def work(
    make_act: Callable[[], Act],
    benchmark: Benchmark,
    config: RolloutConfig,
    batches: Iterable[list[EpisodeKey]],
) -> Iterator[Message]:
    """Do the work of every worker, local or remote: load the policy, run the batches, and send an
    error if one ends it."""
    try:
        act, pool = make_act(), EnvironmentPool(benchmark, limit=config.batch_size)
        for batch in batches:
            yield from rollout_batch(act, pool, batch, config)
    except RoboAlignError as error:
        yield error
    except Exception:
        yield traceback.format_exc()


@dataclass
class _LocalWorker:
    process: BaseProcess
    pipe: Connection
    open: list[EpisodeKey] = field(default_factory=list)
    ready: bool = True

    def give(self, batch: list[EpisodeKey]) -> None:
        # A worker that has just died cannot take it; the end of its pipe is read next, and the batch redistributed.
        with contextlib.suppress(OSError):
            self.pipe.send(batch)

    def take(self) -> Iterator[Message]:
        while True:
            try:
                if not self.pipe.poll():
                    return
                message = self.pipe.recv()
            except (EOFError, OSError):
                self.process.join()
                raise WorkerDied(f"exit code {self.process.exitcode}") from None
            yield message

    def stop(self) -> None:
        self.pipe.close()
        if not self.open:  # It is idle and ends by itself, so that it releases its resources.
            self.process.join(JOIN_SECONDS)
        end_processes([self.process])


def _start(
    make_act: Callable[[], Act], benchmark: Benchmark, config: RolloutConfig
) -> tuple[BaseProcess, Connection]:
    context = worker_context()
    ours, theirs = context.Pipe()
    arguments = (dict(os.environ), theirs, make_act, benchmark, config)
    process = context.Process(target=_work, args=arguments, daemon=True)
    with deaf():
        process.start()
    theirs.close()
    return process, ours


def _wait(crew: Sequence[_LocalWorker]) -> None:
    wait([worker.pipe for worker in crew])


def _work(
    variables: dict[str, str],
    pipe: Connection,
    make_act: Callable[[], Act],
    benchmark: Benchmark,
    config: RolloutConfig,
) -> None:
    die_with_parent()
    inherit(variables)
    # Either end of the pipe fails if the parent is gone.
    with contextlib.suppress(BrokenPipeError):
        for message in work(make_act, benchmark, config, _received(pipe)):
            pipe.send(message)


def _received(pipe: Connection) -> Iterator[list[EpisodeKey]]:
    with contextlib.suppress(EOFError):
        while True:
            yield pipe.recv()


class Crew:
    """Worker processes of this machine that keep their policy and simulators from one call of `run`
    to the next."""

    def __init__(
        self,
        make_act: Callable[[], Act],
        benchmark: Benchmark,
        config: RolloutConfig,
        *,
        workers: int,
    ) -> None:
        """Take what `evaluate_parallel` takes. Processes start when they are needed."""
        self._start = partial(_start, make_act, benchmark, config)
        self._batch_size, self._limit = config.batch_size, workers
        self._idle: list[_KeptWorker] = []

    def run(
        self, episodes: Sequence[EpisodeKey], on_result: Callable[[EpisodeResult], None]
    ) -> None:
        """Run every episode once, as `evaluate_parallel` does."""
        run_queue(Site(self._limit, self._take, _wait), episodes, self._batch_size, on_result)

    def _take(self) -> "_KeptWorker":
        return self._idle.pop() if self._idle else _KeptWorker(*self._start(), home=self._idle)

    def close(self) -> None:
        """End the processes."""
        while self._idle:
            _LocalWorker.stop(self._idle.pop())


@dataclass
class _KeptWorker(_LocalWorker):
    home: "list[_KeptWorker]" = field(default_factory=list)

    def stop(self) -> None:
        """Go home; a worker that is still busy ends."""
        if self.open:
            super().stop()
        else:
            self.home.append(self)
