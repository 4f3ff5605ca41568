"""Hashes that stand in for chance: what is drawn depends on the seed, and on names and places in the files, alone.

So a draw needs no memory of the whole source, does not depend on how many processes share the work, and a larger count
holds the smaller one.
"""

import hashlib
from typing import Any

TOP = 1 << 63
"""Above every key: SQLite's integers have a sign."""


def key_of(*parts: Any) -> int:
    """A number from 0 to below 2**63, of the seed, what it is for, and a name."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def signed(value: int) -> int:
    """An unsigned 64-bit number as SQLite stores it."""
    return value - (1 << 64) if value >= TOP else value


def first_bytes(digest: bytes) -> int:
    """The first 64 bits of a digest, as SQLite stores them: with millions of images no two meet by chance."""
    return signed(int.from_bytes(digest[:8]))
