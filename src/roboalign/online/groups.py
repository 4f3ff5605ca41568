"""Roll out groups of episodes from the same initial states, until enough of them teach something."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from roboalign.core.errors import RoboAlignError
from roboalign.online.config import MOST_DRAWS, OnlineConfig
from roboalign.online.decisions import Trajectory
from roboalign.online.loss import leave_one_out
from roboalign.sim.parallel import EpisodeKey
from roboalign.sim.rollout import EpisodeResult

Roll = Callable[[Sequence[EpisodeKey], Callable[[EpisodeResult], None]], None]
"""Run every episode once, and call with each result."""
Judge = Callable[[Float[Tensor, " rollouts"]], Float[Tensor, " rollouts"]]
"""Turn the rewards of a group into advantages."""


@dataclass
class Counts:
    """Totals of a training so far."""

    drawn: int = 0
    """Initial states that were rolled out; the next one has this number."""
    mixed: int = 0
    """Groups with both outcomes."""
    episodes: int = 0
    """Rollouts, crashed ones included."""
    successes: int = 0
    crashes: int = 0


@dataclass
class Groups:
    """What an update learns from."""

    trajectories: list[Trajectory] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    """Of each trajectory; all 0 with a critic, which judges instead."""
    found: int = 0

    def of_decisions(self) -> torch.Tensor:
        """Return the advantage of each decision: that of its rollout."""
        lengths = torch.tensor([len(one.looks) for one in self.trajectories])
        return torch.tensor(self.advantages).repeat_interleave(lengths)


def initial_state(number: int, tasks: Sequence[str], config: OnlineConfig) -> tuple[str, int]:
    """Return the task and seed of an initial state; the tasks take turns."""
    return tasks[number % len(tasks)], config.first_seed + number // len(tasks)


def roll_groups(
    roll: Roll,
    tasks: Sequence[str],
    config: OnlineConfig,
    counts: Counts,
    said: Callable[[str], None],
    judge: Judge = leave_one_out,
) -> Groups:
    """Roll out groups, each from an initial state that was not used before.

    With RLOO a group of equal outcomes teaches nothing, and others are drawn, at most MOST_DRAWS
    times as many as asked for; there may be fewer then, or none. A crashed rollout is neither
    success nor failure, and leaves its group.
    """
    groups = Groups()
    most = config.groups * (MOST_DRAWS if config.algorithm == "rloo" else 1)
    left = most
    while left and groups.found < config.groups:
        count = min(left, config.groups - groups.found)
        left -= count
        numbers = range(counts.drawn, counts.drawn + count)
        counts.drawn += count
        done = _roll(roll, numbers, tasks, config, counts, said)
        for number in numbers:
            _take(groups, done[number], config, counts, judge)
    return groups


def _roll(
    roll: Roll,
    numbers: Sequence[int],
    tasks: Sequence[str],
    config: OnlineConfig,
    counts: Counts,
    said: Callable[[str], None],
) -> dict[int, list[EpisodeResult]]:
    """Return the results of each initial state, in a fixed order."""
    size = config.group_size
    asked: dict[EpisodeKey, int] = {}
    for number in numbers:
        task, seed = initial_state(number, tasks, config)
        asked |= {(task, seed * size + member): number for member in range(size)}
    results: dict[EpisodeKey, EpisodeResult] = {}

    def finish(result: EpisodeResult) -> None:
        results[result.task, result.seed] = result
        counts.episodes += 1
        counts.successes += result.success
        counts.crashes += result.crash is not None
        said(f"{len(results)}/{len(asked)} rollouts, {counts.successes} of all solved")

    roll(list(asked), finish)
    done: dict[int, list[EpisodeResult]] = {number: [] for number in numbers}
    for key, number in asked.items():
        done[number].append(results[key])
    if all(result.crash is not None for result in results.values()):
        crash = next(iter(results.values())).crash
        raise RoboAlignError(
            f"all {len(results)} rollouts crashed, the first by: {crash}",
            where="online",
            fix="see that the simulator runs: `roboalign doctor`",
        )
    return done


def _take(
    groups: Groups,
    results: Sequence[EpisodeResult],
    config: OnlineConfig,
    counts: Counts,
    judge: Judge,
) -> None:
    """Add a group's rollouts, unless they teach nothing."""
    usable = [one for one in results if one.crash is None]
    mixed = len({one.success for one in usable}) > 1
    counts.mixed += mixed
    if config.algorithm == "rloo" and not mixed:
        return
    groups.found += 1
    groups.trajectories += [Trajectory.of(one) for one in usable]
    if config.algorithm == "rloo":
        rewards = torch.tensor([float(one.success) for one in usable])
        groups.advantages += judge(rewards).tolist()
    else:
        groups.advantages += [0.0] * len(usable)
