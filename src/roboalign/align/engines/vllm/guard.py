"""Runs a command as long as the process that asked for it lives: `python guard.py PID FOLDER COMMAND ...`. Linux.

The command is the leader of a process group of its own. The group is ended, by SIGTERM and then by SIGKILL, as soon as
process PID has ended, however it did; as soon as this one gets SIGTERM; and when the command itself has ended. This one
ends when all of them have: their memory is then free, and FOLDER, with the command's socket, is removed. It is a
program of its own, without imports of the package, since what is killed cannot clean up after itself.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time

GRACE = 15.0  # seconds between SIGTERM and SIGKILL, and those in which what was killed must be gone
_POLL = 0.1
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
NOT_STARTED = 127  # a shell's status for a command that there is not


def end_with(parent: int, number: int) -> None:
    """Have the kernel send this process the signal `number` when the thread of `parent` that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), number)


def main(parent: int, command: list[str]) -> int:
    """Run `command`; its exit status, 128 + n where signal n ended it."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    end_with(parent, signal.SIGTERM)
    ctypes.CDLL(None).prctl(
        PR_SET_CHILD_SUBREAPER, 1
    )  # what the command leaves behind is then ours to wait for
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
        )  # it is not waited for yet, so the number is still its own
    status, last = child.wait(), time.monotonic() + GRACE
    while left() and time.monotonic() < last:
        time.sleep(_POLL)
    return status if status >= 0 else 128 - status


def ended(pid: int) -> bool:
    """Whether the child has ended; it is left to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def left() -> bool:
    """Whether any descendant is there still; those that have ended are waited for."""
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
