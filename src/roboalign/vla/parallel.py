"""Compute the head's loss in one process or in several, each with its part of every batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from roboalign.core.distributed import rank, world_size
from roboalign.core.errors import RoboAlignError
from roboalign.vla.head import FlowMatchingHead


class HeadLoss(nn.Module):
    """`FlowMatchingHead.loss` as the forward of a module, which torch can compile and
    parallelize."""

    def __init__(self, head: FlowMatchingHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, *data: Any, **drawn: Any) -> Tensor:
        return self.head.loss(*data, **drawn)


def loss_module(head: FlowMatchingHead, *, compiled: bool) -> nn.Module:
    """Return the loss of `head`. With several processes, all start from the same weights and
    average their gradients."""
    loss = HeadLoss(head)
    if compiled:
        loss.compile()
    if world_size() == 1:
        return loss
    device = next(head.parameters()).device
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(loss, device_ids=devices, gradient_as_bucket_view=True)


def own_part(batch_size: int) -> slice:
    """Return the samples of a batch that belong to this process; parts differ by at most one
    sample.

    Raises RoboAlignError if there is less than one sample per process.
    """
    size, here = world_size(), rank()
    if batch_size < size:
        raise RoboAlignError(
            f"a batch of {batch_size} cannot be shared by {size} processes",
            where="head_training.batch_size",
            fix=f"give {size} or more, or start fewer processes",
        )
    return slice(batch_size * here // size, batch_size * (here + 1) // size)


def sum_over_processes(values: list[float]) -> list[float]:
    """Return the sum over all processes of each value, in float64."""
    if world_size() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()
