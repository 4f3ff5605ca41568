"""Decide whether two image files show the same picture: by bytes, or re-encoded and rescaled.

A 64-bit perceptual hash cannot distinguish two frames of a static camera: what moves is smaller
than what the hash resolves. It is therefore only a filter, and its matches are compared cell by
cell. On frames of BridgeV2 (64 pixels per side), JPEG of quality 80 and rescaling to between half
and 2.4 times the size changed no cell of a 16 x 16 thumbnail by more than 7 of 255 gray levels. In
99 of 100 pairs of frames two steps apart, the robot's movement changed some cell by more than 24.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from roboalign.episodes.pictures import decoded, plain, rgb_of_image

SIDE = 16
BANDS = 8
"""Number of bytes in a hash: two that differ in at most 7 of 64 bits share one of them."""
COSINES = np.cos(np.pi * np.arange(8)[:, None] * (np.arange(SIDE) + 0.5) / SIDE)
"""The 8 lowest frequencies of the discrete cosine transform."""
LOOK_DTYPE = np.dtype([("sha", "<i8"), ("look", "<u8"), ("thumb", "u1", (SIDE * SIDE,))])
"""An image that training must exclude: first bytes of its sha256, hash and thumbnail."""


def thumbnail(data: bytes) -> np.ndarray:
    """Return uint8 [16, 16], the gray level of each cell.

    Raises RoboAlignError if the file is not a complete image.
    """
    return decoded(data, _thumbnail)


def _thumbnail(image: Image.Image) -> np.ndarray:
    if plain(image):
        image.draft("L", (8 * SIDE, 8 * SIDE))  # decodes a JPEG no larger than needed
        gray = image if image.mode == "L" else image.convert("RGB").convert("L")
    else:
        gray = Image.fromarray(rgb_of_image(image)).convert("L")
    return np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.HAMMING))


def look_of(thumb: np.ndarray) -> int:
    """Return 64 bits, one for each of the 8 x 8 lowest frequencies of the thumbnail.

    A bit says whether that frequency is above their median; the mean is left out.
    """
    low = (COSINES @ thumb.astype(np.float64) @ COSINES.T).ravel()
    low[0] = 0.0
    median = np.partition(low, (31, 32))[
        31:33
    ].mean()  # of 64 numbers; np.median takes four times as long
    return int.from_bytes(np.packbits(low > median).tobytes())


@dataclass
class SeenImages:
    """Images to compare with, found without a full scan.

    Takes 56 bytes per image in memory, and 272 for `images`, which may be a memory map on disk.
    """

    images: np.ndarray
    """LOOK_DTYPE [N]."""
    distance: int
    difference: int
    few: int = 4_096
    """Up to this many hashes are compared one by one, which is faster than selecting candidates."""

    def __post_init__(self) -> None:
        self.looks, self.thumbs = np.ascontiguousarray(self.images["look"]), self.images["thumb"]
        octets = self.looks.view(np.uint8).reshape(-1, BANDS)
        self.by_octet = [
            np.argsort(octets[:, band], kind="stable").astype(np.uint32) for band in range(BANDS)
        ]
        self.starts = [
            np.searchsorted(octets[order, band], np.arange(257))
            for band, order in enumerate(self.by_octet)
        ]
        self.by_sha = np.argsort(self.images["sha"], kind="stable")
        self.shas = self.images["sha"][self.by_sha]

    def exact(self, sha: int) -> np.ndarray:
        """Return the numbers of the images with these bytes."""
        return self.by_sha[
            np.searchsorted(self.shas, sha) : np.searchsorted(self.shas, sha, side="right")
        ]

    def alike(self, look: int) -> np.ndarray:
        """Return the numbers of the images whose hash is near this one: the filter."""
        if len(self.looks) <= self.few:
            return np.flatnonzero(np.bitwise_count(self.looks ^ np.uint64(look)) <= self.distance)
        octets = np.array([look], dtype="<u8").view(np.uint8)
        found = np.concatenate(
            [
                order[start[octet] : start[octet + 1]]
                for order, start, octet in zip(self.by_octet, self.starts, octets.astype(int))
            ]
        )
        return np.unique(
            found[np.bitwise_count(self.looks[found] ^ np.uint64(look)) <= self.distance]
        )

    def near(self, look: int, thumb: np.ndarray) -> np.ndarray:
        """Return the numbers of the images with the same picture as this hash and thumbnail."""
        found = self.alike(look)
        if not found.size:
            return found
        apart = np.abs(self.thumbs[found].astype(np.int16) - thumb.reshape(-1).astype(np.int16))
        return found[apart.max(axis=1) <= self.difference]
