"""What the parts of `scale.py` measure with: settings, rows, time, memory and the matrix rate."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from scale_model import (
    Shape,
)

UNCOUNTED = 2  # products before those that count
NEVER = 10**9


@dataclass(frozen=True)
class Setting:
    """What a measurement runs on."""

    shape: Shape
    device: torch.device
    rate: float
    """Matrix products of the device, operations a second, in the type that the part computes in."""
    steps: int
    """Measured steps, rounds or calls."""
    compile: bool
    """Whether compiled code is measured beside the eager."""
    workers: int
    warm: int = 2
    """Steps, rounds or calls before those that count."""

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of weights that are not trained in float32."""
        return torch.bfloat16 if self.on_gpu else torch.float32


@dataclass
class Row:
    """One line of the result: values in `unit`, of which the median is told."""

    part: str
    what: str
    unit: str
    values: list[float]
    peak: int | None
    """Bytes on the GPU at the most; None without one."""
    note: str = ""
    more: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "median": statistics.median(self.values) if self.values else None}


def wait(device: torch.device) -> None:
    """Until what was started on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def begin(device: torch.device) -> None:
    """Give back what the last measurement left, and start counting memory again."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_of(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def matrix_rate(device: torch.device, dtype: torch.dtype) -> tuple[float, dict[int, float]]:
    """Operations a second of products of square matrices: the best, and the median of 5 of each size."""
    sizes, found = ((4096, 8192, 16384) if device.type == "cuda" else (512, 1024)), {}
    for size in sizes:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        times = [timed(lambda a=a, b=b: a @ b, device) for _ in range(UNCOUNTED + 5)][UNCOUNTED:]
        found[size] = 2 * size**3 / statistics.median(times)
    return max(found.values()), found


def fits(setting: Setting, most: int, run: Callable[[int], list[Row]]) -> list[Row]:
    """The rows of `run(micro-batch)` for the largest power of two up to `most` that fits into memory."""
    micro = 1 << (most.bit_length() - 1)
    while True:
        try:
            return run(micro)
        except torch.OutOfMemoryError:
            if micro == 1:
                raise
        micro //= 2
        begin(setting.device)


def attempt(part: str, what: str, setting: Setting, run: Callable[[], list[Row]]) -> Iterator[Row]:
    """The rows of `run`; where it runs out of memory, a row that says so."""
    begin(setting.device)
    failed = False
    try:
        yield from run()
    except torch.OutOfMemoryError:
        failed = True
    # Behind the handler, whose traceback holds what was allocated.
    if failed:
        yield Row(part, what, "", [], peak_of(setting.device), "out of memory")
    begin(setting.device)
