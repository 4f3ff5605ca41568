"""Resize images as other people's policies were shown them."""

import numpy as np
from PIL import Image


def resize_with_padding(image: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 [H, W, 3] to [size, size, 3], bilinear, with the aspect kept and the rest black.

    Like openpi's `resize_with_pad`, it cuts off fractions of a pixel.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return np.ascontiguousarray(image)
    longest = max(height, width)
    new = max(1, width * size // longest), max(1, height * size // longest)
    resized = np.asarray(
        Image.fromarray(np.ascontiguousarray(image)).resize(new, Image.Resampling.BILINEAR)
    )
    canvas = np.zeros((size, size, 3), np.uint8)
    top, left = (size - new[1]) // 2, (size - new[0]) // 2
    canvas[top : top + new[1], left : left + new[0]] = resized
    return canvas
