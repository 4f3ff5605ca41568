"""The decisions of one update as tensors: what the head read and drew, and what was executed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load as from_bytes
from torch import Tensor

from roboalign.sim.rollout import EpisodeResult
from roboalign.vla.head import Vlm, VlmMask


@dataclass(frozen=True)
class Trajectory:
    """One rollout that did not crash. The rollout ends with success, so no decision follows it."""

    looks: list[dict[str, Tensor]]
    """What `Explorer` kept of each decision."""
    executed: list[int]
    """Actions of each decision's chunk that were executed."""
    success: bool

    @classmethod
    def of(cls, result: EpisodeResult) -> "Trajectory":
        """Read a finished rollout. What was executed of a chunk ends where the next decision begins:
        an instruction that changes drops the rest."""
        looks = [from_bytes(one) for one in result.kept]
        times = [int(look["at"]) for look in looks] + [result.steps]
        executed = [end - start for start, end in pairwise(times)]
        assert all(count > 0 for count in executed), "a decision was made that did nothing"
        return cls(looks, executed, result.success)


@dataclass(frozen=True)
class Decisions:
    """N decisions, those of one trajectory adjacent and in order, on one device."""

    trajectories: Sequence[Trajectory]
    device: torch.device

    @cached_property
    def looks(self) -> list[dict[str, Tensor]]:
        """What was kept of each."""
        return [look for one in self.trajectories for look in one.looks]

    def __len__(self) -> int:
        return len(self.looks)

    def stack(self, name: str) -> Tensor:
        """Return what was kept under this name, [N, ...]."""
        return torch.stack([look[name] for look in self.looks]).to(self.device)

    @cached_property
    def before(self) -> Float[Tensor, "decisions horizon action"]:
        """The chunks before the drawn steps."""
        return self.stack("before")

    @cached_property
    def after(self) -> Float[Tensor, "decisions horizon action"]:
        """The chunks after them."""
        return self.stack("after")

    @cached_property
    def step(self) -> Int[Tensor, " decisions"]:
        """The numbers of the drawn steps."""
        return self.stack("step")

    @cached_property
    def state(self) -> Float[Tensor, "decisions state"] | None:
        """The normalized proprioception, None if the head reads none."""
        return self.stack("state") if "state" in self.looks[0] else None

    @cached_property
    def executed(self) -> Bool[Tensor, "decisions horizon"]:
        """Which actions were executed."""
        counts = [count for one in self.trajectories for count in one.executed]
        horizon = torch.arange(self.before.shape[1], device=self.device)
        return horizon[None] < torch.tensor(counts, device=self.device)[:, None]

    @cached_property
    def sampled_logprob(self) -> Float[Tensor, " decisions"]:
        """The log-density of the executed actions as the simulators' side computed it."""
        return (self.stack("logprob") * self.executed).sum(dim=1)

    def hidden(self, rows: Sequence[int]) -> tuple[Vlm, VlmMask]:
        """Return the hidden states of some decisions, padded, and the mask of real tokens."""
        found = [self.looks[row]["states"] for row in rows]
        states = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        lengths = torch.tensor([len(one) for one in found])
        mask = torch.arange(states.shape[1])[None] < lengths[:, None]
        return states.to(self.device).float(), mask.to(self.device)

    def slices(self) -> Iterator[slice]:
        """Yield the rows of each trajectory."""
        start = 0
        for one in self.trajectories:
            yield slice(start, start + len(one.looks))
            start += len(one.looks)

    def features(self) -> Float[Tensor, "decisions features"]:
        """Return what the critic reads: the mean hidden state, and the proprioception."""
        means = torch.stack([look["states"].float().mean(dim=0) for look in self.looks])
        means = means.to(self.device)
        return means if self.state is None else torch.cat([means, self.state], dim=1)
