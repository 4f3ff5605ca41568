"""Collect demonstrations from the scripted experts of a benchmark.

The executed action is the expert's plus noise, so that the data also holds states off the expert's
path; the recorded label is always the expert's clean action. What is recorded depends only on the
task, the seed and the settings, not on the number of processes.
"""

import zlib
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from roboalign.core.config import Config, Seed
from roboalign.core.processes import worker_pool
from roboalign.core.progress import Progress
from roboalign.sim.base import (
    DemonstratedBenchmark,
    DemonstratedEnvironment,
    EnvironmentCrash,
    NamingEnvironment,
    Task,
)
from roboalign.sim.cameras import CameraGeometry


class CollectConfig(Config):
    """Settings for collecting demonstrations."""

    episodes_per_task: int = Field(20, ge=1)
    """Number of solved episodes wanted per task."""
    noise: float = Field(0.15, ge=0, le=10)
    """Standard deviation of the noise on the executed x, y and z action, in action units (1 is one
    centimeter per step in Meta-World, five in LIBERO)."""
    noise_memory: float = Field(0.8, ge=0, lt=1)
    """Correlation of the noise between two steps: 0 is white noise."""
    max_steps: int = Field(250, ge=1, le=100_000)
    """Steps after which an unsolved episode of the expert counts as failed. LIBERO's two-object
    tasks need about 600."""
    steps_after_success: int = Field(5, ge=0, le=100_000)
    """Frames kept after the first success, so that the data shows the solved scene."""
    attempts: int = Field(5, ge=1)
    """Seeds tried for each wanted episode before it is skipped."""
    first_seed: Seed = 0
    """The seeds `first_seed` to `first_seed + episodes_per_task * attempts - 1` are used."""


@dataclass(frozen=True)
class EpisodeRecord:
    """One solved demonstration of T steps; frame, state and privileged row t precede action t."""

    task: str
    """What was demonstrated: the expert's task, or what the environment's judge names."""
    seed: int
    episode_id: str
    """Of the expert's task and the seed."""
    instruction: str
    nouns: dict[str, str]
    fps: float
    frames: dict[str, np.ndarray]
    """Camera name -> uint8 [T, H, W, 3]."""
    actions: np.ndarray
    """float32 [T, A], the expert's clean action, clipped to [-1, 1]."""
    state: np.ndarray
    """float32 [T, S]."""
    privileged: np.ndarray
    """float32 [T, P], with `privileged_names`."""
    privileged_names: tuple[str, ...]
    cameras: dict[str, CameraGeometry]
    success_step: int
    """Index of the action after which the task was first solved."""


@dataclass(frozen=True)
class Failure:
    """An attempt that gave no demonstration."""

    task: str
    seed: int
    reason: str
    """`not solved`, why the episode has no name, or what crashed."""
    crashed: bool


@dataclass(frozen=True)
class Collected:
    """The outcome of one wanted episode: the record, or None if every attempt failed, and the failed attempts."""

    task: str
    record: EpisodeRecord | None
    failures: tuple[Failure, ...]


def smooth_noise(
    rng: np.random.Generator, config: CollectConfig, action_dim: int
) -> Iterator[np.ndarray]:
    """Yield autoregressive noise [A] of standard deviation `noise` on x, y and z.

    The other dimensions have none: a jittering gripper drops what it holds.
    """
    value = rng.normal(size=3)
    while True:
        yield np.pad(config.noise * value, (0, action_dim - 3))
        fresh = np.sqrt(1 - config.noise_memory**2) * rng.normal(size=3)
        value = config.noise_memory * value + fresh


def collect_episode(
    benchmark: DemonstratedBenchmark,
    environment: DemonstratedEnvironment,
    seed: int,
    config: CollectConfig,
) -> EpisodeRecord | Failure:
    """Run the expert in the episode of `seed`; a crash and an unsolved episode give a Failure.

    Only a solved episode is rendered: its executed actions are replayed from the same initial state, which also proves
    that the episode can be replayed.
    """
    task = environment.task
    rng = np.random.default_rng([seed, zlib.crc32(task.name.encode())])
    noise = smooth_noise(rng, config, benchmark.action_dim)
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    success_step = None
    try:
        environment.reset(seed)
        expert = environment.expert()
        for step in range(config.max_steps + config.steps_after_success):
            action = expert()
            executed = np.clip(action + next(noise), -1.0, 1.0)
            for name, value in (
                ("actions", action),
                ("executed", executed),
                ("state", environment.state()),
                ("privileged", environment.privileged()),
            ):
                columns[name].append(value)
            solved = environment.step(executed)
            if solved and success_step is None:
                success_step = step
            if (success_step is None and step + 1 >= config.max_steps) or (
                success_step is not None and step >= success_step + config.steps_after_success
            ):
                break
        if success_step is None:
            return Failure(task.name, seed, "not solved", crashed=False)
        named = _named(environment)
        if isinstance(named, str):
            return Failure(task.name, seed, named, crashed=False)
        frames = _replay(environment, seed, columns)
    except EnvironmentCrash as crash:
        return Failure(task.name, seed, str(crash), crashed=True)
    return EpisodeRecord(
        task=named.name,
        seed=seed,
        episode_id=benchmark.episode_id(task.name, seed),
        instruction=named.instruction,
        nouns=dict(named.nouns),
        fps=benchmark.fps,
        frames=frames,
        actions=np.stack(columns["actions"]),
        state=np.stack(columns["state"]),
        privileged=np.stack(columns["privileged"]),
        privileged_names=environment.privileged_names,
        cameras=environment.camera_geometry(),
        success_step=success_step,
    )


def _named(environment: DemonstratedEnvironment) -> Task | str:
    if isinstance(environment, NamingEnvironment):
        return environment.name_episode()
    return environment.task


def _replay(
    environment: DemonstratedEnvironment, seed: int, columns: dict[str, list[np.ndarray]]
) -> dict[str, np.ndarray]:
    """Replay the episode; return camera name -> uint8 [T, H, W, 3]. Raises EnvironmentCrash if it
    diverges from the recording."""
    environment.reset(seed)
    frames: dict[str, list[np.ndarray]] = defaultdict(list)
    for step, (action, points) in enumerate(
        zip(columns["executed"], columns["privileged"], strict=True)
    ):
        if not np.array_equal(environment.privileged(), points):
            raise EnvironmentCrash(
                f"{environment.task.name}: the replay of seed {seed} differs at step {step}"
            )
        for camera, image in environment.render().items():
            frames[camera].append(image)
        environment.step(action)
    return {camera: np.stack(images) for camera, images in frames.items()}


def collect(
    tasks: Collection[str],
    benchmark: DemonstratedBenchmark,
    config: CollectConfig,
    *,
    workers: int = 2,
    existing: Collection[str] = (),
    counted_before: int = 0,
    counted_after: int = 0,
) -> Iterator[Collected]:
    """Collect `episodes_per_task` demonstrations of each task, in the order of `tasks` and of the seeds.

    `counted_before` and `counted_after`: wanted episodes of other calls, so that one progress bar counts all of them.

    Wanted episode i of a task tries the seeds first_seed + i, first_seed + i + n, ... (n wanted episodes), so that
    neither the order nor a failure elsewhere changes it. A wanted episode is skipped if `existing` has one of its ids,
    which resumes a stopped collection. Raises `concurrent.futures.process.BrokenProcessPool` if a worker dies.
    """
    wanted = [
        (task, _seeds(index, config)) for task in tasks for index in range(config.episodes_per_task)
    ]
    existing = set(existing)
    jobs = [
        (task, seeds)
        for task, seeds in wanted
        if not existing & {benchmark.episode_id(task, seed) for seed in seeds}
    ]
    benchmark.prepare()
    total = counted_before + len(wanted) + counted_after
    done = counted_before + len(wanted) - len(jobs)
    with (
        Progress("collect", total=total, start=done) as progress,
        worker_pool(workers) as pool,
    ):
        pending: deque[Future[Collected]] = deque()
        for job in [*jobs, *[None] * len(jobs)]:
            if job is not None:
                pending.append(pool.submit(_collect_wanted, benchmark, config, *job))
            # A few jobs are queued ahead of the reader: enough to keep the workers busy without
            # holding the whole data set in memory.
            if pending and (job is None or len(pending) > 4 * workers):
                collected = pending.popleft().result()
                progress.advance(note=collected.task)
                yield collected


def collected_table(outcomes: Iterable[Collected]) -> dict[str, dict[str, int]]:
    """Count per task: attempts, demonstrations, unsolved and crashed attempts, and the
    demonstrations' frames."""
    table: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        row = table.setdefault(
            outcome.task, dict.fromkeys(("attempts", "solved", "unsolved", "crashed", "frames"), 0)
        )
        row["attempts"] += len(outcome.failures) + (outcome.record is not None)
        row["solved"] += outcome.record is not None
        row["crashed"] += sum(failure.crashed for failure in outcome.failures)
        row["unsolved"] += sum(not failure.crashed for failure in outcome.failures)
        row["frames"] += len(outcome.record.actions) if outcome.record is not None else 0
    return table


def _seeds(index: int, config: CollectConfig) -> list[int]:
    return [
        config.first_seed + index + attempt * config.episodes_per_task
        for attempt in range(config.attempts)
    ]


_environments: dict[tuple[str, DemonstratedBenchmark], DemonstratedEnvironment] = {}
"""This worker's environments by task. Building one takes as long as many episodes."""


def _worker_environment(task: str, benchmark: DemonstratedBenchmark) -> DemonstratedEnvironment:
    key = task, benchmark
    if key not in _environments:
        while len(_environments) >= 2:
            _environments.pop(next(iter(_environments))).close()
        _environments[key] = benchmark.make(task)
    return _environments[key]


def _collect_wanted(
    benchmark: DemonstratedBenchmark, config: CollectConfig, task: str, seeds: list[int]
) -> Collected:
    failures: list[Failure] = []
    for seed in seeds:
        outcome = collect_episode(benchmark, _worker_environment(task, benchmark), seed, config)
        if isinstance(outcome, EpisodeRecord):
            return Collected(task, outcome, tuple(failures))
        failures.append(outcome)
        if outcome.crashed:
            _environments.clear()
    return Collected(task, None, tuple(failures))
