"""Several processes on one training, as torchrun starts them: who leads, what the others do, one message at the end.

Rank 0 leads. It alone does what is not training, and writes the run's folder; the others wait for its word, which comes
through the store that torchrun keeps beside the process group: unlike a collective, that wait has no time limit.
"""

import itertools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from roboalign.core.errors import RoboAlignError

_PLACE = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
)
Item = TypeVar("Item")
_Result = TypeVar("_Result")
_LOOK_EVERY = 0.2  # seconds between two looks for the leader's word
SAYS_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|was)|broken pipe|timed out", re.IGNORECASE
)


class _Terminated(BaseException):
    """SIGTERM: the launcher ends this process because another one has ended, or the job was cancelled."""


@dataclass(frozen=True)
class Team:
    """This process's place among those of one training."""

    rank: int
    size: int
    local_size: int
    """Processes on this machine."""
    store: dist.Store

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def form_group(self, device: torch.device, timeout: float) -> None:
        """Make the process group of the trainings: nccl on GPUs, gloo on CPUs.

        A rank that lets the others wait for more than `timeout` seconds in a collective is held to be dead.
        """
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=timeout),
        )

    def tell(self, number: int, stage: str) -> None:
        """The leader's word number `number`: take part in this stage; "" ends the team's work."""
        self.store.set(f"word/{number}", stage)

    def words(self) -> Iterator[str]:
        """What the leader tells the others to take part in, until it has nothing more."""
        for number in itertools.count():
            while not self.store.check([f"word/{number}"]):
                if self.store.check(["failed"]):
                    raise SystemExit(2)
                time.sleep(_LOOK_EVERY)
            if not (stage := self.store.get(f"word/{number}").decode()):
                return
            yield stage

    def part(self) -> None:
        """Leave the process group, all at the same time."""
        dist.barrier()
        dist.destroy_process_group()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """However many processes fail within, one error leaves: the first; the others exit with status 2, silently.

        A process that another one has left alone fails too, with whatever its library says; where no other has told
        why, it raises RoboAlignError instead.
        """
        before = signal.signal(signal.SIGTERM, _stop)
        try:
            yield
        except SystemExit:
            raise
        except BaseException as error:
            if not self._first_to_fail():
                raise SystemExit(2) from None
            if not _lost(error):
                raise
            detail = " ".join(str(error).split())[:160] or "SIGTERM"
            raise RoboAlignError(
                f"another process of this training has ended or no longer answers ({detail})",
                where=f"rank {self.rank} of {self.size}",
                fix="look for the rank that the launcher names below, or that hangs (out of memory?); the same command "
                "goes on from the last checkpoint, on any number of processes.",
            ) from None
        finally:
            signal.signal(signal.SIGTERM, before)

    def _first_to_fail(self) -> bool:
        try:
            return int(self.store.compare_set("failed", "", str(self.rank))) == self.rank
        except (RuntimeError, ValueError):  # the store has gone with the process that kept it
            return True


def join_team() -> Team | None:
    """This process's team where torchrun started it as one of several; None where it is alone."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 or "RANK" not in os.environ:
        return None
    store, rank, _ = next(iter(dist.rendezvous("env://")))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return Team(rank, size, local_size, dist.PrefixStore(f"roboalign/{attempt}", store))


def world_size() -> int:
    """Processes that train together: those of the process group, or this one alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among those that train together, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Whether this process is the first of those that train together."""
    return rank() == 0


def wait_for_all() -> None:
    """Go on once every process that trains with this one has come here; at once where it is alone."""
    if dist.is_initialized():
        dist.barrier()


def each_by_one(work: Callable[[Item], _Result], items: Sequence[Item]) -> list[_Result]:
    """`work(item)` of every item, in their order; each is done by one of the processes that train together, in turn.

    Results go to all processes as pickles: they are small. All processes come here, with the same items.
    """
    mine = [work(item) for item in items[rank() :: world_size()]]
    if not dist.is_initialized():
        return mine
    shares: list[Any] = [None] * world_size()
    dist.all_gather_object(shares, mine)
    return [shares[number % world_size()][number // world_size()] for number in range(len(items))]


def leave_team() -> None:
    """Make this process, which a rank has spawned for a stage of its own, one that trains alone."""
    for name in _PLACE:
        os.environ.pop(name, None)


def _stop(number: int, frame: FrameType | None) -> Any:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


def _lost(error: BaseException) -> bool:
    """Whether this is how a collective or the store fails when another process has gone."""
    told = isinstance(error, RuntimeError) and SAYS_LOST.search(str(error)) is not None
    return told or isinstance(error, (_Terminated, dist.DistError))
