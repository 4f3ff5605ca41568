"""Measure how often the experts succeed, over placements of the suites' own sampler (never
evaluation's initial states)."""

import time
import zlib
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_tree, read_json, write_json
from roboalign.sim.base import EnvironmentCrash
from roboalign.sim.libero.environment import Libero, LiberoEnvironment
from roboalign.sim.libero.experts.expert import make_expert

MAX_STEPS = {
    "libero_spatial": 300,
    "libero_object": 300,
    "libero_goal": 400,
    "libero_10": 700,
    "libero_90": 400,
}
"""Policy steps after which an expert has failed."""
NOISE_MEMORY = 0.8
"""Correlation of the noise between two steps, as in the collection of demonstrations."""


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement: placements per task, noise (of an action in [-1, 1]), first seed,
    code."""

    episodes: int
    noise: float
    first_seed: int
    code: str


@dataclass(frozen=True)
class Attempt:
    """One episode of an expert."""

    task: str
    seed: int
    success: bool
    crashed: bool
    steps: int
    seconds: float


def run_expert(
    environment: LiberoEnvironment, seed: int, max_steps: int, noise: float
) -> tuple[bool, np.ndarray]:
    """Run the expert in the placement of `seed`; return whether it succeeded, and the executed
    actions float32 [T, 7].

    `noise` is the standard deviation of the smooth noise on the executed position action. Raises
    EnvironmentCrash.
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


def measure(
    suite: str, settings: Settings, path: Path, only: Collection[str] = ()
) -> Iterator[list[Attempt]]:
    """Yield the attempts of each task of a suite (only tasks in `only`, if not empty); `path` holds
    them after each.

    A task whose attempts are in the file is not run again, so a killed measurement resumes. Raises
    RoboAlignError if the file was measured with other settings or another state of the code.
    """
    benchmark = Libero(suite)
    for task in [task for task in benchmark.tasks() if not only or task.name in only]:
        done = read_attempts(path, settings)
        attempts = [attempt for attempt in done if attempt.task == task.name]
        if not attempts:
            attempts = _measure_task(benchmark, task.name, settings)
            write_json(
                path,
                {
                    **asdict(settings),
                    "attempts": [asdict(attempt) for attempt in [*done, *attempts]],
                },
            )
        yield attempts


def _measure_task(benchmark: Libero, task: str, settings: Settings) -> list[Attempt]:
    environment = benchmark.make(task)
    attempts = []
    for seed in range(settings.first_seed, settings.first_seed + settings.episodes):
        start, crashed, success, steps = time.perf_counter(), False, False, 0
        try:
            success, executed = run_expert(
                environment, seed, MAX_STEPS[benchmark.suite], settings.noise
            )
            steps = len(executed)
        except EnvironmentCrash:
            crashed = True
        seconds = round(time.perf_counter() - start, 2)
        attempts.append(Attempt(task, seed, success, crashed, steps, seconds))
    environment.close()
    return attempts


def read_attempts(path: Path, settings: Settings) -> list[Attempt]:
    """Read the attempts in `path` made with these settings, none if there is no file. Raises
    RoboAlignError."""
    if not path.exists():
        return []
    fix = "give another file with --out, or remove this one"
    stored = read_json(path, fix=fix)
    try:
        attempts = [Attempt(**record) for record in stored.pop("attempts")]
        found = Settings(**stored)
    except (AttributeError, KeyError, TypeError):
        raise RoboAlignError(
            "not the attempts of LIBERO's experts", where=str(path), fix=fix
        ) from None
    if found != settings:
        raise RoboAlignError(
            f"measured with {found}, not with {settings}", where=str(path), fix=fix
        )
    return attempts


def code_digest() -> str:
    """Return the state of the code that determines an episode: sha256 of the LIBERO package's
    source, 12 hex digits."""
    return hash_tree(Path(__file__).parents[1], lambda path: path.suffix == ".py")[:12]
