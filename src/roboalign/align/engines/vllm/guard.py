"""Run a command only while the process that requested it lives: `python guard.py PID FOLDER COMMAND
...`. Linux.

The command leads its own process group. The group is ended, by SIGTERM and then by SIGKILL, when
process PID has ended for any reason, when this process gets SIGTERM, or when the command itself has
ended. This process ends after all of them, when their memory is free, and removes FOLDER with the
command's socket. It is a separate program without imports of the package, because a killed process
cannot clean up after itself.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time

# seconds between SIGTERM and SIGKILL, and seconds within which killed processes must be gone
GRACE = 15.0
_POLL = 0.1
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
NOT_STARTED = 127  # a shell's exit status for a command that does not exist


def end_with(parent: int, number: int) -> None:
    """Make the kernel send this process the signal `number` when the thread of `parent` that
    started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # the parent has already ended
        os.kill(os.getpid(), number)


def main(parent: int, command: list[str]) -> int:
    """Run `command` and return its exit status, or 128 + n if signal n ended it."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    end_with(parent, signal.SIGTERM)
    ctypes.CDLL(None).prctl(
        PR_SET_CHILD_SUBREAPER, 1
    )  # this process then also waits for processes that the command leaves behind
    here = os.getpid()
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: end_with(here, signal.SIGTERM),
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error}", file=sys.stderr, flush=True)
        return NOT_STARTED
    while not told and not ended(child.pid):
        time.sleep(_POLL)
    last = time.monotonic() + GRACE
    if told:
        child.terminate()
    while not ended(child.pid) and time.monotonic() < last:
        time.sleep(_POLL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(
            child.pid, signal.SIGKILL
        )  # it has not been waited for yet, so its pid has not been reused
    status, last = child.wait(), time.monotonic() + GRACE
    while left() and time.monotonic() < last:
        time.sleep(_POLL)
    return status if status >= 0 else 128 - status


def ended(pid: int) -> bool:
    """Return whether the child has ended, without waiting for it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def left() -> bool:
    """Return whether any descendant is still there, after waiting for those that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    result = main(int(sys.argv[1]), sys.argv[3:])
    shutil.rmtree(sys.argv[2], ignore_errors=True)
    sys.exit(result)
