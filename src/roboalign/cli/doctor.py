"""`roboalign doctor`: every check of this machine, one line each, with the fix if one fails."""

import argparse
import functools
import importlib.metadata
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from roboalign.core.errors import RoboAlignError, format_fault

if TYPE_CHECKING:
    from roboalign.sim.registry import BenchmarkSpec

MEMORY_NEEDED_GB = 6.0
DISK_NEEDED_GB = 3.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for how much to print and which benchmarks are required."""
    parser.add_argument("--quiet", action="store_true", help="print only what is wrong")
    parser.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="NAME",
        help="fail where this benchmark's packages are missing; may be repeated",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the benchmark that is asked for, such as checkout=PATH; may be repeated",
    )


def main(options: argparse.Namespace) -> int:
    """Run the checks."""
    from roboalign.cli.options import benchmark_settings

    settings = benchmark_settings(options.set)
    return doctor(quiet=options.quiet, benchmarks=options.benchmark, settings=settings)


def doctor(
    *,
    quiet: bool = False,
    benchmarks: Sequence[str] = (),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Run every check and print a line for each (with `quiet`, for each that fails). Return 0 if
    all pass, else 2.

    `benchmarks`: those whose packages must be installed, under `settings` of theirs.
    """
    failed = 0
    for name, check in (CHECKS | benchmark_checks(benchmarks, settings)).items():
        try:
            line, mark = check(), "ok  "
        except RoboAlignError as error:
            line, mark = format_fault(error), "FAIL"
            failed += 1
        if mark == "FAIL" or not quiet:
            print(f"{mark} {name}: {line}", flush=True)
    return 2 if failed else 0


def _python() -> str:
    return sys.version.split()[0]


def _packages() -> str:
    """Check everything that this package requires, without its extras."""
    try:
        lines = importlib.metadata.requires("roboalign") or []
    except importlib.metadata.PackageNotFoundError:
        raise RoboAlignError("roboalign is not installed", fix="make setup") from None
    wanted = [re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line]
    if missing := _missing(wanted):
        raise RoboAlignError(f"missing: {', '.join(missing)}", fix="make setup")
    main = ("torch", "transformers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in main)
    return f"all {len(wanted)} that RoboAlign requires, {versions}"


def _missing(packages: Sequence[str]) -> list[str]:
    """Return those that are not installed."""
    missing = []
    for name in packages:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return missing


def benchmark_checks(
    asked: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Callable[[], str]]:
    """Return a check for each benchmark, or family of them, by its title; those `asked` for must be
    installed.

    A package whose benchmark cannot be loaded, and an unknown name in `asked`, become checks that
    fail.
    """
    from roboalign.sim.registry import benchmark_names, find_benchmark

    checks: dict[str, Callable[[], str]] = {}
    for name in dict.fromkeys((*asked, *benchmark_names())):
        try:
            spec = find_benchmark(name)
        except RoboAlignError as error:
            checks[f"benchmark {name}"] = functools.partial(_fail, error)
        else:
            check = functools.partial(_benchmark, spec, settings if name in asked else None)
            checks.setdefault(f"benchmark {spec.title}", check)
    return checks


def _fail(error: RoboAlignError) -> NoReturn:
    raise error


def _benchmark(spec: "BenchmarkSpec", settings: Mapping[str, Any] | None) -> str:
    """Return the versions of its packages, and what it says about `settings`.

    None means that it was not asked for: then a missing package is no fault.
    """
    missing = _missing(spec.packages)
    if not missing:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in spec.packages]
        lines = [", ".join(versions) or "needs no package"]
        if settings is not None:
            from roboalign.core.config import validated

            values = validated(spec.config, settings, where=f"--set of {spec.name}")
            lines += spec.examine(values)
        return "\n     ".join(lines)
    install = spec.install or f"pip install {' '.join(missing)}"
    if settings is not None:
        raise RoboAlignError(f"missing: {', '.join(missing)}", fix=install)
    return f"not installed (optional: {install})"


def _rendering() -> str:
    try:
        from roboalign.sim.rendering import gl_backend
    except ImportError as error:
        raise RoboAlignError(str(error), fix="make setup") from None
    return f"MuJoCo renders through {gl_backend()}"


def _device() -> str:
    try:
        import torch

        from roboalign.core.machine import cores
    except ImportError as error:
        raise RoboAlignError(f"PyTorch cannot be loaded: {error}", fix="make setup") from None
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
    from roboalign.mllm.shipped import builtin_folder

    return f"the shipped base model is in {builtin_folder()}"


CHECKS: dict[str, Callable[[], str]] = {
    "python": _python,
    "packages": _packages,
    "rendering": _rendering,
    "device": _device,
    "memory": _memory,
    "disk": _disk,
    "base model": _base_model,
}
