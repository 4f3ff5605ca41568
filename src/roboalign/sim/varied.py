"""Measure several variants of a policy in one queue of episodes: the variant is part of the task's
name, so workers load a model once and a progress bar counts everything."""

from collections.abc import Callable, Sequence

import numpy as np

from roboalign.sim.base import Benchmark, Environment, Observation, Task
from roboalign.sim.rollout import Act, Key, Planned

_MARK = "::"


class Varied:
    """A benchmark whose task names open with a variant's name; its environments are the plain
    task's."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.plain = benchmark

    @property
    def action_dim(self) -> int:
        """Return A, the length of an action."""
        return self.plain.action_dim

    @property
    def state_dim(self) -> int:
        """Return S, the length of the proprioception."""
        return self.plain.state_dim

    @property
    def cameras(self) -> tuple[str, ...]:
        """Return the names of the cameras, in order."""
        return self.plain.cameras

    @property
    def fps(self) -> float:
        """Return the policy steps per second."""
        return self.plain.fps

    def tasks(self) -> list[Task]:
        """Return the plain tasks."""
        return self.plain.tasks()

    def make(self, task: str) -> Environment:
        """Build the environment of the task behind the variant's name."""
        return self.plain.make(split_variant(task)[1])

    def episode_id(self, task: str, seed: int) -> str:
        """Return the name of the plain episode: every variant starts from its initial state."""
        return self.plain.episode_id(split_variant(task)[1], seed)


def with_variant(variant: str, task: str) -> str:
    """Return the name of a task under a variant."""
    return f"{variant}{_MARK}{task}"


def split_variant(task: str) -> tuple[str, str]:
    """Return (variant, plain task) of such a name."""
    variant, _, plain = task.partition(_MARK)
    return variant, plain


def act_by_variant(variant_act: Callable[[str], Act]) -> Act:
    """Return an `Act` that asks each variant for its own episodes, under their plain keys.

    `variant_act` builds a variant when its first episode comes.
    """
    acts: dict[str, Act] = {}

    def act(observations: list[Observation], keys: list[Key]) -> Planned:
        chunks: list[np.ndarray] = [np.zeros(0)] * len(keys)
        counts: list[dict[str, int]] = [{} for _ in keys]
        for variant in dict.fromkeys(split_variant(task)[0] for task, _, _ in keys):
            places = [n for n, key in enumerate(keys) if split_variant(key[0])[0] == variant]
            if variant not in acts:
                acts[variant] = variant_act(variant)
            answer = acts[variant](
                [observations[n] for n in places], [_plain(keys[n]) for n in places]
            )
            planned = answer if isinstance(answer, Planned) else Planned(answer, ())
            for place, chunk in zip(places, planned.chunks, strict=True):
                chunks[place] = chunk
            for place, counted in zip(places, planned.counts):
                counts[place] = dict(counted)
        return Planned(np.stack(chunks), counts)

    return act


def varied_episodes(
    variants: Sequence[str], episodes: Sequence[tuple[str, int]]
) -> list[tuple[str, int]]:
    """Return every episode under every variant."""
    return [(with_variant(name, task), seed) for name in variants for task, seed in episodes]


def _plain(key: Key) -> Key:
    return (split_variant(key[0])[1], *key[1:])
