"""Score points against the mask or the polygon of an item."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

PointRule = Literal["mean", "any", "first"]
Polygon = Sequence[tuple[float, float]]
Corners = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are outside."""


def mask_score(
    mask: np.ndarray,
    points: Sequence[tuple[int, int]],
    rule: PointRule,
    boxes: Sequence[Corners] = (),
) -> float:
    """Return the score of pixels (x, y) and boxes under a mask, bool [H, W].

    `mean`: the share of the points inside it; a box counts as all its pixels in the image. `any`:
    1 if one point is inside. `first`: 1 if the first one is. A point outside of the image is a
    miss, and no point at all is 0.
    """
    hits = [_inside(mask, x, y) for x, y in points]
    if rule == "first":
        return float(hits[0]) if hits else 0.0
    if rule == "any":
        return float(any(hits))
    covered = [_covered(mask, box) for box in boxes]
    count = len(hits) + sum(part.size for part in covered)
    return float(sum(hits) + sum(int(part.sum()) for part in covered)) / count if count else 0.0


def outside(points: Sequence[tuple[int, int]], size: tuple[int, int]) -> int:
    """Return how many pixels (x, y) are outside of an image (width, height)."""
    return sum(not (0 <= x < size[0] and 0 <= y < size[1]) for x, y in points)


def in_polygon(x: float, y: float, corners: Polygon) -> bool:
    """Return whether a point is inside, by the even-odd rule of a ray to the right.

    The side of an edge that counts is that of RoboSpatial-Eval's script: a point on a lower or
    right edge is outside.
    """
    inside = False
    for (x1, y1), (x2, y2) in zip(corners, [corners[-1], *corners[:-1]]):
        if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
            inside = not inside
    return inside


def _inside(mask: np.ndarray, x: int, y: int) -> bool:
    height, width = mask.shape
    return bool(0 <= x < width and 0 <= y < height and mask[y, x])


def _covered(mask: np.ndarray, box: Corners) -> np.ndarray:
    left, top, right, bottom = (max(0, edge) for edge in box)
    return mask[top:bottom, left:right]
