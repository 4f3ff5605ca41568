"""What this process may use of the machine: processor cores and a GPU."""

import os

import torch

from roboalign.core.errors import RoboAlignError


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_of(name: str) -> torch.device:
    """The device of this process for `auto`, `cpu` or `cuda`: of the processes that torchrun starts, each has its own.

    Raises RoboAlignError where a GPU is asked for and there is none for it.
    """
    place = int(os.environ.get("LOCAL_RANK", 0))
    count = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if place >= count:
        raise RoboAlignError(
            f"process {place} of this machine has no GPU: {count} found",
            where="hardware.device",
            fix="start as many processes as there are GPUs, or set hardware.device: cpu",
        )
    return torch.device("cuda", place)


def side_by_side(asked: int) -> int:
    """How many stages run at the same time: as asked, or for 0 one a core, or one where there is a GPU."""
    if asked:
        return asked
    return 1 if torch.cuda.is_available() else cores()
