"""Peak memory of a command and all processes that it starts: the sum of their proportional set sizes (Linux).

    python benchmarks/memory.py [--every 3] make demo

Prints the peak, when it was, and its largest processes; ends with the command's exit status. A peak between two polls
is missed.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two polls")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    began, peak, when, parts = time.monotonic(), 0, 0.0, []
    process = subprocess.Popen(options.command)
    while process.poll() is None:
        sizes = [size for size in map(proportional_set_size, family(process.pid)) if size]
        if sum(sizes) > peak:
            peak, when, parts = (
                sum(sizes),
                time.monotonic() - began,
                sorted(sizes, reverse=True)[:6],
            )
        time.sleep(options.every)
    listed = ", ".join(f"{size / 2**20:.2f}" for size in parts)
    print(
        f"peak {peak / 2**20:.2f} GiB at {when:.0f} s of {time.monotonic() - began:.0f}; largest processes: {listed}"
    )
    return process.returncode


def family(pid: int) -> list[int]:
    """The process and all below it that are still there."""
    found = [pid]
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += family(int(child))
    except OSError:
        pass
    return found


def proportional_set_size(pid: int) -> int:
    """KiB, shared pages divided among those that share them; 0 where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    sys.exit(main())
