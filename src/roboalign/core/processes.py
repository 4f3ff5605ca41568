"""Worker processes that never outlive the command that started them."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def die_with_parent() -> None:
    """End this process as soon as the one that spawned it has gone, be it by `kill -9`.

    Left alone, a worker would go on with its stage for minutes, write into a folder that the next run already works in,
    and take a core from it. Files are written beside and renamed, so ending anywhere is safe.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="die with parent").start()


def give_memory_back() -> None:
    """Return freed memory to the system. Without it a worker keeps the most that any of its stages ever used."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Return `work()`, in a thread of its own. Raises TimeoutError where it runs longer than `seconds`.

    The thread is then ended by an exception, which reaches Python code alone, not a call into another language.
    """
    done: list[Result] = []
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
