"""Means over what the optimizer steps of an update measured."""

import math


class Means:
    """Weighted means of named values."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.weights: dict[str, float] = {}

    def add(self, weight: float, **values: float) -> None:
        """Count each value with this weight."""
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + weight * value
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def finite(self) -> bool:
        """Return whether every value so far was finite."""
        return all(map(math.isfinite, self.totals.values()))

    def take(self) -> dict[str, float]:
        """Return the means."""
        return {name: total / self.weights[name] for name, total in self.totals.items()}
