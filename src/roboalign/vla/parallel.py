"""The head's loss in one process or in several, each with its part of every batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from roboalign.core.distributed import rank, world_size
from roboalign.core.errors import RoboAlignError
from roboalign.vla.head import FlowMatchingHead


class HeadLoss(nn.Module):
    """`FlowMatchingHead.loss` as a module's forward, which is what torch compiles and makes parallel."""

    def __init__(self, head: FlowMatchingHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, *data: Any, **drawn: Any) -> Tensor:
        return self.head.loss(*data, **drawn)


def loss_module(head: FlowMatchingHead, *, compiled: bool) -> nn.Module:
    """The loss of `head`; where processes train together, its gradients are means over them, and all start alike."""
    loss = HeadLoss(head)
    if compiled:
        loss.compile()
    if world_size() == 1:
        return loss
    device = next(head.parameters()).device
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(loss, device_ids=devices, gradient_as_bucket_view=True)


def own_part(batch_size: int) -> slice:
    """Which samples of a batch this process has; parts differ by one sample where they must.

    Raises RoboAlignError where there is not one for each process.
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
    """Element by element, in double precision."""
    if world_size() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()
