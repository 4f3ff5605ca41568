"""Run closed-loop episodes of a policy: several in lockstep per process, each result returned as
soon as it is known.

A policy is a function `act(observations, keys) -> actions [k, H, A]` in raw units, where k is the
number of observations. The keys (task, seed, step) let it draw its noise per episode, so that a
result does not depend on which episodes share a batch.
"""

import functools
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from pydantic import Field

from roboalign.core.config import Config
from roboalign.core.files import atomic_path
from roboalign.sim.base import Benchmark, Environment, EnvironmentCrash, Observation, StepOutcome

Key = tuple[str, int, int]
"""(task, seed, step) of one observation."""


class Planned(NamedTuple):
    """What a policy answers that counts its decisions."""

    chunks: np.ndarray
    """[k, H, A], raw units."""
    counts: Sequence[Mapping[str, int]]
    """For each observation; an episode's record has their sums."""
    kept: Sequence[bytes] = ()
    """For each observation, what its episode's result brings back to the caller."""


Act = Callable[[list[Observation], list[Key]], np.ndarray | Planned]


class RolloutConfig(Config):
    """Settings for running a policy. Report every field together with a success rate."""

    replan_every: int = Field(8, ge=1)
    """Actions of a chunk that are executed before the policy sees the next observation."""
    max_steps: int = Field(250, ge=1, le=100_000)
    """Steps after which an unsolved episode ends as a failure."""
    batch_size: int = Field(8, ge=1, le=4096)
    """Episodes that a process runs in lockstep."""


@dataclass(frozen=True)
class EpisodeResult:
    """One finished episode."""

    task: str
    seed: int
    success: bool
    steps: int
    """Number of actions executed."""
    crash: str | None
    """What broke, if the simulation, its process or a policy's server did. Such an episode is neither a success nor
    a failure."""
    seconds: float
    """Wall time of the episode, shared with the episodes in lockstep with it."""
    film: list[np.ndarray] = field(default_factory=list, compare=False, repr=False)
    """The first camera's images, uint8 [H, W, 3], at each replanning and at the end, as the policy
    saw them."""
    counts: dict[str, int] = field(default_factory=dict)
    """What the policy counted over the episode's decisions; empty for a policy that counts
    nothing."""
    progress: int | None = None
    """Parts of the episode that were solved; None where it has only one."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the environment says about the episode besides."""
    kept: list[bytes] = field(default_factory=list, compare=False, repr=False)
    """What the policy kept of each decision; empty for a policy that keeps nothing."""

    def record(self) -> dict[str, Any]:
        """Return the episode as a JSON object, without its film and what was kept, and without
        counts, progress and details if there are none."""
        optional = ("counts", "progress", "details")
        left_out = ("film", "kept", *optional)
        names = [field.name for field in fields(self) if field.name not in left_out]
        record = {name: getattr(self, name) for name in names}
        given = {name: getattr(self, name) for name in optional}
        return record | {name: value for name, value in given.items() if value not in (None, {})}


@dataclass
class _Running:
    task: str
    seed: int
    environment: Environment
    steps: int = 0
    success: bool = False
    crash: str | None = None
    counts: Counter[str] = field(default_factory=Counter)
    film: list[np.ndarray] = field(default_factory=list)
    outcome: StepOutcome | None = None
    """The last one; None where the environment returns a bool."""
    kept: list[bytes] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def result(self) -> EpisodeResult:
        seconds = time.monotonic() - self.began
        return EpisodeResult(
            self.task,
            self.seed,
            self.success,
            self.steps,
            self.crash,
            seconds,
            self.film,
            dict(self.counts),
            None if self.outcome is None else self.outcome.progress,
            {} if self.outcome is None else dict(self.outcome.details),
            self.kept,
        )

    @property
    def over(self) -> bool:
        """Return whether it is solved, broken, or beyond success."""
        ended = self.outcome is not None and self.outcome.ended
        return self.success or self.crash is not None or ended


class EnvironmentPool:
    """Reuse environments between episodes. Building one costs as much as a hundred resets.

    At most `limit` idle ones are kept, because each takes tens of megabytes, and hundreds on
    LIBERO.
    """

    def __init__(self, benchmark: Benchmark, limit: int) -> None:
        self.benchmark, self.limit = benchmark, limit
        self.idle: list[tuple[str, Environment]] = []

    def take(self, task: str) -> Environment:
        """Return an idle environment of `task`, or a new one."""
        for index, (name, environment) in enumerate(self.idle):
            if name == task:
                del self.idle[index]
                return environment
        # Batches come task by task, so a full pool is a whole batch of another task's environments.
        if len(self.idle) >= self.limit:
            self.close()
        return self.benchmark.make(task)

    def give_back(self, task: str, environment: Environment) -> None:
        """Keep it for a later episode. If there are too many, close the one that has been idle
        longest."""
        self.idle.append((task, environment))
        if len(self.idle) > self.limit:
            self.idle.pop(0)[1].close()

    def close(self) -> None:
        """Close all idle environments."""
        while self.idle:
            self.idle.pop()[1].close()


def rollout_batch(
    act: Act, pool: EnvironmentPool, episodes: Sequence[tuple[str, int]], config: RolloutConfig
) -> Iterator[EpisodeResult]:
    """Run (task, seed) episodes in lockstep; yield each result as soon as it is known.

    At each replanning every running environment is observed, and `act` is called once. Then
    `replan_every` actions are executed without rendering, fewer if an outcome asks to replan. An
    EnvironmentCrash ends only its own episode; one that `act` raises ends only the episodes that it
    was asked for. Raises what else `act` raises, and ValueError if `act` returns an array of another
    shape than [k, at least replan_every, A].
    """
    running = []
    for task, seed in episodes:
        episode = _Running(task, seed, pool.take(task))
        if _guarded(episode, functools.partial(episode.environment.reset, seed)):
            running.append(episode)
        else:
            yield episode.result()
    while running:
        seen = [(episode, _observe(episode)) for episode in running]
        planned = [
            (episode, observation) for episode, observation in seen if observation is not None
        ]
        if planned:
            _plan(act, planned, config)
        still = []
        for episode in running:
            if episode.over or episode.steps >= _limit(episode, config):
                yield _finish(episode, pool)
            else:
                still.append(episode)
        running = still


def _plan(act: Act, planned: Sequence[tuple[_Running, Observation]], config: RolloutConfig) -> None:
    """Ask for a chunk for each observation and execute it, unless the answer itself breaks."""
    keys = [(episode.task, episode.seed, episode.steps) for episode, _ in planned]
    try:
        answer = act([observation for _, observation in planned], keys)
    except EnvironmentCrash as crash:
        for episode, _ in planned:
            episode.crash = str(crash)
        return
    chunks, counts, kept = answer if isinstance(answer, Planned) else (answer, (), ())
    _check_chunks(chunks, len(planned), config.replan_every)
    for (episode, _), counted in zip(planned, counts):
        episode.counts.update(counted)
    for (episode, _), one in zip(planned, kept):
        episode.kept.append(one)
    for (episode, _), chunk in zip(planned, chunks, strict=True):
        actions = chunk[: config.replan_every]
        _guarded(episode, functools.partial(_execute, episode, actions, _limit(episode, config)))


def _limit(episode: _Running, config: RolloutConfig) -> int:
    """Return the steps after which an episode ends: its environment may have fewer than others."""
    return min(config.max_steps, episode.environment.max_steps)


def _observe(episode: _Running) -> Observation | None:
    seen: list[Observation] = []
    if not _guarded(episode, lambda: seen.append(episode.environment.observe())):
        return None
    episode.film += list(seen[0].images.values())[:1]  # a world without cameras has no images
    return seen[0]


def _execute(episode: _Running, actions: np.ndarray, max_steps: int) -> None:
    for action in actions[: max_steps - episode.steps]:
        outcome = episode.environment.step(action)
        episode.steps += 1
        episode.success = bool(outcome)
        episode.outcome = outcome if isinstance(outcome, StepOutcome) else None
        if episode.over or (episode.outcome is not None and episode.outcome.replan):
            return


def _finish(episode: _Running, pool: EnvironmentPool) -> EpisodeResult:
    if episode.crash is None:
        _observe(episode)
    result = episode.result()
    if episode.crash is None:
        pool.give_back(episode.task, episode.environment)
    else:
        episode.environment.close()
    return result


def _guarded(episode: _Running, work: Callable[[], None]) -> bool:
    """Run `work` and return True. If the environment crashes, record that in the episode and return False."""
    try:
        work()
    except EnvironmentCrash as crash:
        episode.crash = str(crash)
        return False
    return True


def _check_chunks(chunks: np.ndarray, count: int, replan_every: int) -> None:
    if chunks.ndim != 3 or len(chunks) != count or chunks.shape[1] < replan_every:
        raise ValueError(
            f"act gave {chunks.shape} for {count} observations and replan_every={replan_every}"
        )


def write_video(path: str | Path, frames: Collection[np.ndarray], fps: float) -> None:
    """Write uint8 [H, W, 3] frames (even H and W) at `fps` frames per second as an H.264 mp4, yuv420p, for browsers.

    Raises ValueError without a frame.
    """
    frames = list(frames)
    if not frames:
        raise ValueError(f"{path}: a video needs at least one frame")
    height, width = frames[0].shape[:2]
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
