"""Settings of what training must exclude: held-out samples and evaluation sets."""

from typing import Any

from pydantic import Field

from roboalign.core.config import Config


class HeldoutConfig(Config):
    """What is excluded from training by its image, or by its episode if it has one."""

    share: float = Field(0.01, gt=0, lt=0.5)
    """Share of the images or episodes."""


class HoldoutConfig(Config):
    """An evaluation set; it may be written as its path alone."""

    path: str
    """A folder of conversations (heldout.parquet, else every shard), or robot data (every frame of every camera)."""
    format: str | None = None
    """For robot data: its format, if the files do not show it."""
    read: dict[str, Any] = Field(default_factory=dict)
    """For robot data: options of the format's reader. Images are compared as read by it, for
    example with {flip: true} for LIBERO."""


class NearConfig(Config):
    """When two images count as the same picture, re-encoded or rescaled (looks.py)."""

    distance: int = Field(7, ge=0, le=7)
    """Maximum number of differing bits of their 64-bit perceptual hashes: a first filter."""
    difference: int = Field(12, ge=0, le=255)
    """Maximum difference of any thumbnail cell (16 x 16), in gray levels of 255: what decides."""
