"""Store frames of a video as image files: PNG, or JPEG and WebP of a stated quality."""

import io
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field

from roboalign.core.config import Config
from roboalign.episodes.episode import Episode, encode_png


class FrameFile(Config):
    """How a frame of a video becomes an image file; stored image files stay as they are."""

    format: Literal["png", "jpeg", "webp"] = "png"
    """PNG keeps every decoded pixel, at some 28 times a video's size."""
    quality: int = Field(95, ge=1, le=100)
    """Of jpeg and webp. JPEG keeps the colors at full resolution (4:4:4)."""


def stored_frame(episode: Episode, camera: str, t: int, file: FrameFile) -> bytes:
    """Return the image file of frame t: as the episode stores it, or of a video as `file` says.

    Raises RoboAlignError as `Episode.png` and `Episode.frame`.
    """
    pixels = getattr(episode.images.get(camera), "frame", None)
    if pixels is None or file.format == "png":
        return episode.png(camera, t)
    return encode_frame(pixels(t), file)


def encode_frame(frame: UInt8[np.ndarray, "height width 3"], file: FrameFile) -> bytes:
    """Return the frame as an image file."""
    if file.format == "png":
        return encode_png(frame)
    more = {"subsampling": 0} if file.format == "jpeg" else {"method": 4}
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, file.format, quality=file.quality, **more)
    return buffer.getvalue()
