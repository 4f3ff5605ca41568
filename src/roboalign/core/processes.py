"""Run worker processes that never outlive the command that started them."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

_Result = TypeVar("_Result")

JOIN_SECONDS = 1.0
"""Seconds a worker has to end when told to, before it is killed."""
LONGEST_FOLDER = 70
"""Characters of a temporary folder in which the address of a socket has surely fewer than 108, the
system's limit."""
GPU = Path("/dev/nvidiactl")
"""Exists where NVIDIA's driver does."""


def worker_context() -> ForkServerContext | SpawnContext:
    """Return how this process starts its workers: forked from a server that has imported, once,
    every module of this package that this process has imported by now.

    A spawned worker imports torch and transformers again, which takes about 6 seconds of a core.
    The server has used neither OpenGL nor torch, so that both work in its children. With a GPU
    workers are spawned: a library that looks for CUDA while it is imported would break it in all
    children. Start processes inside `deaf`, and pass `os.environ` on by `inherit`: a forked worker
    has the variables that the server began with.
    """
    if GPU.exists() or len(tempfile.gettempdir()) > LONGEST_FOLDER:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(sorted(name for name in sys.modules if _is_ours(name)))
    return context


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == "roboalign" and not module.endswith("__main__")


def inherit(variables: dict[str, str]) -> None:
    """Replace this process's environment by its parent's."""
    os.environ.clear()
    os.environ.update(variables)


@contextmanager
def worker_pool(
    workers: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes that end with this one and ignore Ctrl-C.

    If this process is stopped, they die at once. After an ordinary error, running tasks finish and
    waiting ones are dropped.
    """
    before = set(multiprocessing.active_children())
    with deaf():
        pool = _DeafPool(
            workers,
            mp_context=worker_context(),
            initializer=_begin,
            initargs=(dict(os.environ), initializer, initargs),
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
    """A pool that starts its processes `deaf`.

    A pool starts its processes at the first submit, from the thread that submits.
    """

    def submit(self, *task: Any, **named: Any) -> Any:
        with deaf():
            return super().submit(*task, **named)


def _begin(
    variables: dict[str, str],
    initializer: Callable[..., None] | None,
    initargs: tuple[Any, ...],
) -> None:
    die_with_parent()
    inherit(variables)
    if initializer:
        initializer(*initargs)


@contextmanager
def deaf() -> Iterator[None]:
    """Make processes started inside this context ignore SIGINT and SIGHUP.

    A terminal sends these signals to all processes; the parent ends its workers itself. This also
    covers multiprocessing's own resource tracker, which starts with the first semaphore.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_processes(processes: list[BaseProcess]) -> None:
    """End these processes at once, whatever they are doing."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(JOIN_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def die_with_parent() -> None:
    """End this process as soon as its parent has ended, even by `kill -9`.

    An orphaned worker would continue its stage for minutes, write into a folder that the next run
    already uses, and occupy a core. Files are written to a temporary path and renamed, so ending at
    any point is safe.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # `deaf` blocks these signals, but multiprocessing's resource tracker unblocks SIGINT when a
    # worker first needs it.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="die with parent").start()


def give_memory_back() -> None:
    """Return freed memory to the system; otherwise a worker keeps the peak of all its stages."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def within(seconds: float, work: Callable[[], _Result]) -> _Result:
    """Return `work()`, run in a separate thread. Raises TimeoutError after more than `seconds`.

    The thread is then ended by an exception, which stops Python code but not a call into another
    language.
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
