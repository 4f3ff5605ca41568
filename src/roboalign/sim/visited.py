"""States that a policy visits by itself, and what the scripted expert would do in each.

A policy that imitates demonstrations meets states that no demonstration has. This is how they become
training data, as in DAgger (Ross et al., 2011): the policy drives, the expert labels.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import (
    DemonstratedBenchmark,
    DemonstratedEnvironment,
    EnvironmentCrash,
    Observation,
)
from roboalign.sim.rollout import (
    Act,
    EnvironmentPool,
    EpisodeResult,
    Key,
    Planned,
    RolloutConfig,
    rollout_batch,
)


@dataclass(frozen=True)
class VisitedState:
    """What a policy saw at one decision, and what the expert does from there."""

    task: str
    seed: int
    step: int
    """Actions that the policy had done in the episode."""
    observation: Observation
    chunk: np.ndarray
    """float32 [horizon, A], raw units: the expert's actions; after success the last is repeated, as
    in `Episode.chunk`."""


def visit(
    act: Act,
    benchmark: DemonstratedBenchmark,
    episodes: Sequence[tuple[str, int]],
    config: RolloutConfig,
    *,
    horizon: int,
    labels: int,
) -> Iterator[tuple[EpisodeResult, list[VisitedState]]]:
    """Run (task, seed) episodes of the policy; yield each with up to `labels` of its decisions.

    The decisions are drawn at random, and none follows success. The expert's chunk is found by
    doing the policy's actions again from the seed, which gives the same state. A decision whose
    replay crashes or is solved on the way is left out.
    """
    pool = EnvironmentPool(benchmark, config.batch_size)
    try:
        for start in range(0, len(episodes), config.batch_size):
            batch = episodes[start : start + config.batch_size]
            seen: dict[tuple[str, int], list[tuple[Observation, np.ndarray]]] = defaultdict(list)
            for result in rollout_batch(_recorded(act, seen), pool, batch, config):
                decisions = seen.pop((result.task, result.seed), [])
                yield result, list(_labelled(benchmark, result, decisions, config, horizon, labels))
    finally:
        pool.close()


def _recorded(act: Act, seen: dict[tuple[str, int], list[tuple[Observation, np.ndarray]]]) -> Act:
    """Return `act`, which also keeps what it saw and answered."""

    def recording(observations: list[Observation], keys: list[Key]) -> np.ndarray | Planned:
        answer = act(observations, keys)
        chunks = answer.chunks if isinstance(answer, Planned) else answer
        for observation, chunk, (task, seed, _) in zip(observations, chunks, keys, strict=True):
            seen[task, seed].append((observation, chunk))
        return answer

    return recording


def _labelled(
    benchmark: DemonstratedBenchmark,
    result: EpisodeResult,
    decisions: Sequence[tuple[Observation, np.ndarray]],
    config: RolloutConfig,
    horizon: int,
    labels: int,
) -> Iterator[VisitedState]:
    """Yield the drawn decisions of one episode, in order, with the expert's chunks."""
    rng = random.Random(f"visited-{result.task}-{result.seed}")
    chosen = sorted(rng.sample(range(len(decisions)), min(labels, len(decisions))))
    done = [action for _, chunk in decisions for action in chunk[: config.replan_every]]
    environment = benchmark.make(result.task)
    try:
        for number in chosen:
            step = number * config.replan_every
            chunk = expert_chunk(environment, result.seed, done[:step], horizon)
            if chunk is not None:
                yield VisitedState(result.task, result.seed, step, decisions[number][0], chunk)
    finally:
        environment.close()


def expert_chunk(
    environment: DemonstratedEnvironment, seed: int, done: Sequence[np.ndarray], horizon: int
) -> np.ndarray | None:
    """Return the expert's next actions after these, float32 [horizon, A]; None if the episode
    crashes, or is solved, before they begin.

    Raises RoboAlignError if the benchmark's experts act only from the start of an episode.
    """
    if not getattr(environment, "expert_starts_anywhere", False):
        raise RoboAlignError(
            "its experts plan from the start of an episode, and cannot act in a state that a policy "
            "has reached",
            where=type(environment).__name__,
            fix="leave the -visited arms out, or align on Meta-World",
        )
    try:
        environment.reset(seed)
        for action in done:
            if environment.step(action):
                return None
        expert = environment.expert()
        chunk: list[np.ndarray] = []
        for _ in range(horizon):
            chunk.append(expert())
            if environment.step(chunk[-1]):
                break
    except EnvironmentCrash:
        return None
    chunk += [chunk[-1]] * (horizon - len(chunk))
    return np.asarray(chunk, np.float32)
