"""When two image files show the same picture: by their bytes, or re-encoded and rescaled.

A 64-bit perceptual hash cannot tell apart two frames of a camera that does not move: what moves is smaller than what it
sees. So it is a sieve only, and what passes is compared cell by cell. On frames of BridgeV2 (64 pixels a side) JPEG of
quality 80 and rescaling to between half and 2.4 times the size changed no cell of a 16 x 16 thumbnail by more than 7 of
255 gray levels; in 99 of 100 pairs of frames two steps apart, the robot's movement changed some cell by more than 24.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from roboalign.episodes.pictures import decoded, plain, rgb_of_image

SIDE = 16
BANDS = 8
"""Two hashes that differ in at most 7 of 64 bits have one of 8 bytes in common."""
COSINES = np.cos(np.pi * np.arange(8)[:, None] * (np.arange(SIDE) + 0.5) / SIDE)
"""The 8 lowest frequencies of the discrete cosine transform."""
LOOK_DTYPE = np.dtype([("sha", "<i8"), ("look", "<u8"), ("thumb", "u1", (SIDE * SIDE,))])
"""An image that must not be in training: the first bytes of its sha256, its hash and its thumbnail."""


def thumbnail(data: bytes) -> np.ndarray:
    """uint8 [16, 16], the gray of each cell. Raises RoboAlignError where the file is no whole image."""
    return decoded(data, _thumbnail)


def _thumbnail(image: Image.Image) -> np.ndarray:
    if plain(image):
        image.draft("L", (8 * SIDE, 8 * SIDE))  # a JPEG is decoded no larger than needed
        gray = image if image.mode == "L" else image.convert("RGB").convert("L")
    else:
        gray = Image.fromarray(rgb_of_image(image)).convert("L")
    return np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.HAMMING))


def look_of(thumb: np.ndarray) -> int:
    """64 bits: which of the 8 x 8 lowest frequencies of the thumbnail, without its mean, are above their median."""
    low = (COSINES @ thumb.astype(np.float64) @ COSINES.T).ravel()
    low[0] = 0.0
    median = np.partition(low, (31, 32))[
        31:33
    ].mean()  # of 64 numbers; np.median takes four times as long
    return int.from_bytes(np.packbits(low > median).tobytes())


@dataclass
class SeenImages:
    """Images to compare with, found without going through all of them. Takes 56 bytes an image in memory, and 272
    where `images` lies: on disk, where it is a memory map."""

    images: np.ndarray
    """LOOK_DTYPE [N]."""
    distance: int
    difference: int
    few: int = 4_096
    """So many hashes are compared one by one: that takes less time than finding which to compare."""

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
        """Numbers of the images with these bytes."""
        return self.by_sha[
            np.searchsorted(self.shas, sha) : np.searchsorted(self.shas, sha, side="right")
        ]

    def alike(self, look: int) -> np.ndarray:
        """Numbers of the images whose hash is near this one: the sieve."""
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
        """Numbers of the images that are the same picture as the one with this hash and thumbnail."""
        found = self.alike(look)
        if not found.size:
            return found
        apart = np.abs(self.thumbs[found].astype(np.int16) - thumb.reshape(-1).astype(np.int16))
        return found[apart.max(axis=1) <= self.difference]
