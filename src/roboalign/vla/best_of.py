"""Spend more on a decision: other draws, several noises of a head, or all that an oracle may choose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy_input import NoiseKey, ObservationLike
from roboalign.vla.token_answer import counts_of_answers, medoid_of
from roboalign.vla.token_policy import TokenPolicy


class Decides(Protocol):
    """Whatever turns observations into chunks and counts its decisions."""

    def act_and_count(
        self, observations: Sequence[ObservationLike], noise_keys: Sequence[NoiseKey]
    ) -> tuple[np.ndarray, list[Mapping[str, int]]]:
        """Return chunks [k, H, A] in raw units, and what each decision counts."""
        ...


@dataclass
class Medoid:
    """Sample several noises of a head's flow, and do the chunk that is closest to all others."""

    policy: HeadPolicy
    noises: int

    def act_and_count(
        self, observations: Sequence[ObservationLike], noise_keys: Sequence[NoiseKey]
    ) -> tuple[np.ndarray, list[Mapping[str, int]]]:
        """Return the chosen chunks; the backbone is read once for all noises."""
        chunks, counts = self.policy.answers(observations, noise_keys, self.noises)
        normalized = [self.policy.normalized(row, one) for row, one in zip(chunks, observations)]
        return np.stack([row[medoid_of(one)] for row, one in zip(chunks, normalized)]), counts


@dataclass
class Redrawn:
    """The same policy under other draws: `draw` 0 is its own."""

    policy: Decides
    draw: int

    def act_and_count(
        self, observations: Sequence[ObservationLike], noise_keys: Sequence[NoiseKey]
    ) -> tuple[np.ndarray, list[Mapping[str, int]]]:
        """Return the chunks of the keys of this draw."""
        return self.policy.act_and_count(
            observations, [redrawn_key(key, self.draw) for key in noise_keys]
        )


@dataclass
class Candidates:
    """All that could be chosen among, for an oracle that knows the best one."""

    policy: TokenPolicy | HeadPolicy
    size: int

    def act_and_count(
        self, observations: Sequence[ObservationLike], noise_keys: Sequence[NoiseKey]
    ) -> tuple[np.ndarray, list[Mapping[str, int]]]:
        """Return [1, candidates, H, A] for one observation: every chunk among its answers, or the
        hold if there is none."""
        policy = self.policy
        if isinstance(policy, HeadPolicy):
            return policy.answers(observations, noise_keys, self.size)
        [row] = policy.answers(observations, noise_keys, samples=self.size)
        chunks = [one.chunk for one in row if one.chunk is not None]
        if not chunks:
            chunks = list(policy.settle(observations, noise_keys, [None]))
        held = all(one.chunk is None for one in row)
        return np.stack(chunks)[None], [counts_of_answers(row, held=held)]


def redrawn_key(key: NoiseKey, draw: int) -> NoiseKey:
    """Return the key of another draw; its last part is still the step, the others still name one
    episode."""
    return key if draw == 0 else (*key[:-1], f"draw {draw}", key[-1])
