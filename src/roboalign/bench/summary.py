"""Count the records of a benchmark: scores with intervals, groups, and what could not be read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from roboalign.bench.judge import MOST_SCORE
from roboalign.core.errors import RoboAlignError
from roboalign.evaluate.statistics import (
    Estimate,
    mcnemar_exact,
    mean_interval,
    paired_difference,
    paired_score_interval,
    proportion,
)

Records = Sequence[Mapping[str, Any]]


def mean_of_subgroups(records: Records) -> float:
    """Return the mean over subgroups of the mean score (MMStar in lmms-eval: 18 categories)."""
    groups: dict[str, list[float]] = {}
    for record in records:
        groups.setdefault(record["subgroup"], []).append(record["score"])
    return float(np.mean([np.mean(scores) for scores in groups.values()]))


def cv_bench_score(records: Records) -> float | None:
    """Return CV-Bench's own score: half the mean of ADE20K and COCO (2D), half Omni3D (3D).

    None unless all three sources were asked.
    """
    groups: dict[str, list[float]] = {}
    for record in records:
        groups.setdefault(record["subgroup"], []).append(record["score"])
    if not {"ADE20K", "COCO", "Omni3D"} <= set(groups):
        return None
    means = {name: float(np.mean(scores)) for name, scores in groups.items()}
    return 0.5 * ((means["ADE20K"] + means["COCO"]) / 2 + means["Omni3D"])


def mean_grade(records: Records) -> float:
    """Return the mean score on the judge's scale, 0 to 3."""
    return MOST_SCORE * float(np.mean([record["score"] for record in records]))


HEADLINES: dict[str, Callable[[Records], float | None]] = {
    "mean of the categories": mean_of_subgroups,
    "half ADE20K and COCO, half Omni3D": cv_bench_score,
    "mean of 0 to 3": mean_grade,
}
"""Numbers that a benchmark's source reports besides the mean over items."""


def scored_estimate(records: Records) -> Estimate:
    """Return the mean score: with Wilson's interval where all are 0 or 1, else a bootstrap's.

    Where items share images, the bootstrap draws images with all their items: items about one image
    are alike, and an interval over items would be too narrow.
    """
    scores = [record["score"] for record in records]
    images = _clusters(records)
    if images is None and all(score in (0.0, 1.0) for score in scores):
        return proportion(scores)
    return mean_interval(scores, clusters=images)


def _clusters(records: Records) -> list[str] | None:
    """Return the images of each item; None if every item has its own."""
    images = [record["images"] for record in records]
    return images if len(set(images)) < len(images) else None


def summarize_replies(records: Records, asked: int, headline: str = "") -> dict[str, Any]:
    """Return the scores of one task under one control.

    `asked` is the number of items of the task; a control may be unable to ask some.
    """
    chances = [record["chance"] for record in records if record["chance"] is not None]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    reasons: dict[str, int] = {}
    for record in records:
        groups.setdefault(record["group"], []).append(record)
        if record["reason"] != "ok":
            reasons[record["reason"]] = reasons.get(record["reason"], 0) + 1
    result = {
        "score": asdict(scored_estimate(records)),
        "chance": float(np.mean(chances)) if chances else None,
        "unreadable": sum(reasons.values()),
        "reasons": reasons,
        "cut": sum(not record["finished"] for record in records),
        "points": sum(record["points"] for record in records),
        "outside": sum(record["outside"] for record in records),
        "not_asked": asked - len(records),
        "groups": {
            name: asdict(scored_estimate(scores)) for name, scores in sorted(groups.items())
        },
    }
    if headline and records:
        result["headline"] = {"name": headline, "value": HEADLINES[headline](records)}
    return result


def pair_records(
    before: Records, after: Records, *, names: tuple[str, str], task: str
) -> dict[str, Any]:
    """Return the difference of two models on the same items, with its interval.

    Where items share images, the interval draws images and there is no p: McNemar's test takes
    items as independent. Raises RoboAlignError unless both were asked the same items in the same
    words.
    """
    _refuse_other_items(before, after, names, task)
    others = {record["id"]: record["score"] for record in after}
    first = [float(record["score"]) for record in before]
    second = [float(others[record["id"]]) for record in before]
    result: dict[str, Any] = {"before": names[0], "after": names[1], "n": len(first)}
    binary = all(score in (0.0, 1.0) for score in (*first, *second))
    images = _clusters(before)
    if images is not None or not binary:
        drawn = paired_difference(first, second, clusters=images)
        result |= {**asdict(drawn), "p": None}
    if not binary:
        return result
    test = mcnemar_exact(np.array(first) == 1, np.array(second) == 1)
    counts = {"only_before": test.only_a, "only_after": test.only_b}
    if images is not None:
        return {**result, **counts}
    low, high = paired_score_interval(test.only_a, test.only_b, test.n)
    value = (test.only_b - test.only_a) / test.n if test.n else None
    return {**result, "value": value, "low": low, "high": high, "p": test.p, **counts}


def _refuse_other_items(before: Records, after: Records, names: tuple[str, str], task: str) -> None:
    a, b = ({record["id"]: record for record in records} for records in (before, after))
    where = f"{task} of {names[0]} and {names[1]}"
    if extra := sorted(set(a) ^ set(b)):
        raise RoboAlignError(
            f"{len(extra)} items were asked of one of them only, as {extra[0]}",
            where=where,
            fix="measure both on the same data with the same --limit",
        )
    for key, what in (("item", "another image, text or answer"), ("question", "another wording")):
        differ = [name for name in a if a[name][key] != b[name][key]]
        if differ:
            raise RoboAlignError(
                f"{len(differ)} items have {what} in one of them, as {differ[0]}",
                where=where,
                fix="measure both on the same data, with the same --preset, --mode and --prompts",
            )


def summarize_models(
    records: Mapping[str, Mapping[str, Mapping[Any, Records]]], headlines: Mapping[str, str]
) -> dict[str, Any]:
    """Return, for each task, the scores of each model under each control, and the paired
    differences: of each further model to the first, and of a control's images to the item's own.

    `records` are by model, task and control.
    """
    first, *others = records
    tasks: dict[str, Any] = {}
    for task in records[first]:
        models, pairs = {}, []
        for name, by_task in records.items():
            asked = by_task[task]["asked"]
            models[name] = {
                control: summarize_replies(rows, len(asked), headlines[task])
                for control, rows in by_task[task].items()
            }
            for control in ("blank", "text"):
                if control in models[name]:
                    names = ("as asked", control)
                    rows = by_task[task][control]
                    pair = pair_records(asked, rows, names=names, task=task)
                    models[name][control]["minus_asked"] = pair
        before = records[first][task]["asked"]
        for name in others:
            pairs.append(
                pair_records(before, records[name][task]["asked"], names=(first, name), task=task)
            )
        tasks[task] = {"models": models, "pairs": pairs}
    return tasks
