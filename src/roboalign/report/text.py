"""Format numbers as text: one function for each kind, with its interval and count."""

from collections.abc import Callable, Mapping
from typing import Any

NOT_RUN = "not run"
MINUS = "−"


def number_text(value: float | None, digits: int = 3) -> str:
    """Format `0.1234` as `0.123`; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def percent(share: float | None) -> str:
    """Format `0.531` as `53.1%`."""
    return "–" if share is None else f"{100 * share:.1f}%".replace("-", MINUS)


def signed_text(value: float | None, digits: int = 3) -> str:
    """Format a difference, always with its sign."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", MINUS)


def points(share: float | None) -> str:
    """Format a difference of two shares in percentage points, with its sign."""
    return "–" if share is None else f"{100 * share:+.1f}".replace("-", MINUS)


WRITERS: dict[str, Callable[[float | None], str]] = {
    "percent": percent,
    "number": number_text,
    "points": points,
    "signed": signed_text,
}


def interval(estimate: Mapping[str, Any], kind: str) -> str:
    """Format an interval: `50.2–56.0`, or `−1.0 to +2.0` for a difference; `kind` is a key of
    WRITERS. Empty without bounds."""
    if estimate["low"] is None:
        return ""
    low, high = WRITERS[kind](estimate["low"]), WRITERS[kind](estimate["high"])
    return (
        f"{low} to {high}"
        if kind in ("points", "signed")
        else f"{low.rstrip('%')}–{high.rstrip('%')}"
    )


def value(estimate: Mapping[str, Any], kind: str) -> str:
    """Format the estimate itself; `kind` is a key of WRITERS."""
    return WRITERS[kind](estimate["value"])


def p_value(p: float) -> str:
    """Format a p-value: `p = 0.031`, or `p < 0.001` below that."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def count_text(value: Any) -> str:
    """Format `12800` as `12,800`; floats with one digit; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def side(estimate: Mapping[str, Any], *, lower_is_better: bool = False) -> str:
    """Return better, worse or open: on which side of zero the whole interval of a difference is."""
    if estimate["low"] is None or estimate["low"] <= 0 <= estimate["high"]:
        return "open"
    return "better" if (estimate["low"] > 0) != lower_is_better else "worse"
