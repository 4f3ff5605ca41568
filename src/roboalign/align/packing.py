"""Split updates into micro-batches by a budget of tokens instead of a count of conversations.

One long conversation then takes a micro-batch of its own, so that it cannot run a GPU out of memory,
and short ones share one.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from torch.utils.data import Dataset

from roboalign.align.dataset import Conversations
from roboalign.align.schedule import accumulation_of
from roboalign.conversations.conversation import Conversation
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import Encoded

MicroBatch = list[int]
"""The conversations of one micro-batch."""


class Packed(Dataset):
    """What each device trains on in each update, in the order of the whole run.

    Item `update * devices + device` holds the encoded conversations of the device's micro-batches.
    """

    def __init__(self, items: Conversations, shares: Sequence[Sequence[MicroBatch]]) -> None:
        self.items, self.shares = items, shares

    def __len__(self) -> int:
        return len(self.shares)

    def __getitem__(self, position: int) -> list[list[Encoded]]:
        return [[self.items[number] for number in batch] for batch in self.shares[position]]


def pack_updates(
    order: Sequence[int],
    counts: Int[np.ndarray, " conversations"],
    batch: int,
    budget: int,
    devices: int,
) -> list[list[MicroBatch]]:
    """Return the micro-batches of each device in each update, update by update.

    `order` lists the conversations of all updates, `batch` an update; `counts` are their tokens.
    """
    shares: list[list[MicroBatch]] = []
    for start in range(0, len(order), batch):
        shares += pack_update(order[start : start + batch], counts, budget, devices)
    return shares


def pack_update(
    update: Sequence[int],
    counts: Int[np.ndarray, " conversations"],
    budget: int,
    devices: int,
) -> list[list[MicroBatch]]:
    """Return the micro-batches of each device for one update.

    A micro-batch of n conversations is padded to the longest, L tokens, and n L is at most `budget`.
    Their number is the smallest that divides evenly over `devices`: every device makes as many
    passes, as a sharded model needs. The update must have a multiple of `devices` conversations, each of
    at most `budget` tokens.
    """
    longest_first = sorted(update, key=lambda number: -int(counts[number]))
    batches: list[MicroBatch] = []
    for number in longest_first:
        if batches and (len(batches[-1]) + 1) * counts[batches[-1][0]] <= budget:
            batches[-1].append(number)
        else:
            batches.append([number])
    while len(batches) % devices:
        largest = max(batches, key=len)
        half = len(largest) // 2
        batches.append(largest[half:])
        del largest[half:]
    # Longest first, there and back over the devices, so that their work is about the same.
    batches.sort(key=lambda one: -len(one) * int(counts[one[0]]))
    shares: list[list[MicroBatch]] = [[] for _ in range(devices)]
    for place, one in enumerate(batches):
        turn, device = divmod(place, devices)
        shares[device if turn % 2 == 0 else devices - 1 - device].append(one)
    return shares


def check_budget(
    conversations: Sequence[Conversation],
    counts: Int[np.ndarray, " conversations"],
    order: Sequence[int],
    budget: int,
    batch: int,
    devices: int,
    label: str,
) -> None:
    """Raise RoboAlignError if a conversation of `order` alone is over the budget, or the update
    does not split over the devices."""
    shown = np.unique(np.asarray(order))
    longest = int(shown[np.argmax(counts[shown])])
    most = int(counts[longest])
    if most > budget:
        over = int((counts[shown] > budget).sum())
        raise RoboAlignError(
            f"{over} of {len(shown)} conversations have more than {budget} tokens, the longest, "
            f"{conversations[longest].id}, has {most}",
            where=f"{label}.tokens_per_micro_batch",
            fix=f"raise it to {most}, or leave them out with {label}.max_tokens={budget}",
        )
    accumulation_of(batch, 1, devices)
