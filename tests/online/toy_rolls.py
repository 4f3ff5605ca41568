"""The toy benchmark in this process: rollouts of a policy that explores."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "toy_package/src"))

from toy_benchmark.spec import ToyConfig
from toy_benchmark.world import Toy

from roboalign.online.config import OnlineConfig
from roboalign.online.explorer import Explorer, Published, repeated
from roboalign.online.train import WEIGHTS
from roboalign.sim.parallel import EpisodeKey
from roboalign.sim.rollout import (
    EnvironmentPool,
    EpisodeResult,
    RolloutConfig,
    rollout_batch,
)
from roboalign.vla.head_policy import HeadPolicy

ROLLOUT = RolloutConfig(replan_every=3, max_steps=7, batch_size=8)
TASKS = ("toy/touch-red", "toy/touch-blue")
CONFIG = OnlineConfig(updates=2, groups=2, group_size=4, batch_size=16, learning_rate=1e-3)


@dataclass
class Rolls:
    """Run episodes in this process; those of the seeds `crashes` break."""

    policy: HeadPolicy
    folder: Path
    config: OnlineConfig
    crashes: Sequence[int] = ()
    after: Callable[[int], None] = lambda calls: None
    radius: float = 0.17
    calls: int = 0

    def __call__(
        self, episodes: Sequence[EpisodeKey], finish: Callable[[EpisodeResult], None]
    ) -> None:
        self.calls += 1
        benchmark = repeated(Toy(ToyConfig(radius=self.radius)), self.config.group_size)
        if not hasattr(self, "explorer"):
            published = Published(self.folder / WEIGHTS)
            self.explorer = Explorer(self.policy, published, self.config.noise, seed=3)
        pool, ordered = EnvironmentPool(benchmark, 8), sorted(episodes)
        for start in range(0, len(ordered), ROLLOUT.batch_size):
            batch = ordered[start : start + ROLLOUT.batch_size]
            for result in rollout_batch(self.explorer, pool, batch, ROLLOUT):
                finish(self._broken(result) if result.seed in self.crashes else result)
        self.after(self.calls)

    def _broken(self, result: EpisodeResult) -> EpisodeResult:
        return EpisodeResult(result.task, result.seed, False, 1, "broke", 0.0)
