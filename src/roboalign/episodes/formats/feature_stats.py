"""Compute feature statistics as LeRobot v3.0 stores them. They are in meta/stats.json and the
`stats/` columns of meta/episodes."""

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Stats = dict[str, list]


def vector_stats(values: np.ndarray) -> Stats:
    """Return min, max, mean, std and quantiles per dimension of [T, D] or [T], and row count."""
    values = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    stats = {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
    }
    stats |= dict(zip(QUANTILES, quantiles))
    return {name: value.tolist() for name, value in stats.items()} | {"count": [len(values)]}


def looked_at(length: int, at_most: int = 16) -> list[int]:
    """Return the steps of an episode used for image statistics: `at_most`, evenly spaced."""
    return np.linspace(0, length - 1, min(at_most, length)).astype(int).tolist()


def image_stats(chosen: np.ndarray) -> Stats:
    """Return them for uint8 [N, H, W, 3] per color channel, in [0, 1], shaped [3, 1, 1]."""
    stats = vector_stats(chosen.reshape(-1, 3) / 255.0)
    shaped = {name: [[[x]] for x in values] for name, values in stats.items() if name != "count"}
    return shaped | {"count": [len(chosen)]}


def pool(parts: list[Stats]) -> Stats:
    """Combine the statistics of several episodes. The result is exact except for the quantiles,
    which are count-weighted means, as LeRobot pools them."""
    counts = np.array([part["count"][0] for part in parts], dtype=np.float64)
    stacked = {
        name: np.array([part[name] for part in parts]) for name in parts[0] if name != "count"
    }
    weight = (counts / counts.sum()).reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    mean = (stacked["mean"] * weight).sum(0)
    variance = ((stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2) * weight).sum(0)
    pooled = {
        "min": stacked["min"].min(0),
        "max": stacked["max"].max(0),
        "mean": mean,
        "std": np.sqrt(variance),
    }
    pooled |= {name: (stacked[name] * weight).sum(0) for name in QUANTILES}
    return {name: value.tolist() for name, value in pooled.items()} | {"count": [int(counts.sum())]}
