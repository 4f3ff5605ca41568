"""Define what a policy is given for one decision: an observation and a key of its noise."""

import hashlib
from typing import Protocol

import numpy as np
from jaxtyping import Num, UInt8

NoiseKey = tuple[str | int, ...]
"""Identifies one decision, for example (task, seed, step); it determines what is drawn for it. Its
parts before the last name the episode, and the last is the step in it."""


def key_digest(key: NoiseKey) -> bytes:
    """Return 8 bytes that a key determines, in every process alike."""
    return hashlib.sha256("\0".join(map(str, key)).encode()).digest()[:8]


class ObservationLike(Protocol):
    """Input of a policy: any object with these attributes."""

    @property
    def images(self) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
        """Images by camera, RGB."""
        ...

    @property
    def state(self) -> Num[np.ndarray, " state"]:
        """Proprioception."""
        ...

    @property
    def instruction(self) -> str:
        """What the robot is told to do, in English."""
        ...
