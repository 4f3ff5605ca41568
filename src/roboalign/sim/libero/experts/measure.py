"""How often the experts succeed, over placements of the suites' own sampler (never evaluation's initial states)."""

import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from roboalign.sim.base import EnvironmentCrash
from roboalign.sim.libero.environment import FIRST_PLACEMENT, Libero, LiberoEnvironment
from roboalign.sim.libero.experts.expert import make_expert

MAX_STEPS = {"libero_spatial": 300, "libero_object": 300, "libero_goal": 400, "libero_10": 700}
"""Policy steps after which an expert has failed."""
NOISE_MEMORY = 0.8
"""Correlation of the noise between two steps, as in the collection of demonstrations."""


@dataclass(frozen=True)
class Attempt:
    """One episode of an expert."""

    task: str
    seed: int
    success: bool
    crashed: bool
    steps: int
    seconds: float


def run_expert(environment: LiberoEnvironment, seed: int, max_steps: int, noise: float) -> tuple[bool, np.ndarray]:
    """Run the expert in the placement of `seed`: whether it succeeded, and the executed actions float32 [T, 7].

    `noise` is the standard deviation of the smooth noise on the executed position action. Raises EnvironmentCrash.
    """
    environment.reset(seed)
    expert = make_expert(environment)
    rng = np.random.default_rng([seed, zlib.crc32(environment.task.name.encode())])
    shift = rng.normal(size=3)
    executed = []
    for _ in range(max_steps):
        action = expert.action()
        action[:3] += noise * shift
        shift = NOISE_MEMORY * shift + np.sqrt(1 - NOISE_MEMORY**2) * rng.normal(size=3)
        executed.append(np.clip(action, -1.0, 1.0))
        if environment.step(executed[-1]):
            return True, np.stack(executed)
    return False, np.stack(executed)


def measure(suite: str, episodes: int, noise: float, first_seed: int = FIRST_PLACEMENT) -> Iterator[list[Attempt]]:
    """The attempts of each task of a suite, task by task."""
    benchmark = Libero(suite)
    for task in benchmark.tasks():
        environment = benchmark.make(task.name)
        attempts = []
        for seed in range(first_seed, first_seed + episodes):
            start, crashed, success, steps = time.perf_counter(), False, False, 0
            try:
                success, executed = run_expert(environment, seed, MAX_STEPS[suite], noise)
                steps = len(executed)
            except EnvironmentCrash:
                crashed = True
            seconds = round(time.perf_counter() - start, 2)
            attempts.append(Attempt(task.name, seed, success, crashed, steps, seconds))
        environment.close()
        yield attempts


def as_records(attempts: list[Attempt]) -> list[dict[str, object]]:
    """Attempts as JSON objects."""
    return [asdict(attempt) for attempt in attempts]
