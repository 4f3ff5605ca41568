"""One update of the head, and of the critic, from the decisions of some rollouts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from roboalign.align.grpo.loss import clipped_loss_tokens
from roboalign.core.errors import RoboAlignError
from roboalign.online.config import OnlineConfig
from roboalign.online.decisions import Decisions
from roboalign.online.flow_sde import gaussian_kl, log_density, sde_mean, sde_std, velocity_of
from roboalign.online.groups import Groups
from roboalign.online.loss import (
    CLIP_HIGH,
    CLIP_LOW,
    DUAL_CLIP,
    gae,
    leave_one_out,
    normalized,
    value_loss,
)
from roboalign.online.sums import Means
from roboalign.vla.head import FlowMatchingHead
from roboalign.vla.head_policy import HeadPolicy

MICRO = 64
"""Decisions of one forward pass; the gradients of a batch are added up."""
CRITIC_RATE = 20.0
"""Learning rate of the critic, as a multiple of the head's."""
CRITIC_WIDTH = 256
MOST_DRIFT = 0.05
"""Nats a decision by which the log-densities of simulators and update may differ."""


class Critic(nn.Module):
    """Value of a decision from the hidden states that the head reads; it sends no gradient there."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, CRITIC_WIDTH),
            nn.SiLU(),
            nn.Linear(CRITIC_WIDTH, 1),
        )

    def forward(self, features: Float[Tensor, "decisions features"]) -> Float[Tensor, " decisions"]:
        return self.layers(features)[:, 0]


@dataclass
class HeadLearner:
    """The flow head of a policy, whose MLLM is frozen, and with PPO its critic."""

    policy: HeadPolicy
    config: OnlineConfig
    critic: Critic | None
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, policy: HeadPolicy, config: OnlineConfig, seed: int = 0) -> "HeadLearner":
        """Return a learner for this policy; `seed` fixes the first weights of PPO's critic."""
        head, rate = policy.head, config.learning_rate
        groups = [{"params": list(head.parameters()), "lr": rate}]
        critic = None
        if config.algorithm == "ppo":
            torch.manual_seed(seed)
            state = head.shape.state_dim if head.config.proprioception else 0
            critic = Critic(head.shape.vlm_width + state).to(next(head.parameters()).device)
            groups.append({"params": list(critic.parameters()), "lr": CRITIC_RATE * rate})
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=1e-5)
        return cls(policy, config, critic, optimizer)

    @property
    def head(self) -> FlowMatchingHead:
        return self.policy.head

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    def judge(self, rewards: Float[Tensor, " rollouts"]) -> Float[Tensor, " rollouts"]:
        """Return `leave_one_out` of a group's rewards."""
        return leave_one_out(rewards)

    def weights(self) -> dict[str, Tensor]:
        """Return the head's weights."""
        return self.head.state_dict()

    def parts(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        parts = {"head": self.head, "optimizer": self.optimizer}
        return parts if self.critic is None else parts | {"critic": self.critic}

    def settings(self) -> list[Any]:
        """Return the Euler steps of the flow."""
        return [self.policy.sampling_steps]

    def learn(self, groups: Groups, generator: torch.Generator) -> dict[str, float]:
        """Return what `improve` measured."""
        advantages = groups.of_decisions() if self.critic is None else None
        decisions = Decisions(groups.trajectories, self.policy.mllm.device)
        return improve(
            self,
            decisions,
            advantages,
            self.config,
            steps=self.policy.sampling_steps,
            generator=generator,
        )

    def save(self, folder: Path) -> None:
        """Write the policy; its MLLM is the same as before."""
        self.policy.save(folder)


@dataclass(frozen=True)
class _Before:
    """What the policy says of each decision before the update."""

    logprob: Float[Tensor, " decisions"]
    mean: Float[Tensor, "decisions horizon action"]


def improve(
    learner: HeadLearner,
    decisions: Decisions,
    advantages: Float[Tensor, " decisions"] | None,
    config: OnlineConfig,
    *,
    steps: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """Update the head, and return what was measured. Dropout is off.

    `advantages` is None for PPO, whose critic gives them. `steps` are those of the flow. Raises
    RoboAlignError if a loss or gradient is not finite, or if the rollouts were not this policy's.
    """
    learner.head.eval()
    batches = torch.randperm(len(decisions), generator=generator).split(config.batch_size)
    before = _before(learner.head, decisions, batches, config, steps)
    drift = (before.logprob - decisions.sampled_logprob).abs().mean().item()
    if not drift <= MOST_DRIFT:
        raise RoboAlignError(
            f"the rollouts' log-densities differ by {drift:.3g} nats from those of the policy that "
            "learns from them",
            where="online",
            fix="report it: rollouts and updates must use the same weights and hidden states",
        )
    judged = _Judged.of(learner.critic, decisions, advantages)
    sums = Means()
    for _ in range(config.epochs):
        for batch in batches:
            _step(learner, decisions, batch, before, judged, config, steps, sums)
    return {"decisions": len(decisions), "drift": drift, **sums.take()}


@dataclass(frozen=True)
class _Judged:
    """How good each decision was, and what the critic learns."""

    advantages: Float[Tensor, " decisions"]
    features: Float[Tensor, "decisions features"] | None = None
    values: Float[Tensor, " decisions"] | None = None
    targets: Float[Tensor, " decisions"] | None = None

    @classmethod
    def of(
        cls,
        critic: Critic | None,
        decisions: Decisions,
        advantages: Float[Tensor, " decisions"] | None,
    ) -> "_Judged":
        if critic is None:
            assert advantages is not None, "without a critic, advantages are given"
            return cls(advantages.to(decisions.device))
        features = decisions.features()
        with torch.no_grad():
            values = critic(features)
        found = []
        for rows, one in zip(decisions.slices(), decisions.trajectories, strict=True):
            rewards = torch.zeros_like(values[rows])
            rewards[-1] = float(one.success)
            found.append(gae(rewards, values[rows]))
        estimated = torch.cat(found)
        return cls(normalized(estimated), features, values, estimated + values)


def densities(
    head: FlowMatchingHead,
    decisions: Decisions,
    rows: Sequence[int],
    config: OnlineConfig,
    steps: int,
) -> tuple[
    Float[Tensor, " rows"],
    Float[Tensor, "rows horizon action"],
    Float[Tensor, "rows 1 1"],
]:
    """Return the log-density of some decisions' executed actions, and the mean and deviation of
    their drawn steps."""
    states, mask = decisions.hidden(rows)
    step, before = decisions.step[rows], decisions.before[rows]
    state = None if decisions.state is None else decisions.state[rows]
    velocity = velocity_of(head, states, mask, state)(before, step / steps).float()
    mean = sde_mean(before, velocity, step, steps, config.noise)
    std = sde_std(step, steps, config.noise)
    each = log_density(decisions.after[rows], mean, std)
    return (each * decisions.executed[rows]).sum(dim=1), mean, std


def _before(
    head: FlowMatchingHead,
    decisions: Decisions,
    batches: Sequence[Tensor],
    config: OnlineConfig,
    steps: int,
) -> _Before:
    """Compute in the same parts as the updates do, so that the first ratios are exactly 1."""
    logprob = torch.zeros(len(decisions), device=decisions.device)
    mean = torch.zeros_like(decisions.before)
    for rows in (part.tolist() for batch in batches for part in batch.split(MICRO)):
        found, middle, _ = densities(head, decisions, rows, config, steps)
        logprob[rows], mean[rows] = found.detach(), middle.detach()
    return _Before(logprob, mean)


def _step(
    learner: HeadLearner,
    decisions: Decisions,
    batch: Tensor,
    before: _Before,
    judged: _Judged,
    config: OnlineConfig,
    steps: int,
    sums: Means,
) -> None:
    """Perform one optimizer step on the decisions of a batch."""
    for part in batch.split(MICRO):
        rows, share = part.tolist(), len(part) / len(batch)
        logprob, mean, std = densities(learner.head, decisions, rows, config, steps)
        old, advantages = before.logprob[rows], judged.advantages[rows]
        loss = clipped_loss_tokens(
            logprob[:, None], old[:, None], advantages, CLIP_LOW, CLIP_HIGH, DUAL_CLIP
        ).mean()
        total = share * loss
        if learner.critic is not None:
            assert judged.features is not None, "a critic has features"
            assert judged.values is not None and judged.targets is not None, "and targets"
            values = learner.critic(judged.features[rows])
            of_value = value_loss(values, judged.values[rows], judged.targets[rows]).mean()
            total = total + share * of_value
            sums.add(len(part), value_loss=of_value.item())
        total.backward()
        with torch.no_grad():
            ratio = (logprob - old).exp()
            kl = (gaussian_kl(before.mean[rows], mean, std) * decisions.executed[rows]).sum(dim=1)
            clipped = ((ratio - 1) * advantages.sign() > _limit(advantages)).float()
            sums.add(
                len(part),
                loss=loss.item(),
                ratio=ratio.mean().item(),
                ratio_off=(ratio - 1).abs().mean().item(),
                clipped=clipped.mean().item(),
                kl=kl.mean().item(),
            )
    norms = [
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0).item()
        for group in learner.optimizer.param_groups
    ]
    if not (all(map(math.isfinite, norms)) and sums.finite()):
        raise RoboAlignError(
            f"a loss or gradient is not finite (norms {norms})",
            where="online",
            fix="lower online.learning_rate",
        )
    sums.add(1.0, grad_norm=norms[0])
    learner.optimizer.step()
    learner.optimizer.zero_grad()


def _limit(advantages: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return how far the ratio may move in the direction that the advantage asks for."""
    return torch.where(advantages > 0, CLIP_HIGH, CLIP_LOW)
