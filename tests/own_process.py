"""Processes of their own that import nothing: forked from a server that has imported all, once for all tests."""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from transformers import Trainer

from roboalign.cli.main import main

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["roboalign.run.graph", "roboalign.cli.main"])


def status_of(work: Callable[..., object], *arguments: object) -> int | None:
    """Run `work(*arguments)` in a process of its own; return its exit status, negative for a signal."""
    process = FORKED.Process(target=_in_one_thread, args=(work, *arguments))
    process.start()
    process.join()
    return process.exitcode


def _in_one_thread(work: Callable[..., object], *arguments: object) -> None:
    gc.freeze()  # as after the collection of tests
    torch.set_num_threads(1)
    work(*arguments)


def die_in_update(trainer: type[Trainer], update: int) -> None:
    """Let this process end as by `kill -9` in the trainer's step after `update` updates."""
    inner = trainer.training_step

    def step(self: Trainer, *arguments: Any) -> torch.Tensor:
        if self.state.global_step == update:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(self, *arguments)

    trainer.training_step = step  # type: ignore[method-assign]


class Command:
    """`roboalign ARGUMENTS` in a session of its own."""

    def __init__(self, *arguments: str) -> None:
        self._reader, writer = FORKED.Pipe(duplex=False)
        self.process = FORKED.Process(target=_command, args=(writer, arguments))
        self.process.start()
        writer.close()

    def output(self, timeout: float) -> str:
        """Return what was printed, once the command and all that it started have ended. Fails where they do not."""
        said = b""
        try:
            while True:
                assert self._reader.poll(timeout), f"nothing for {timeout:g} s after {said!r}"
                if not (part := os.read(self._reader.fileno(), 1 << 16)):
                    break
                said += part
            self.process.join(timeout)
            assert self.process.exitcode is not None, f"still there after {timeout:g} s: {said!r}"
        finally:
            self.end()
        return said.decode()

    def end(self) -> None:
        """Kill the command and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)


def _command(writer: Connection, arguments: tuple[str, ...]) -> None:
    gc.freeze()
    os.setsid()
    for number in (1, 2):
        os.dup2(writer.fileno(), number)
    writer.close()
    status: Any = 1
    try:
        status = main(list(arguments))
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)
