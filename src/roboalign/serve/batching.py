"""Answer requests that arrive together in one forward pass, in one worker thread that keeps the
event loop free."""

import asyncio
import contextlib
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.core.progress import say
from roboalign.serve.contract import Contract, Query

WINDOW = 0.002
"""Seconds that a request waits for requests of other open connections."""


@dataclass(frozen=True)
class Answer:
    """The chunks that answer one message."""

    actions: np.ndarray
    """float32 [n, H, A], raw units."""
    infer_ms: float
    """Milliseconds of the forward pass, which may also have answered other messages."""
    together: int
    """Number of observations in that forward pass."""


@dataclass(frozen=True)
class _Job:
    queries: list[Query]
    future: "asyncio.Future[Answer]"


class Batcher:
    """Answer queries with `policy`: any object with `act_batch(observations, noise_keys)` or `act`.

    A request waits at most `window` seconds, and only while fewer requests wait than
    `connections()` reports clients. The thread is a daemon, so a forward pass that hangs does not
    keep the process alive.
    """

    def __init__(
        self,
        policy: Any,
        contract: Contract,
        *,
        window: float = WINDOW,
        connections: Callable[[], int] = lambda: 1,
    ) -> None:
        self.policy, self.contract = policy, contract
        self.window, self.connections = window, connections
        self.passes = self.answered = 0
        """Number of forward passes, and of the observations that they answered."""
        self._waiting: deque[_Job] = deque()
        self._computed: list[_Job] = []
        """The jobs that the thread is computing."""
        self._came = asyncio.Event()
        self._work: queue.SimpleQueue[tuple[list[_Job], asyncio.Future[None]] | None] = (
            queue.SimpleQueue()
        )
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._infer_forever, daemon=True, name="policy").start()
        self._task = asyncio.create_task(self._run())

    async def answer(self, queries: list[Query]) -> Answer:
        """Return chunks for these observations from one pass, perhaps shared with other messages.

        Raises RoboAlignError if the policy refuses them or fails, or if its actions are not finite
        or have the wrong shape.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting.append(_Job(queries, future))
        self._came.set()
        return await future

    def close(self) -> None:
        """Stop, and refuse the requests that still wait."""
        self._task.cancel()
        self._work.put(None)
        fault = RoboAlignError("the server is stopping", where="server", fix="connect again")
        for job in (*self._computed, *self._waiting):
            if not job.future.done():
                job.future.set_exception(fault)

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                self._came.clear()
                await self._came.wait()
            await self._wait_for_others()
            done: asyncio.Future[None] = self._loop.create_future()
            self._computed = self._take()
            self._work.put((self._computed, done))
            await done

    async def _wait_for_others(self) -> None:
        """Wait until every open connection has asked, or until the window is over."""
        until = self._loop.time() + self.window
        while len(self._waiting) < self.connections():
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), until - self._loop.time())
            except TimeoutError:
                return

    def _take(self) -> list[_Job]:
        """Return the jobs of the next pass, in order of arrival."""
        jobs, count = [self._waiting.popleft()], 0
        count = len(jobs[0].queries)
        while self._waiting and count + len(self._waiting[0].queries) <= self.contract.max_batch:
            jobs.append(self._waiting.popleft())
            count += len(jobs[-1].queries)
        return jobs

    def _infer_forever(self) -> None:
        while (work := self._work.get()) is not None:
            jobs, done = work
            results = self._results(jobs)
            with contextlib.suppress(RuntimeError):  # the loop has been closed in the meantime
                self._loop.call_soon_threadsafe(_deliver, jobs, results, done)

    def _results(self, jobs: Sequence[_Job]) -> list[Answer | RoboAlignError]:
        """Compute all jobs together; if that fails, compute each job separately, so that only the
        message at fault gets an error."""
        try:
            return list(self._together(jobs))
        except Exception as error:
            if len(jobs) > 1:
                return [self._results([job])[0] for job in jobs]
            return [as_fault(error)]

    def _together(self, jobs: Sequence[_Job]) -> list[Answer]:
        queries = [query for job in jobs for query in job.queries]
        began = time.perf_counter()
        actions = act_on(self.policy, queries)
        spent = 1000 * (time.perf_counter() - began)
        check_actions(actions, len(queries), self.contract)
        self.passes += 1
        self.answered += len(queries)
        ends = np.cumsum([len(job.queries) for job in jobs])[:-1]
        return [Answer(part, spent, len(queries)) for part in np.split(actions, ends)]


def act_on(policy: Any, queries: Sequence[Query]) -> np.ndarray:
    """Return float32 [n, H, A] from the policy's `act_batch`, or from one `act` per query."""
    keys = [query.noise_key for query in queries]
    guides = [None if q.previous is None else (q.previous, q.delay) for q in queries]
    if not hasattr(policy, "act_batch"):
        return np.stack([policy.act(query, key) for query, key in zip(queries, keys)])
    if any(guide is not None for guide in guides):
        chunks = policy.act_batch(queries, keys, guides=guides)
    else:
        chunks = policy.act_batch(queries, keys)
    return np.asarray(chunks, np.float32)


def check_actions(actions: np.ndarray, count: int, contract: Contract) -> None:
    """Raise RoboAlignError if actions are not finite or do not have the contract's shape."""
    expected = (count, contract.horizon, contract.action_dim)
    if actions.shape != expected:
        raise RoboAlignError(
            f"it answered {list(actions.shape)} instead of {list(expected)}", where="policy"
        )
    if not np.isfinite(actions).all():
        raise RoboAlignError(
            "its actions are not finite", where="policy", fix="check the weights and statistics"
        )


def as_fault(error: Exception) -> RoboAlignError:
    """Convert an error to one that the client may read, and print the traceback of an error that
    the input did not cause."""
    if isinstance(error, RoboAlignError):
        return error
    say("".join(traceback.format_exception(error)).rstrip(), "serve")
    return RoboAlignError(
        f"the policy failed ({type(error).__name__})",
        where="policy",
        fix="see what the server printed",
    )


def _deliver(
    jobs: Sequence[_Job],
    results: Sequence[Answer | RoboAlignError],
    done: "asyncio.Future[None]",
) -> None:
    for job, result in zip(jobs, results):
        if job.future.done():  # its connection is closed
            continue
        if isinstance(result, Answer):
            job.future.set_result(result)
        else:
            job.future.set_exception(result)
    if not done.done():
        done.set_result(None)
