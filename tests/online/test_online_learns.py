"""The update moves the flow to what was rewarded: decisions without a simulator, rewarded by one number of their
chunk."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from roboalign.online.config import OnlineConfig
from roboalign.online.decisions import Decisions, Trajectory
from roboalign.online.flow_sde import explore, log_density, sde_std, velocity_of
from roboalign.online.improve import HeadLearner, improve
from roboalign.online.loss import leave_one_out
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape

STEPS, COUNT = 4, 64


def rollouts(
    head: FlowMatchingHead, config: OnlineConfig, generator: torch.Generator
) -> list[Trajectory]:
    """Rollouts of one decision each, all of one view; solved if the first number executed is above 0."""
    states = torch.ones(COUNT, 3, 24)
    mask = torch.ones(COUNT, 3, dtype=torch.bool)
    start, draw = torch.randn(2, COUNT, 4, 2, generator=generator)
    step = torch.randint(STEPS, (COUNT,), generator=generator)
    with torch.no_grad():
        velocity = velocity_of(head, states, mask, None)
        found = explore(velocity, start, step, draw, steps=STEPS, noise=config.noise)
    logprob = log_density(found.after, found.mean, sde_std(step, STEPS, config.noise))
    return [
        Trajectory(
            [
                {
                    "states": states[row],
                    "before": found.before[row],
                    "after": found.after[row],
                    "step": step[row],
                    "logprob": logprob[row],
                }
            ],
            [2],
            bool(found.chunk[row, 0, 0] > 0),
        )
        for row in range(COUNT)
    ]


@pytest.mark.parametrize("algorithm", ["rloo", "ppo"])
def test_success_rises_where_one_number_decides(algorithm: str) -> None:
    torch.manual_seed(0)
    sizes = {"width": 16, "heads": 2, "layers": 2, "vlm_inner_width": 16, "vlm_heads": 2}
    shape = HeadShape(vlm_width=24, action_dim=2, state_dim=1, horizon=4)
    head = FlowMatchingHead(HeadConfig(**sizes, hidden_width=16), shape).eval()
    config = OnlineConfig(algorithm=algorithm, learning_rate=3e-3, batch_size=COUNT)  # type: ignore[arg-type]
    policy: Any = SimpleNamespace(head=head)
    learner, generator = HeadLearner.of(policy, config), torch.Generator().manual_seed(0)
    shares = []
    for _ in range(25):
        made = rollouts(head, config, generator)
        rewards = torch.tensor([float(one.success) for one in made])
        shares.append(float(rewards.mean()))
        advantages = leave_one_out(rewards) if algorithm == "rloo" else None
        decisions = Decisions(made, torch.device("cpu"))
        improve(learner, decisions, advantages, config, steps=STEPS, generator=generator)
    assert sum(shares[:3]) / 3 < 0.7
    assert sum(shares[-3:]) / 3 > 0.9, shares
