"""Define which samples a training sees, in which order and in which batches."""

from typing import Any, Literal

from torch.utils.data import Dataset

from roboalign.core.errors import RoboAlignError


class Schedule(Dataset):
    """Items in the order of the whole run. One pass over it is the run, so resuming means skipping.

    `order` has one item index per position. Nothing depends on random state that a kill could lose.
    """

    def __init__(self, items: Any, order: list[int]) -> None:
        self.items, self.order = items, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> Any:
        return self.items[self.order[position]]


def accumulation_of(
    batch: int,
    micro: int,
    world: int,
    unit: Literal["conversations", "prompts", "frames"] = "conversations",
) -> int:
    """Return the micro-batches per update and device for `batch` samples per update over all
    devices.

    Raises RoboAlignError if `batch` is not a multiple of `micro` times `world`.
    """
    if batch % (micro * world):
        raise RoboAlignError(
            f"{batch} {unit} per update cannot be split into micro-batches of {micro} on {world} device(s)",
            where="micro_batch_size" if micro > 1 else "batch size",
            fix=f"choose a batch that is a multiple of {micro * world}.",
        )
    return batch // (micro * world)


def micro_batch_of(batch: int, at_most: int, world: int) -> int:
    """Return the largest micro-batch up to `at_most` that splits `batch` conversations evenly over
    `world` devices.

    Raises RoboAlignError if `batch` is not a multiple of `world`.
    """
    each = accumulation_of(batch, 1, world)
    return max(size for size in range(1, min(at_most, each) + 1) if each % size == 0)
