"""Coordinate the processes that torchrun starts for one training.

Rank 0 leads. It alone does the work that is not training, and writes the run's folder. The others
wait for its instructions, which come through the store that torchrun keeps next to the process
group. Unlike a collective, that wait has no time limit. If processes fail, only one message is
printed.
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
_LOOK_EVERY = 0.2  # seconds between two checks for the leader's instruction
SAYS_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|was)|broken pipe|timed out", re.IGNORECASE
)


class _Terminated(BaseException):
    """SIGTERM: the launcher ends this process; another one ended or the job was cancelled."""


@dataclass(frozen=True)
class Team:
    """This process's place among the processes of one training."""

    rank: int
    size: int
    local_size: int
    """Number of processes on this machine."""
    store: dist.Store

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def form_group(self, device: torch.device, timeout: float) -> None:
        """Create the process group of the trainings: nccl on GPUs, gloo on CPUs.

        A rank that keeps the others waiting in a collective for more than `timeout` seconds counts
        as dead.
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
        """Tell the others to take part in this stage; "" ends the team's work.

        This is the leader's instruction number `number`.
        """
        self.store.set(f"word/{number}", stage)

    def words(self) -> Iterator[str]:
        """Yield the stages that the leader asks the others to take part in."""
        for number in itertools.count():
            while not self.store.check([f"word/{number}"]):
                if self.store.check(["failed"]):
                    raise SystemExit(2)
                time.sleep(_LOOK_EVERY)
            if not (stage := self.store.get(f"word/{number}").decode()):
                return
            yield stage

    def part(self) -> None:
        """Leave the process group, all processes at the same time."""
        dist.barrier()
        dist.destroy_process_group()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Raise only the first error, however many processes fail; the others exit with status 2.

        The others exit silently. A process fails too when another one disappears, with whatever
        error its library raises. If no other process has reported the cause, this one raises
        RoboAlignError instead.
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
                "resumes from the last checkpoint, on any number of processes.",
            ) from None
        finally:
            signal.signal(signal.SIGTERM, before)

    def _first_to_fail(self) -> bool:
        try:
            return int(self.store.compare_set("failed", "", str(self.rank))) == self.rank
        except (RuntimeError, ValueError):  # the process that kept the store has ended
            return True


def join_team() -> Team | None:
    """Return this process's team if torchrun started several processes; None if it runs alone."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 or "RANK" not in os.environ:
        return None
    store, rank, _ = next(iter(dist.rendezvous("env://")))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return Team(rank, size, local_size, dist.PrefixStore(f"roboalign/{attempt}", store))


def world_size() -> int:
    """Return how many processes train together: those of the process group, or 1."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among those that train together; 0 if it runs alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Return whether this process is the first of those that train together."""
    return rank() == 0


def wait_for_all() -> None:
    """Wait until every process of this training has called this; return at once if alone."""
    if dist.is_initialized():
        dist.barrier()


def each_by_one(work: Callable[[Item], _Result], items: Sequence[Item]) -> list[_Result]:
    """Return `work(item)` for every item, in order; processes that train together share the items.

    Results are pickled and sent to all processes, so keep them small. All processes must call this
    with the same items.
    """
    mine = [work(item) for item in items[rank() :: world_size()]]
    if not dist.is_initialized():
        return mine
    shares: list[Any] = [None] * world_size()
    dist.all_gather_object(shares, mine)
    return [shares[number % world_size()][number // world_size()] for number in range(len(items))]


def leave_team() -> None:
    """Make this process, spawned by a rank for a stage of its own, train alone."""
    for name in _PLACE:
        os.environ.pop(name, None)


def _stop(number: int, frame: FrameType | None) -> Any:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


def _lost(error: BaseException) -> bool:
    """Return whether a collective or the store fails this way because another process has ended."""
    told = isinstance(error, RuntimeError) and SAYS_LOST.search(str(error)) is not None
    return told or isinstance(error, (_Terminated, dist.DistError))
