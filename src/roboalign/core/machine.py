"""Determine what this process may use of the machine: processor cores and a GPU."""

import os

import torch

from roboalign.core.errors import RoboAlignError


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_of(name: str) -> torch.device:
    """Return the device of this process for `auto`, `cpu` or `cuda`.

    Each process that torchrun starts has its own. Raises RoboAlignError if a GPU is requested and
    none is available to it.
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
    """Return how many stages run at once: `asked`, or for 0 one per core, or one with a GPU."""
    if asked:
        return asked
    return 1 if torch.cuda.is_available() else cores()
