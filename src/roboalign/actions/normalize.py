"""Compute action statistics, and map raw actions to [-1, 1] and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Num
from numpy.typing import ArrayLike

from roboalign.core.errors import RoboAlignError

Method = Literal["quantiles", "min_max", "mean_std"]
ARRAYS = ("q01", "q99", "mean", "std", "minimum", "maximum")
_SETTINGS = {"method": "quantiles", "clip": True}
"""Written to JSON only if they differ from these defaults: statistics of older runs lack both."""

# Raw actions are meters, radians or commands in [-1, 1], stored as float32. A spread of a millionth
# of such a unit (or of the dimension's own magnitude, if that is larger) is rounding noise,
# which dividing by it would amplify.
CONSTANT_SPREAD = 1e-6


PerDimension = Float[np.ndarray, " action"]


@dataclass(frozen=True, eq=False)
class ActionStats:
    """Per-dimension statistics of raw actions, float64 [D]; every checkpoint contains them.

    `normalize` maps the `interval` of each dimension linearly to [-1, 1]. Its ends are q01 and q99
    with the method quantiles (FAST, arXiv 2501.09747; openpi and OpenVLA), the extremes with
    min_max (GR00T-N1.5's data configurations), mean - std and mean + std with mean_std. With
    `clip`, values outside are clipped, as OpenVLA does; openpi does not clip, and FAST tokens can
    represent values beyond 1. mean_std is never clipped.

    The ends can coincide although the values differ, as q01 and q99 do for a gripper that is told
    to move in fewer than one step in a hundred. The interval is then that of the extremes: the
    dimension keeps its information, and `notes` names it. If the extremes coincide too (a spread of
    at most 1e-6 * max(1, |low|, |high|)), the dimension is constant: it normalizes to 0 and
    denormalizes to its mean.
    """

    q01: PerDimension
    q99: PerDimension
    mean: PerDimension
    std: PerDimension
    minimum: PerDimension
    maximum: PerDimension
    count: int
    method: Method = "quantiles"
    clip: bool = True

    @classmethod
    def fit(
        cls,
        actions: Num[np.ndarray, "steps action"],
        *,
        method: Method = "quantiles",
        clip: bool = True,
    ) -> "ActionStats":
        """Compute statistics of raw `actions` [N, D].

        Raises RoboAlignError on no rows, NaN or infinity.
        """
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
            method=method,
            clip=clip,
        )

    @property
    def dim(self) -> int:
        """The number of action dimensions, D."""
        return len(self.q01)

    @property
    def interval(self) -> tuple[PerDimension, PerDimension]:
        """The raw values that normalize to -1 and +1: (low, high), float64 [D] each."""
        low, high = self._ends()
        flat = coincide(low, high)
        return np.where(flat, self.minimum, low), np.where(flat, self.maximum, high)

    @property
    def sparse(self) -> Bool[np.ndarray, " action"]:
        """bool [D]: dimensions that use the extremes because the method's own ends coincide."""
        return coincide(*self._ends()) & ~self.constant

    @property
    def constant(self) -> Bool[np.ndarray, " action"]:
        """bool [D]: dimensions whose spread is too small to divide by."""
        return coincide(*self.interval)

    def _ends(self) -> tuple[PerDimension, PerDimension]:
        if self.method == "quantiles":
            return self.q01, self.q99
        if self.method == "min_max":
            return self.minimum, self.maximum
        return self.mean - self.std, self.mean + self.std

    def sparse_notes(self, names: Sequence[str] = ()) -> list[str]:
        """Return one sentence for each `sparse` dimension; `names` names the dimensions."""
        low = self._ends()[0]
        ends = "1% and 99% quantiles" if self.method == "quantiles" else "mean and mean plus std"
        return [
            f"dimension {_called(d, names)}: its {ends} are both {low[d]:g}, its values go from "
            f"{self.minimum[d]:g} to {self.maximum[d]:g}; it is normalized by minimum and maximum"
            for d in np.flatnonzero(self.sparse)
        ]

    def notes(self, names: Sequence[str] = ()) -> list[str]:
        """Return `sparse_notes`, plus one sentence that names the constant dimensions."""
        found = self.sparse_notes(names)
        if constant := [_called(d, names) for d in np.flatnonzero(self.constant)]:
            found.append(
                f"constant, normalized to 0, decoded to the mean: dimension {', '.join(constant)}"
            )
        return found

    def normalize(
        self, actions: Num[np.ndarray, "*batch action"] | ArrayLike
    ) -> Float[np.ndarray, "*batch {self.dim}"]:
        """Normalize raw [..., D] to float32 [..., D], in [-1, 1] with `clip`.

        Raises RoboAlignError on NaN, infinity or another D.
        """
        actions = self._checked(actions)
        low, high = self.interval
        spread = np.where(self.constant, 1.0, high - low)
        scaled = np.where(self.constant, 0.0, 2.0 * (actions - low) / spread - 1.0)
        if self.clip and self.method != "mean_std":
            scaled = np.clip(scaled, -1.0, 1.0)
        return scaled.astype(np.float32)

    def denormalize(
        self, actions: Num[np.ndarray, "*batch action"] | ArrayLike
    ) -> Float[np.ndarray, "*batch {self.dim}"]:
        """Convert normalized [..., D] to raw float32 [..., D]; linear beyond [-1, 1] too.

        Raises as `normalize`.
        """
        actions = self._checked(actions)
        low, high = self.interval
        raw = low + (actions + 1.0) / 2.0 * (high - low)
        return np.where(self.constant, self.mean, raw).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, for JSON."""
        settings = {
            name: getattr(self, name)
            for name, usual in _SETTINGS.items()
            if getattr(self, name) != usual
        }
        arrays = {name: getattr(self, name).tolist() for name in ARRAYS}
        return arrays | {"count": self.count} | settings

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "") -> "ActionStats":
        """Invert `to_dict`.

        Raises RoboAlignError, naming `where` and the field, on anything invalid.
        """
        fix = "compute the statistics again with ActionStats.fit"
        wrong = (set(values) - set(_SETTINGS)) ^ {*ARRAYS, "count"}
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
        method, clip = (values.get(name, usual) for name, usual in _SETTINGS.items())
        if method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise RoboAlignError(f"method is {method!r}, not one of {known}", where=where, fix=fix)
        if not isinstance(clip, bool):
            raise RoboAlignError(f"clip is {clip!r}, not true or false", where=where, fix=fix)
        return cls(**arrays, count=count, method=method, clip=clip)

    def _checked(self, actions: ArrayLike) -> Float[np.ndarray, "*batch {self.dim}"]:
        actions = np.asarray(actions, dtype=np.float64)
        if actions.ndim == 0 or actions.shape[-1] != self.dim:
            raise RoboAlignError(
                f"actions have shape {list(actions.shape)}, the statistics have {self.dim} dimensions"
            )
        _refuse_non_finite(actions)
        return actions


def coincide(low: ArrayLike, high: ArrayLike) -> Bool[np.ndarray, "*batch"]:
    """Return bool [D]: whether only rounding noise separates `low` and `high`."""
    magnitude = np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))
    return np.asarray(np.subtract(high, low) <= CONSTANT_SPREAD * magnitude)


def _called(dimension: Any, names: Sequence[str]) -> str:
    return f"{dimension} ({names[dimension]})" if names else str(dimension)


def _refuse_non_finite(actions: np.ndarray) -> None:
    bad = ~np.isfinite(actions)
    if bad.any():
        counts = bad.reshape(-1, actions.shape[-1]).sum(axis=0)
        found = ", ".join(f"{counts[d]} in dimension {d}" for d in np.flatnonzero(counts))
        raise RoboAlignError(
            f"NaN or infinite values: {found}", where="actions", fix="remove or repair those frames"
        )


def _vector(value: Any, where: str, fix: str) -> PerDimension:
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
