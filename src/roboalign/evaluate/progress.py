"""Measure episodes of several parts, such as CALVIN's chains: how many parts in a row were solved.

The chain is the unit: intervals resample chains, also where several training seeds ran the same one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from roboalign.evaluate.statistics import mcnemar_exact, mean_interval, paired_difference

Record = Mapping[str, Any]


def episode_parts(records: Iterable[Record]) -> int:
    """Return how many parts the longest episode has; 0 where episodes have one."""
    lengths = [
        max(len(record.get("details", {}).get("tasks", ())), record["progress"])
        for record in records
        if record.get("progress") is not None
    ]
    return max(lengths, default=0)


def progress_rows(records: Sequence[Record], *, resamples: int) -> dict[str, Any] | None:
    """Return {parts, chains, mean, in_a_row} of the finished episodes; None where they have one part.

    `mean` is the mean number of parts solved, `in_a_row[k - 1]` the share of episodes with k or more.
    Both are {value, low, high, n}.
    """
    finished = [record for record in records if _counted(record)]
    if not (parts := episode_parts(records)):
        return None
    solved = [record["progress"] for record in finished]
    chains = [_chain(record) for record in finished]

    def estimate(values: Sequence[float]) -> dict[str, Any]:
        return asdict(mean_interval(values, clusters=chains, resamples=resamples))

    return {
        "parts": parts,
        "chains": len(set(chains)),
        "mean": estimate(solved),
        "in_a_row": [estimate([float(n >= k) for n in solved]) for k in range(1, parts + 1)],
    }


def progress_difference(
    before: Sequence[Record], after: Sequence[Record], *, resamples: int
) -> dict[str, Any] | None:
    """Return {parts, mean, in_a_row} of pairs, after minus before; None where episodes have one part.

    `before[i]` and `after[i]` are the same chain. `mean` is {value, low, high, n}; `in_a_row[k - 1]`
    is {difference, only_before, only_after, p} of k or more parts, p by McNemar's exact test.
    """
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if _counted(a) and _counted(b)]
    if not (parts := episode_parts([*before, *after])):
        return None
    a, b = ([side["progress"] for side in sides] for sides in zip(*pairs)) if pairs else ([], [])
    chains = [_chain(record) for record, _ in pairs]

    def difference(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
        return asdict(paired_difference(first, second, clusters=chains, resamples=resamples))

    rows = []
    for k in range(1, parts + 1):
        first, second = [n >= k for n in a], [n >= k for n in b]
        test = mcnemar_exact(first, second)
        rows.append(
            {
                "difference": difference(first, second),
                "only_before": test.only_a,
                "only_after": test.only_b,
                "p": test.p,
            }
        )
    return {"parts": parts, "mean": difference(a, b), "in_a_row": rows}


def _counted(record: Record) -> bool:
    return record["crash"] is None and record.get("progress") is not None


def _chain(record: Record) -> tuple[str, int]:
    return record["task"], record["seed"]
