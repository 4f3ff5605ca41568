"""Convert any stored picture to uint8 RGB: the only place that decides what pixels show.

Files are rotated by their EXIF orientation, transparency is laid on white, 16 bits are scaled to 8,
and palettes and gray become RGB. Arrays are read by shape, type and name: channels last or first,
1, 3 or 4 of them, uint8, uint16 or float from 0 to 1. Ambiguous ones are refused. Depth and
segmentation are never read as color.
"""

import io
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import is_inside

MOST_IMAGE_BYTES = 256 << 20
"""Maximum bytes of one image file; a larger one counts as damaged or hostile."""
MAX_PIXELS = 1 << 26
"""Maximum pixels of one image: a damaged or hostile header can claim a size that fills memory."""
SMALLEST_SIDE = 8
"""Pixels: a 4-axis array that is not uint8 RGB is pictures from this size on, else matrices."""
NOT_COLOR = re.compile(
    r"(^|[^a-z])(depth|disparity|distance|segmentation|seg|semantic|instance|mask|normals?|flow)([^a-z]|$)"
)
"""Names of what looks like a picture but is not: `agentview_depth`, `distance_to_image_plane`."""
ORIENTATION = 0x0112
"""The EXIF tag (Exif 2.32, section 4.6.4)."""
_Result = TypeVar("_Result")


# Files ----------------------------------------------------------------------------------------------------------------


def rgb_of_file(data: bytes) -> np.ndarray:
    """Return uint8 [H, W, 3] of an image file, as a viewer displays it.

    Raises RoboAlignError if it cannot be read.
    """
    return decoded(data, rgb_of_image)


def size_of_file(data: bytes) -> tuple[int, int]:
    """Return (width, height) of an image file as displayed, from its header.

    Raises as `rgb_of_file`.
    """
    return decoded(data, shown_size)


def decoded(data: bytes, read: Callable[[Image.Image], _Result]) -> _Result:
    """Return `read` of the opened file; its declared size is checked before anything is decoded.

    Raises RoboAlignError with the same text on every run, whatever the decoder says.
    """
    # Some libraries switch this on for the whole process: half an image would then be gray below.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            return read(image)
    except Image.UnidentifiedImageError:  # its text contains a memory address
        reason = "no known image format"
    except Exception as error:  # decoders of damaged files fail in many ways
        reason = re.sub(r" at 0x[0-9a-f]+", "", str(error))
    problem = f"not a readable image ({reason})"
    raise RoboAlignError(problem, where="image", fix="replace the image, or drop this record")


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) after the EXIF orientation."""
    turned = _orientation(image) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def _orientation(image: Image.Image) -> int:
    """Return 1 to 8; 1 (upright) also for a damaged EXIF block, as viewers do."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged block can raise nearly anything
        return 1


def plain(image: Image.Image) -> bool:
    """Return whether an image needs no rotation, white background or scaling: the usual case."""
    usual = image.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr")
    return usual and "transparency" not in image.info and _orientation(image) == 1


def rgb_of_image(image: Image.Image) -> np.ndarray:
    """Return uint8 [H, W, 3] of an opened image.

    Raises ValueError if its values have no declared range.
    """
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
    """Return the bytes of an image file below the folder `within`.

    Raises RoboAlignError if it is not a plain file (a FIFO, a device, a folder), if it has more
    than MOST_IMAGE_BYTES and, unless `links`, if a link leaves the folder.
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
    """How an array [H, W], [H, W, C] or [C, H, W] stores a picture."""

    height: int
    width: int
    first: bool
    """Whether the channels come first."""

    def rgb(self, stored: np.ndarray, where: str = "") -> np.ndarray:
        """Return uint8 [H, W, 3] of one picture.

        Raises RoboAlignError if a float is outside 0 to 1.
        """
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
    """Return how one picture of this shape and type is stored; None if it is not a picture.

    If it looks like a picture but is not, the reason is returned. `name` is that of the camera: if
    it says depth, mask or the like, it is never a color image.
    """
    dtype = np.dtype(dtype)
    if len(shape) != 3 or dtype.kind not in "uif" or 0 in shape:
        return None
    # From SMALLEST_SIDE on, a side cannot be mistaken for the channels.
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
    """Scale uint16 (0 to 65,535) or float (0 to 1) to uint8, rounded.

    Raises ValueError on a float outside that range.
    """
    if values.dtype.kind == "u":
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"float pixels go from {low:g} to {high:g}; their range must be 0 to 1")
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W, 3] of uint8 [H, W, 4] laid on white."""
    alpha = rgba[..., 3:].astype(np.uint32)
    color = rgba[..., :3].astype(np.uint32)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
