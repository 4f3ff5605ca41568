"""Rounds of online RL, rollouts and an update, against a plain loop: one environment at a time, and
hidden states computed again in each epoch.

Both do the same work with the same head, in turns, so that other load on the machine meets each:
groups of rollouts from the same initial states, then the same number of epochs over their decisions.
The plain loop runs an episode after the other in this process. Its update computes the hidden states
of each batch again, except for the densities before the update, which a plain loop would have from its
rollouts. The start of processes and the loading of policies are not timed.

    OMP_NUM_THREADS=1 python benchmarks/online_rl.py runs/quickstart/seed-0/head/sft/policy --json online.json
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from roboalign.core.machine import cores
from roboalign.online.config import OnlineConfig
from roboalign.online.decisions import Decisions, Trajectory
from roboalign.online.explorer import Explorer, load_explorer, repeated
from roboalign.online.groups import Roll
from roboalign.online.improve import MICRO, HeadLearner, improve
from roboalign.online.train import WEIGHTS, publish
from roboalign.sim.base import Benchmark, Observation
from roboalign.sim.parallel import Crew, EpisodeKey
from roboalign.sim.registry import make_benchmark
from roboalign.sim.rollout import (
    EnvironmentPool,
    EpisodeResult,
    Key,
    Planned,
    RolloutConfig,
    rollout_batch,
)
from roboalign.vla.head import Vlm, VlmMask
from roboalign.vla.head_policy import HeadPolicy


@dataclass
class OneAtATime:
    """Run an episode after the other in this process; keep what was seen, by episode."""

    explorer: Explorer
    benchmark: Benchmark
    config: RolloutConfig
    seen: dict[EpisodeKey, list[Observation]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pool = EnvironmentPool(self.benchmark, 1)

    def __call__(
        self, episodes: Sequence[EpisodeKey], finish: Callable[[EpisodeResult], None]
    ) -> None:
        for key in sorted(episodes):
            for result in rollout_batch(self._act, self.pool, [key], self.config):
                finish(result)

    def _act(self, observations: list[Observation], keys: list[Key]) -> Planned:
        for observation, (task, seed, _) in zip(observations, keys, strict=True):
            self.seen.setdefault((task, seed), []).append(observation)
        return self.explorer(observations, keys)


@dataclass(frozen=True)
class Again(Decisions):
    """Decisions whose hidden states are computed again whenever they are asked for."""

    policy: HeadPolicy
    seen: Sequence[Observation]
    asked: list[int] = field(default_factory=list)

    def hidden(self, rows: Sequence[int]) -> tuple[Vlm, VlmMask]:
        """Return the hidden states of some decisions; the first time, those of the rollouts."""
        self.asked.extend(rows)
        if len(self.asked) <= len(self):
            return super().hidden(rows)
        read, _ = self.policy.read([self.seen[row] for row in rows])
        states, mask = self.policy.view.encode(self.policy.mllm, read)
        return states.float(), mask


def rolled(roll: Roll, keys: Sequence[EpisodeKey]) -> tuple[list[EpisodeResult], float]:
    """Return the results in a fixed order, and the seconds."""
    results: list[EpisodeResult] = []
    began = time.perf_counter()
    roll(keys, results.append)
    return sorted(results, key=lambda one: (one.task, one.seed)), time.perf_counter() - began


def updated(policy: HeadPolicy, decisions: Decisions, config: OnlineConfig) -> float:
    """Return the seconds of one update, from the same weights each time."""
    kept = {name: value.clone() for name, value in policy.head.state_dict().items()}
    learner = HeadLearner.of(policy, config)
    advantages = torch.linspace(-1, 1, len(decisions))
    generator = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    improve(
        learner,
        decisions,
        advantages,
        config,
        steps=policy.sampling_steps,
        generator=generator,
    )
    seconds = time.perf_counter() - began
    policy.head.load_state_dict(kept)
    return seconds


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run both in turns; return episodes a minute, updates a second, and ratios."""
    config = OnlineConfig(group_size=options.group_size, epochs=options.epochs)
    rollout = RolloutConfig(replan_every=4, max_steps=150, batch_size=options.group_size)
    benchmark = repeated(make_benchmark("metaworld"), config.group_size)
    totals = {name: dict.fromkeys(("rollouts", "update"), 0.0) for name in ("plain", "product")}
    episodes, decisions_of, steps = 0, dict.fromkeys(totals, 0), 0
    with tempfile.TemporaryDirectory() as name:
        policy, weights = HeadPolicy.load(folder), Path(name) / WEIGHTS
        publish(HeadLearner.of(policy, config), weights.parent)
        load = partial(load_explorer, config, 0, folder, weights, 1, "cpu")
        plain = OneAtATime(load(), benchmark, rollout)
        crew = Crew(load, benchmark, rollout, workers=cores())
        try:
            warm = [(options.task, number) for number in range(cores() * options.group_size)]
            rolled(crew.run, warm)
            rolled(plain, warm[:1])
            for number in range(options.rounds):
                first = (config.first_seed + 2 * number) * config.group_size
                keys = [(options.task, first + one) for one in range(2 * config.group_size)]
                episodes += len(keys)
                for kind, roll in (("plain", plain), ("product", crew.run)):
                    results, seconds = rolled(roll, keys)
                    totals[kind]["rollouts"] += seconds
                    found = [Trajectory.of(one) for one in results if one.crash is None]
                    if kind == "plain":
                        seen = [
                            observation
                            for one in results
                            if one.crash is None
                            for observation in plain.seen[one.task, one.seed]
                        ]
                        learned: Decisions = Again(found, policy.mllm.device, policy, seen)
                    else:
                        learned = Decisions(found, policy.mllm.device)
                    totals[kind]["update"] += updated(policy, learned, config)
                    decisions_of[kind] += len(learned)
                steps += config.epochs * -(-len(learned) // config.batch_size)
        finally:
            crew.close()
    whole = {kind: sum(parts.values()) for kind, parts in totals.items()}
    return {
        "episodes of each": episodes,
        "decisions": decisions_of,
        "cores": cores(),
        "load average": os.getloadavg()[0],
        "decisions of a forward pass": MICRO,
        "seconds": totals,
        "episodes a minute, rollouts alone": {
            kind: 60 * episodes / parts["rollouts"] for kind, parts in totals.items()
        },
        "updates a second": {kind: steps / parts["update"] for kind, parts in totals.items()},
        "episodes a minute, with updates": {
            kind: 60 * episodes / seconds for kind, seconds in whole.items()
        },
        "ratios": {
            part: totals["plain"][part] / totals["product"][part] for part in ("rollouts", "update")
        }
        | {"whole": whole["plain"] / whole["product"]},
    }


def main() -> None:
    """Print the table of one run, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("policy", type=Path, help="folder of a head's policy on Meta-World")
    parser.add_argument("--task", default="button-press-wall-v3", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.dumps(measure(options.policy, options), indent=2)
    print(found)
    if options.json:
        options.json.write_text(found + "\n")


if __name__ == "__main__":
    main()
