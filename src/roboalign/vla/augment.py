"""Augment camera images by random crops and colors, drawn from a name so that the same copy can
always be made again."""

import hashlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance
from pydantic import Field

from roboalign.core.config import Config


class AugmentConfig(Config):
    """How an augmented copy of an image is drawn. The defaults are GR00T-N1.5's, and openpi's
    except for `hue`."""

    crop: float = Field(default=0.95, gt=0, le=1)
    """Share of both sides of a random window, which is enlarged to the image's size; 1: no crop."""
    brightness: float = Field(default=0.3, ge=0, lt=1)
    """Brightness is multiplied by a random factor within 1 +- this."""
    contrast: float = Field(default=0.4, ge=0, lt=1)
    """The same for contrast."""
    saturation: float = Field(default=0.5, ge=0, lt=1)
    """The same for saturation."""
    hue: float = Field(default=0.08, ge=0, le=0.5)
    """Hue is rotated by at most +- this share of the color circle."""


def augment(
    image: UInt8[np.ndarray, "height width 3"], config: AugmentConfig, *name: str | int
) -> UInt8[np.ndarray, "height width 3"]:
    """Return an augmented copy of `image`; the draw depends only on `name`. Color changes come in
    random order."""
    digest = hashlib.sha256("\0".join(map(str, name)).encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    drawn = _crop(Image.fromarray(image), config.crop, rng)
    kinds = (
        (ImageEnhance.Brightness, config.brightness),
        (ImageEnhance.Contrast, config.contrast),
        (ImageEnhance.Color, config.saturation),
        (None, config.hue),
    )
    for index in rng.permutation(len(kinds)):
        enhance, most = kinds[index]
        if not most:
            continue
        amount = rng.uniform(-most, most)
        drawn = _turn_hue(drawn, amount) if enhance is None else enhance(drawn).enhance(1 + amount)
    return np.asarray(drawn)


def _crop(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    width, height = share * image.width, share * image.height
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    return image.resize(
        image.size, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )


def _turn_hue(image: Image.Image, amount: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(round(255 * amount) % 256)  # hues wrap around
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
