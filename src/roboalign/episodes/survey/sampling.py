"""Summarize a stream of any length in bounded memory: exact moments, uniform samples, repeats."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Reservoir:
    """A uniform sample of at most `size` of the rows of a stream (algorithm R).

    `rows` are those kept, in no particular order.
    """

    def __init__(self, size: int, shape: tuple[int, ...], rng: np.random.Generator) -> None:
        self.store = np.empty((size, *shape), dtype=np.float32)
        self.rng, self.passed = rng, 0

    def places(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which of the next `count` rows are kept, and where.

        If two share a place, the later one stays.
        """
        numbers = self.passed + np.arange(count)
        places = np.where(numbers < len(self.store), numbers, self.rng.integers(0, numbers + 1))
        self.passed += count
        kept = np.flatnonzero(places < len(self.store))
        return kept, places[kept]

    @property
    def rows(self) -> np.ndarray:
        """Return float32 [at most size, ...]."""
        return self.store[: self.passed]


class Spread(Generic[T]):
    """Up to `size` items of a stream, spread over their groups.

    No group has two items more than another one that could have more. Which items of a group stay,
    and which groups if there are more than places, is drawn at random and does not depend on their
    order.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.passed = size, seed, 0
        self.rng = np.random.default_rng([seed, 3])
        self.kept: list[tuple[int, float, str, T]] = []
        """place in the stream, random rank of the item, group, item"""

    def add(self, group: str, item: T) -> None:
        """Add the next item of the stream."""
        self.kept.append((self.passed, float(self.rng.random()), group, item))
        self.passed += 1
        if len(self.kept) > self.size:
            members = Counter(group for _, _, group, _ in self.kept)
            fullest = max(members, key=lambda name: (members[name], self._lot(name)))
            self.kept.remove(
                max(
                    (entry for entry in self.kept if entry[2] == fullest),
                    key=lambda entry: entry[1],
                )
            )

    @property
    def items(self) -> list[T]:
        """Return the kept items, in the order of the stream."""
        return [item for _, _, _, item in self.kept]

    def _lot(self, group: str) -> bytes:
        """Return the same rank each time for a group: one that was dropped stays out."""
        return hashlib.blake2b(f"{self.seed} {group}".encode(), digest_size=8).digest()


class Moments:
    """Exact count, mean, std, minimum and maximum of each column.

    They do not depend on the order (Welford, merged by batches).
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean, self.squares = np.zeros(width), np.zeros(width)
        self.minimum, self.maximum = np.full(width, np.inf), np.full(width, -np.inf)

    def add(self, values: np.ndarray) -> None:
        """Count the rows of `values` [T, D], T > 0."""
        values = values.astype(np.float64)
        count, mean = len(values), values.mean(axis=0)
        apart, total = mean - self.mean, self.count + count
        self.squares += ((values - mean) ** 2).sum(axis=0) + apart**2 * (self.count * count / total)
        self.mean, self.count = self.mean + apart * (count / total), total
        self.minimum = np.minimum(self.minimum, values.min(axis=0))
        self.maximum = np.maximum(self.maximum, values.max(axis=0))

    @property
    def std(self) -> np.ndarray:
        """Return the std of the whole stream: divided by the count."""
        return np.sqrt(self.squares / max(self.count, 1))


class Highest:
    """For each column, the owners of the `count` highest values, the highest first."""

    def __init__(self, width: int, count: int = 3) -> None:
        self.found: list[list[tuple[float, str]]] = [[] for _ in range(width)]
        self.bar, self.count = np.full(width, -np.inf), count

    def add(self, values: np.ndarray, owner: str) -> None:
        """Add one value per column [D]; each owner is added once."""
        for column in np.flatnonzero(values > self.bar):
            ranked = sorted(
                [*self.found[column], (float(values[column]), owner)], key=lambda pair: -pair[0]
            )
            self.found[column] = ranked[: self.count]
            if len(ranked) >= self.count:
                self.bar[column] = ranked[self.count - 1][0]


@dataclass(frozen=True)
class Duplicates:
    """Contents that occurred in more than one episode."""

    contents: int
    """Distinct contents that were repeated."""
    copies: int
    """Number of repeated occurrences."""
    examples: list[list[str]]
    """Episodes that share a content (the first 3), for the first 5 contents."""
    watched: float
    """Share of all contents that were compared; their hash decides which."""


class SeenContents:
    """Contents that occur more than once.

    Remembers at most `limit`. Beyond that, the half with the higher hashes is dropped, so that
    either all copies of a content are seen or none.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.watched, self.distinct = limit, 1.0, 0
        self.known: dict[
            int, tuple[int, int, tuple[str, ...]]
        ] = {}  # hash -> its number, count, first owners

    def add(self, content: bytes, owner: str) -> int:
        """Count a content; return its number among the distinct ones, equal for every copy."""
        key = int.from_bytes(hashlib.blake2b(content, digest_size=12).digest())
        if key >= self.watched * 2**96:
            return key
        number, times, owners = self.known.get(key, (self.distinct, 0, ()))
        self.distinct += not times
        self.known[key] = number, times + 1, (*owners, owner)[:3]
        while len(self.known) > self.limit:
            self.watched /= 2
            self.known = {k: entry for k, entry in self.known.items() if k < self.watched * 2**96}
        return number

    def duplicates(self) -> Duplicates:
        """Return what was repeated so far."""
        repeated = sorted(entry for entry in self.known.values() if entry[1] > 1)
        copies = sum(times - 1 for _, times, _ in repeated)
        return Duplicates(
            len(repeated), copies, [list(owners) for _, _, owners in repeated[:5]], self.watched
        )
