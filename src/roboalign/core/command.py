"""How a command begins and ends: one message for each fault, Ctrl-C, SIGTERM and a closed pipe end it quietly."""

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
"""Exit status where the reader of the output has gone, as of a program that SIGPIPE ended."""
_PATIENCE = 4.0
"""Seconds that a stopped command has to put things in order before it ends anyway."""
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
"""Other libraries' bars and warnings are not ours to show; spinning threads starve the processes that share the cores.
Each may be set otherwise by who wants to see them. Processes that are spawned inherit them."""


_said = threading.Event()
"""Set once the line of a stopped command is printed."""


class _CommandStopped(KeyboardInterrupt):
    """The user, or who runs the job, asked this command to end: SIGINT, SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_status(work: Callable[[], int]) -> int:
    """What `work` returns; 2 after a fault of the input, 128 + the signal when stopped, 141 when nobody reads on.

    An error of the program is not caught. Everything but a fault of the program prints no traceback.
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
    except Exception as error:  # other libraries' errors of a full disk are no OSError
        if not (reason := no_room(error)):
            raise
        return _fail(RoboAlignError(f"a file cannot be written ({reason})", fix=FREE_SPACE))


def be_quiet() -> None:
    """Switch other libraries' progress bars and warnings off, in this process and in those that it starts."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if os.environ["PYTHONWARNINGS"] == "ignore" and not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Within, SIGINT, SIGTERM and SIGHUP raise Stopped once; then this process ends within _PATIENCE seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # A signal that the parent made us ignore (nohup) stays ignored.
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        # After a stop the handlers stay off, so that a second Ctrl-C cannot cut the clearing up.
        for number, handler in before.items():
            if signal.getsignal(number) == _stop:
                signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> Any:
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    threading.Thread(target=_end_anyway, args=(number,), daemon=True).start()
    raise _CommandStopped(number)


def _end_anyway(number: int) -> None:
    """Runs in a thread of its own; where the command has ended by itself, this thread has ended with it."""
    time.sleep(_PATIENCE)
    if not _said.is_set():
        _say_stopped()
    os._exit(128 + number)


def _say_stopped() -> None:
    """The one line of a command that was stopped; of several processes under torchrun the first says it."""
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
    """Whether the other end of this pipe is closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        events = poll.poll(0)
    except (OSError, ValueError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in events)


def _silence() -> None:
    """Send what is still unwritten nowhere: Python flushes at its end, and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _reader_gone(stream):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
