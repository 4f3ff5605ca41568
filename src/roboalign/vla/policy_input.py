"""Define what a policy is given for one decision: an observation and a key of its noise."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Num, UInt8

from roboalign.core.errors import RoboAlignError

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


def shown_images(
    images: Mapping[str, UInt8[np.ndarray, "_ _ 3"]],
    cameras: Sequence[str],
    *,
    side_by_side: bool = True,
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Return the images that an MLLM is shown of these cameras: one each, or all as one image, left
    to right.

    Raises RoboAlignError if a camera is missing, or if images to show side by side differ in
    height.
    """
    missing = [camera for camera in cameras if camera not in images]
    if missing:
        raise RoboAlignError(
            f"no image of camera {missing[0]!r}; there are {sorted(images)}",
            where="observation",
        )
    shown = [images[camera] for camera in cameras]
    heights = {image.shape[0] for image in shown}
    if not side_by_side:
        return shown
    if len(heights) > 1:
        raise RoboAlignError(
            f"cameras {tuple(cameras)} differ in height: {sorted(heights)}",
            where="observation",
            fix="show them as images (backbone.cameras_as), or render them alike",
        )
    return [np.concatenate(shown, axis=1)]
