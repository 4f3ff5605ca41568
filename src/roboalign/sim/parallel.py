"""Episodes spread over processes, so that a dead worker costs its episodes a retry and nobody else anything."""

import contextlib
import multiprocessing
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from roboalign.errors import RoboAlignError
from roboalign.processes import die_with_parent
from roboalign.progress import Progress
from roboalign.sim.base import Benchmark
from roboalign.sim.rollout import Act, EnvironmentPool, EpisodeResult, RolloutConfig, rollout_batch

EpisodeKey = tuple[str, int]
"""(task, seed)."""


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    open: list[EpisodeKey] = field(default_factory=list)
    """Episodes handed over whose results have not come back."""


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

    `make_act` is called once in every worker (spawned, so it must be picklable) and loads the policy there. The caller
    appends results to a file and, after a kill, passes the episodes that are missing from it. Episodes of a worker that
    died run once more, each alone; where the worker dies again the episode is a crash. A RoboAlignError in
    `make_act` or in the policy stops everything and is raised here; any other exception, as a RuntimeError that carries
    its traceback.
    """
    batches = _batches(episodes, config.batch_size, workers)
    retried: set[EpisodeKey] = set()
    crew: list[_Worker] = []
    with Progress("evaluate", total=len(episodes)) as progress:

        def finish(result: EpisodeResult) -> None:
            on_result(result)
            progress.advance(note=result.task)

        try:
            while batches or any(worker.open for worker in crew):
                while batches and len(crew) < workers:
                    crew.append(_start(make_act, benchmark, config))
                for worker in crew:
                    if not worker.open and batches:
                        _hand_over(worker, batches.popleft())
                wait([worker.pipe for worker in crew])
                for worker in list(crew):
                    if not _take_results(worker, finish):
                        crew.remove(worker)
                        _redistribute(worker, batches, retried, finish)
        finally:
            for worker in crew:
                worker.pipe.close()
                worker.process.terminate()
                worker.process.join()


def _batches(episodes: Sequence[EpisodeKey], size: int, workers: int) -> deque[list[EpisodeKey]]:
    """Batches of one task where possible (its environments are then at hand), no larger than a fair share."""
    size = max(1, min(size, -(-len(episodes) // workers)))
    ordered = sorted(episodes)
    return deque(ordered[start : start + size] for start in range(0, len(ordered), size))


def _start(make_act: Callable[[], Act], benchmark: Benchmark, config: RolloutConfig) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, make_act, benchmark, config), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _hand_over(worker: _Worker, batch: list[EpisodeKey]) -> None:
    worker.open = batch
    # A worker that has just died cannot take it; the end of its pipe is read next, and the batch redistributed.
    with contextlib.suppress(OSError):
        worker.pipe.send(batch)


def _take_results(worker: _Worker, finish: Callable[[EpisodeResult], None]) -> bool:
    """Take what the worker has sent; False where it has died. Raises the policy's RoboAlignError, or RuntimeError."""
    try:
        while worker.pipe.poll():
            message = worker.pipe.recv()
            if isinstance(message, RoboAlignError):
                raise message
            if isinstance(message, str):
                raise RuntimeError(f"the policy failed in a rollout worker:\n{message}")
            worker.open = [key for key in worker.open if key != (message.task, message.seed)]
            finish(message)
    except (EOFError, OSError):
        worker.process.join()
        return False
    return True


def _redistribute(
    worker: _Worker,
    batches: deque[list[EpisodeKey]],
    retried: set[EpisodeKey],
    finish: Callable[[EpisodeResult], None],
) -> None:
    """A dead worker's open episodes run again, each alone; those that had their second chance are crashes."""
    for task, seed in worker.open:
        if (task, seed) in retried:
            crash = f"the rollout process died twice (exit code {worker.process.exitcode})"
            finish(EpisodeResult(task, seed, success=False, steps=0, crash=crash, seconds=0.0))
        else:
            retried.add((task, seed))
            batches.append([(task, seed)])


def _work(pipe: Connection, make_act: Callable[[], Act], benchmark: Benchmark, config: RolloutConfig) -> None:
    die_with_parent()
    try:
        act, pool = make_act(), EnvironmentPool(benchmark, limit=config.batch_size)
        while True:
            for result in rollout_batch(act, pool, pipe.recv(), config):
                pipe.send(result)
    except (EOFError, BrokenPipeError):
        return  # the parent has gone
    except RoboAlignError as error:
        pipe.send(error)
    except Exception:
        pipe.send(traceback.format_exc())
