"""Any stored picture as uint8 RGB: the one place that decides what a file or an array of pixels shows.

Files are turned as their EXIF orientation says, transparency is laid on white, 16 bits are scaled to 8, palettes and
gray become RGB. Arrays are read by shape, type and name: channels last or first, 1, 3 or 4 of them, uint8, uint16 or
float from 0 to 1. What could be read in two ways is refused. Depth and segmentation are never read as color.
"""

import io
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import is_inside

MOST_IMAGE_BYTES = 256 << 20
"""Bytes of one image file; what is larger is taken for damage, or for a bomb."""
MAX_PIXELS = 1 << 26
"""Pixels of one image: a damaged or hostile header can claim a size that fills the memory."""
SMALLEST_SIDE = 8
"""Pixels: a 4-axis array that is not uint8 RGB counts as pictures from this size on, not as a row of matrices."""
NOT_COLOR = re.compile(
    r"(^|[^a-z])(depth|disparity|distance|segmentation|seg|semantic|instance|mask|normals?|flow)([^a-z]|$)"
)
"""Names of what looks like a picture and is none: `agentview_depth`, `distance_to_image_plane`."""
ORIENTATION = 0x0112
"""The EXIF tag (Exif 2.32, section 4.6.4)."""
_Result = TypeVar("_Result")


# Files ----------------------------------------------------------------------------------------------------------------


def rgb_of_file(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of an image file, as a viewer shows it. Raises RoboAlignError where it cannot be read."""
    return decoded(data, rgb_of_image)


def size_of_file(data: bytes) -> tuple[int, int]:
    """(width, height) of an image file as it is shown, from its header. Raises as `rgb_of_file`."""
    return decoded(data, shown_size)


def decoded(data: bytes, read: Callable[[Image.Image], _Result]) -> _Result:
    """`read` of the opened file; nothing is decoded before its declared size was checked.

    Raises RoboAlignError with the same text on every run, whatever the decoder says.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            return read(image)
    except Image.UnidentifiedImageError:  # its text holds an address in memory
        reason = "no known image format"
    except Exception as error:  # decoders of damaged files fail in many ways
        reason = re.sub(r" at 0x[0-9a-f]+", "", str(error))
    problem = f"not a readable image ({reason})"
    raise RoboAlignError(problem, where="image", fix="replace the image, or drop this record")


def shown_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the EXIF orientation."""
    turned = _orientation(image) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1, upright, also where the EXIF block is damaged, as viewers do."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged block can raise nearly anything
        return 1


def plain(image: Image.Image) -> bool:
    """Whether an image needs neither turning nor laying on white nor scaling: the usual case."""
    usual = image.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr")
    return usual and "transparency" not in image.info and _orientation(image) == 1


def rgb_of_image(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of an opened image. Raises ValueError where its values have no declared range."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if sixteen:
        return np.repeat(_scaled(np.asarray(image).astype(np.uint16))[..., None], 3, axis=-1)
    if image.mode == "F":
        return np.repeat(_scaled(np.asarray(image))[..., None], 3, axis=-1)
    if image.mode == "I":
        raise ValueError("32-bit integers have no declared range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def read_picture_file(path: Path, within: Path, *, links: bool = False) -> bytes:
    """The bytes of an image file below the folder `within`.

    Raises RoboAlignError where it is no plain file (a FIFO, a device, a folder), where it has more than
    MOST_IMAGE_BYTES, and unless `links`, where a link leads out of the folder.
    """
    where = str(path)
    try:
        if not links and not is_inside(path, within):
            problem = "a link leads out of the image folder"
            raise RoboAlignError(problem, where=where, fix="copy the file, or set `links: true`")
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # reading a FIFO or a device may never end
            raise RoboAlignError("not a plain file", where=where, fix="replace it by an image")
        if state.st_size > MOST_IMAGE_BYTES:
            problem = f"{state.st_size} bytes are too many for an image"
            raise RoboAlignError(problem, where=where, fix="store it smaller")
        return path.read_bytes()
    except FileNotFoundError:
        fix = "unpack the images there, or give their folder"
        raise RoboAlignError("the image does not exist", where=where, fix=fix) from None
    except OSError as error:
        problem = f"the image cannot be read ({error.strerror})"
        raise RoboAlignError(problem, where=where, fix="check its permissions") from None
    except ValueError:
        problem = "the image cannot be read (a zero byte in its name)"
        raise RoboAlignError(problem, where=where, fix="correct the name") from None


# Arrays ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PixelLayout:
    """How an array [H, W], [H, W, C] or [C, H, W] holds a picture."""

    height: int
    width: int
    first: bool
    """Whether the channels come first."""

    def rgb(self, stored: np.ndarray, where: str = "") -> np.ndarray:
        """uint8 [H, W, 3] of one picture. Raises RoboAlignError where a float is outside of 0 to 1."""
        stored = np.asarray(stored)
        if self.first:
            stored = np.moveaxis(stored, 0, -1)
        if stored.ndim == 2:
            stored = stored[..., None]
        try:
            pixels = stored if stored.dtype == np.uint8 else _scaled(stored)
        except ValueError as error:
            fix = "store uint8, or divide by the range"
            raise RoboAlignError(str(error), where=where, fix=fix) from None
        if pixels.shape[-1] == 4:
            return _on_white(pixels)
        return np.ascontiguousarray(np.broadcast_to(pixels, (self.height, self.width, 3)))


def layout_of(name: str, shape: tuple[int, ...], dtype: Any) -> PixelLayout | str | None:
    """How one picture of this shape and type is stored; why not, where it looks like one and is none; else None.

    `name` is that of the camera: what it calls depth, a mask or the like is never a color image.
    """
    dtype = np.dtype(dtype)
    if len(shape) != 3 or dtype.kind not in "uif" or 0 in shape:
        return None
    # From SMALLEST_SIDE on, the side and the channels cannot be mistaken for each other.
    last = shape[2] in (1, 3, 4) and min(shape[:2]) >= SMALLEST_SIDE
    first = shape[0] in (1, 3, 4) and min(shape[1:]) >= SMALLEST_SIDE
    small = dtype == np.uint8 and shape[2] == 3 and not last and not first
    if not last and not first and not small:
        return None
    if NOT_COLOR.search(name.lower()):
        return "its name says that it is no color image"
    if small and shape[0] == 3:
        return f"the channels of {list(shape)} could be first or last"
    last = last or small
    channels = shape[2] if last else shape[0]
    if channels == 1 and dtype != np.uint8:
        return f"one channel of {dtype}: depth or a mask, not color"
    if dtype.kind == "i" or (dtype.kind == "u" and dtype.itemsize > 2):
        return f"{dtype} has no declared range; uint8, uint16 and float from 0 to 1 are read"
    height, width = shape[:2] if last else shape[1:]
    return PixelLayout(height, width, first=not last)


def _scaled(values: np.ndarray) -> np.ndarray:
    """uint8 of uint16 (0 to 65,535) or float (0 to 1), rounded. Raises ValueError on a float outside."""
    if values.dtype.kind == "u":
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"float pixels go from {low:g} to {high:g}; their range must be 0 to 1")
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of uint8 [H, W, 4] laid on white."""
    alpha = rgba[..., 3:].astype(np.uint32)
    color = rgba[..., :3].astype(np.uint32)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
