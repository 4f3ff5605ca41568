"""The recipe's section on online RL, which the `-online` arms learn by."""

from typing import Literal

from pydantic import Field

from roboalign.core.config import Config, Seed

MOST_DRAWS = 4
"""Groups that are rolled out for an update, at most, for each one that it asks for."""


class OnlineConfig(Config):
    """RL in the simulator, rewarded by success alone: of the flow head on a frozen MLLM, or of an
    MLLM whose own tokens act. A rollout runs as in `rollout`, with its steps and replanning."""

    algorithm: Literal["rloo", "ppo"] = "rloo"
    """How a rollout is judged: `rloo` by the success of the others from the same initial state,
    where groups of equal outcomes teach nothing and others are drawn; `ppo` by a small critic. Token
    policies take `rloo`, divided by the group's standard deviation as in GRPO."""
    updates: int = Field(30, ge=1, le=1_000_000)
    """Times that rollouts are made and learned from."""
    groups: int = Field(8, ge=1, le=4096)
    """Initial states of an update, each with as many rollouts as `group_size`. `rloo` counts those
    with both outcomes, and rolls out up to four times as many to find them."""
    group_size: int = Field(8, ge=2, le=1024)
    """Rollouts from one initial state."""
    epochs: int = Field(2, ge=1, le=1000)
    """Times that each decision of an update is learned from."""
    batch_size: int = Field(256, ge=1, le=1_000_000)
    """Decisions of an optimizer step."""
    learning_rate: float = Field(3e-5, gt=0, le=1)
    """Learning rate of the head, constant (GR00T's scale: 5e-6); the critic's is 20 times as high.
    An MLLM has `rl.learning_rate`."""
    noise: float = Field(0.5, gt=0, le=2)
    """Strength c of the noise with which a head explores (Flow-SDE): step t of the flow has the
    standard deviation c sqrt((1 - t) / t) times the root of its length. Tokens are drawn at
    `rl.temperature`."""
    first_seed: Seed = 600_000
    """Seed of the first initial state of each task. None may be one that measures policies."""

    def seeds(self, tasks: int) -> range:
        """Return the seeds of each of so many tasks that may be used."""
        most = MOST_DRAWS if self.algorithm == "rloo" else 1
        each = -(-self.updates * self.groups * most // tasks)
        return range(self.first_seed, self.first_seed + each)
