"""Run independent tasks in separate processes, and collect their results."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.processes import worker_pool
from roboalign.core.progress import Progress


@contextmanager
def processes(workers: int) -> Iterator[Executor | None]:
    """Yield `workers` processes; None for one worker, which works in this process."""
    if workers == 1:
        yield None
        return
    with worker_pool(workers) as pool:
        yield pool


def run_tasks(
    label: str,
    pool: Executor | None,
    work: Callable[..., Any],
    tasks: Iterable[tuple[Any, ...]],
    workers: int,
) -> list[Any]:
    """Return `work(*task)` of every task, in the order of the tasks.

    At most twice as many tasks as processes wait at a time. Raises the error of the first task that
    fails.
    """
    tasks = list(tasks)
    results: list[Any] = [None] * len(tasks)
    with Progress(label, total=len(tasks)) as progress:
        if pool is None:
            for place, task in enumerate(tasks):
                results[place] = work(*task)
                progress.advance(1)
            return results
        waiting: dict[Future[Any], int] = {}
        left = iter(enumerate(tasks))
        try:
            while True:
                while len(waiting) < 2 * workers and (following := next(left, None)):
                    waiting[pool.submit(work, *following[1])] = following[0]
                if not waiting:
                    return results
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    results[waiting.pop(future)] = future.result()
                    progress.advance(1)
        except BrokenProcessPool:
            fix = "run the same command again: it continues from here; --workers takes fewer"
            raise RoboAlignError(
                "a worker process was killed from outside, perhaps because memory ran out",
                where=label,
                fix=fix,
            ) from None
