"""Compute hashes that replace random numbers.

The draw depends only on the seed, and on names and places in the files. It therefore needs no
memory of the whole source, does not depend on the number of processes, and a larger count includes
the samples of a smaller one.
"""

import hashlib
from typing import Any

TOP = 1 << 63
"""An upper bound of every key: SQLite's integers are signed."""


def key_of(*parts: Any) -> int:
    """Return a number from 0 to below 2**63 for the seed, the purpose and a name."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def signed(value: int) -> int:
    """Return an unsigned 64-bit number as SQLite stores it."""
    return value - (1 << 64) if value >= TOP else value


def first_bytes(digest: bytes) -> int:
    """Return the first 64 bits of a digest, as SQLite stores them.

    Even among millions of images, no two collide by chance.
    """
    return signed(int.from_bytes(digest[:8]))
