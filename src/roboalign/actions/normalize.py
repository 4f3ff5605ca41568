"""Action statistics and the map between raw actions and [-1, 1]."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from roboalign.core.errors import RoboAlignError

ARRAYS = ("q01", "q99", "mean", "std", "minimum", "maximum")

# Raw actions are metres, radians or commands in [-1, 1], stored as float32. A spread of a millionth of such a unit
# (or of the dimension's own magnitude, where that is larger) is rounding noise: dividing by it would blow it up.
CONSTANT_SPREAD = 1e-6


@dataclass(frozen=True, eq=False)
class ActionStats:
    """Per-dimension statistics of raw actions, float64 [D]; they travel inside every checkpoint.

    `normalize` maps q01 to -1 and q99 to +1 and clips, as FAST (arXiv 2501.09747) and openpi do. A dimension with
    q99 - q01 <= 1e-6 * max(1, |q01|, |q99|) counts as constant: it normalises to 0 and denormalises to its mean.
    """

    q01: np.ndarray
    q99: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    count: int

    @classmethod
    def fit(cls, actions: np.ndarray) -> "ActionStats":
        """Statistics of `actions` [N, D], raw units. Raises RoboAlignError on no rows, NaN or infinity."""
        actions = np.asarray(actions, dtype=np.float64)
        if actions.ndim != 2 or 0 in actions.shape:
            raise RoboAlignError(
                f"statistics need actions of shape [N, D], got {list(actions.shape)}",
                where="actions",
            )
        _refuse_non_finite(actions)
        q01, q99 = np.quantile(actions, [0.01, 0.99], axis=0)
        return cls(
            q01=q01,
            q99=q99,
            mean=actions.mean(axis=0),
            std=actions.std(axis=0),
            minimum=actions.min(axis=0),
            maximum=actions.max(axis=0),
            count=len(actions),
        )

    @property
    def dim(self) -> int:
        """D, the number of action dimensions."""
        return len(self.q01)

    @property
    def constant(self) -> np.ndarray:
        """bool [D]: the dimensions whose spread is too small to divide by."""
        magnitude = np.maximum(1.0, np.maximum(np.abs(self.q01), np.abs(self.q99)))
        return self.q99 - self.q01 <= CONSTANT_SPREAD * magnitude

    def normalize(self, actions: ArrayLike) -> np.ndarray:
        """Raw [..., D] to float32 [..., D] in [-1, 1]. Raises RoboAlignError on NaN, infinity or another D."""
        actions = self._checked(actions)
        spread = np.where(self.constant, 1.0, self.q99 - self.q01)
        scaled = np.where(self.constant, 0.0, 2.0 * (actions - self.q01) / spread - 1.0)
        return np.clip(scaled, -1.0, 1.0).astype(np.float32)

    def denormalize(self, actions: ArrayLike) -> np.ndarray:
        """Normalised [..., D] to raw float32 [..., D]; linear beyond [-1, 1] too. Raises as `normalize`."""
        actions = self._checked(actions)
        raw = self.q01 + (actions + 1.0) / 2.0 * (self.q99 - self.q01)
        return np.where(self.constant, self.mean, raw).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {name: getattr(self, name).tolist() for name in ARRAYS} | {"count": self.count}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "") -> "ActionStats":
        """The inverse of `to_dict`. Raises RoboAlignError, naming `where` and the field, on anything invalid."""
        fix = "compute the statistics again with ActionStats.fit"
        wrong = set(values) ^ {*ARRAYS, "count"}
        if wrong:
            problems = [
                f"{'unknown' if name in values else 'missing'} field `{name}`"
                for name in sorted(wrong)
            ]
            raise RoboAlignError(", ".join(problems), where=where, fix=fix)
        arrays = {
            name: _vector(values[name], f"{where}: {name}" if where else name, fix)
            for name in ARRAYS
        }
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise RoboAlignError(f"fields differ in length: {lengths}", where=where, fix=fix)
        for low, high in (("q01", "q99"), ("minimum", "maximum")):
            if (bad := np.flatnonzero(arrays[low] > arrays[high])).size:
                raise RoboAlignError(f"{low} > {high} in dimension {bad[0]}", where=where, fix=fix)
        if (arrays["std"] < 0).any():
            raise RoboAlignError("std is negative", where=where, fix=fix)
        count = values["count"]
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise RoboAlignError(
                f"count must be a positive integer, got {count!r}", where=where, fix=fix
            )
        return cls(**arrays, count=count)

    def _checked(self, actions: ArrayLike) -> np.ndarray:
        actions = np.asarray(actions, dtype=np.float64)
        if actions.ndim == 0 or actions.shape[-1] != self.dim:
            raise RoboAlignError(
                f"actions have shape {list(actions.shape)}, the statistics have {self.dim} dimensions"
            )
        _refuse_non_finite(actions)
        return actions


def _refuse_non_finite(actions: np.ndarray) -> None:
    bad = ~np.isfinite(actions)
    if bad.any():
        counts = bad.reshape(-1, actions.shape[-1]).sum(axis=0)
        found = ", ".join(f"{counts[d]} in dimension {d}" for d in np.flatnonzero(counts))
        raise RoboAlignError(
            f"NaN or infinite values: {found}", where="actions", fix="remove or repair those frames"
        )


def _vector(value: Any, where: str, fix: str) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise RoboAlignError("not a list of numbers", where=where, fix=fix) from None
    if array.ndim != 1 or array.size == 0:
        raise RoboAlignError(
            f"expected a list of numbers, got shape {list(array.shape)}", where=where, fix=fix
        )
    if not np.isfinite(array).all():
        raise RoboAlignError(
            f"not finite in dimension {np.flatnonzero(~np.isfinite(array))[0]}",
            where=where,
            fix=fix,
        )
    return array
