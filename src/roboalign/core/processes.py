"""Worker processes that never outlive the command that started them."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

_Result = TypeVar("_Result")

JOIN_SECONDS = 1.0
"""Given to a worker that was told to end, before it is killed."""


@contextmanager
def worker_pool(
    workers: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes that end with this one, hear no Ctrl-C, and die at once where this one is stopped.

    After an ordinary error the tasks that run are let end, and those that wait are dropped.
    """
    before = set(multiprocessing.active_children())
    with deaf():
        pool = _DeafPool(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(initializer, initargs),
        )
    try:
        yield pool
    except (KeyboardInterrupt, BrokenPipeError):
        end_processes([one for one in multiprocessing.active_children() if one not in before])
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


class _DeafPool(ProcessPoolExecutor):
    """A pool spawns its processes at the first submit, from the thread that submits."""

    def submit(self, *task: Any, **named: Any) -> Any:
        with deaf():
            return super().submit(*task, **named)


def _begin(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    die_with_parent()
    if initializer:
        initializer(*initargs)


@contextmanager
def deaf() -> Iterator[None]:
    """Processes that are started within never hear SIGINT and SIGHUP.

    A terminal sends them to all processes; the parent ends its workers itself. It holds for multiprocessing's own
    resource tracker too, which is started with the first semaphore.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_processes(processes: list[BaseProcess]) -> None:
    """End them at once, whatever they are doing."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(JOIN_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def die_with_parent() -> None:
    """End this process as soon as the one that spawned it has gone, be it by `kill -9`.

    Left alone, a worker would go on with its stage for minutes, write into a folder that the next run already works in,
    and take a core from it. Files are written beside and renamed, so ending anywhere is safe.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # `deaf` blocks these, but multiprocessing's resource tracker unblocks SIGINT when a worker first needs it.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="die with parent").start()


def give_memory_back() -> None:
    """Return freed memory to the system. Without it a worker keeps the most that any of its stages ever used."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def within(seconds: float, work: Callable[[], _Result]) -> _Result:
    """Return `work()`, in a thread of its own. Raises TimeoutError where it runs longer than `seconds`.

    The thread is then ended by an exception, which reaches Python code alone, not a call into another language.
    """
    done: list[_Result] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        stop = ctypes.py_object(TimeoutError)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), stop)
        raise TimeoutError(f"not done after {seconds:g} s")
    if failed:
        raise failed[0]
    return done[0]
