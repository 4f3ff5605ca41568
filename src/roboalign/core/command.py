"""Start and end a command: one message per fault, a quiet exit after a signal or a closed pipe."""

import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any

from roboalign.core.errors import RoboAlignError, format_error
from roboalign.core.files import FREE_SPACE, as_message, no_room

CLOSED_PIPE = 141
"""Exit status after the reader of the output has closed it, as for a program ended by SIGPIPE."""
_PATIENCE = 4.0
"""Seconds a stopped command has to clean up before it is ended anyway."""
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONWARNINGS": "ignore",
}
"""Settings that hide other libraries' progress bars and warnings, and keep waiting threads idle.

Spinning threads starve the processes that share the cores. A variable that the user has already set
is kept. Spawned processes inherit these settings.
"""


_said = threading.Event()
"""Set once the message of a stopped command is printed."""


class _CommandStopped(KeyboardInterrupt):
    """The user or the job scheduler asked this command to end: SIGINT, SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_status(work: Callable[[], int]) -> int:
    """Run `work` and return the exit status of the command.

    The status is what `work` returns, 2 after a fault in the input, 128 + the signal when stopped,
    and 141 when nobody reads the output any more. A bug in the program is not caught; only that
    prints a traceback.
    """
    be_quiet()
    try:
        with _stopped_by_signals():
            status = work()
            sys.stdout.flush()
            return status
    except RoboAlignError as error:
        return _fail(error)
    except BrokenPipeError:
        if not (_reader_gone(sys.stdout) or _reader_gone(sys.stderr)):
            raise
        _silence()
        return CLOSED_PIPE
    except OSError as error:
        return _fail(as_message(error))
    except KeyboardInterrupt as stop:
        _said.set()
        _say_stopped()
        return 128 + (stop.number if isinstance(stop, _CommandStopped) else signal.SIGINT)
    except Exception as error:  # other libraries' errors for a full disk are not OSError
        if not (reason := no_room(error)):
            raise
        return _fail(RoboAlignError(f"a file cannot be written ({reason})", fix=FREE_SPACE))


def be_quiet() -> None:
    """Switch off other libraries' progress bars and warnings, here and in child processes."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if os.environ["PYTHONWARNINGS"] == "ignore" and not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise `_CommandStopped` on the first SIGINT, SIGTERM or SIGHUP.

    The process then ends within _PATIENCE seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Keep ignoring a signal that the parent made us ignore (nohup).
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        # After a stop the handlers stay off, so that a second Ctrl-C cannot interrupt the cleanup.
        for number, handler in before.items():
            if signal.getsignal(number) == _stop:
                signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> Any:
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    threading.Thread(target=_end_anyway, args=(number,), daemon=True).start()
    raise _CommandStopped(number)


def _end_anyway(number: int) -> None:
    """Run in a separate thread; if the command ends by itself, this thread ends with it."""
    time.sleep(_PATIENCE)
    if not _said.is_set():
        _say_stopped()
    os._exit(128 + number)


def _say_stopped() -> None:
    """Print the one message of a stopped command; under torchrun only from the first process."""
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        print("stopped; the same command continues from here", file=sys.stderr, flush=True)
    except OSError:
        _silence()


def _fail(error: RoboAlignError) -> int:
    print(format_error(error), file=sys.stderr)
    return 2


def _reader_gone(stream: IO[str]) -> bool:
    """Return whether the other end of this pipe is closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        events = poll.poll(0)
    except (OSError, ValueError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in events)


def _silence() -> None:
    """Discard unwritten output: Python flushes when it ends, and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _reader_gone(stream):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
