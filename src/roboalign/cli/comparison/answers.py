"""What `roboalign compare` says about the answers of two arms: paired differences on held-out frames
and on visited states."""

from collections.abc import Mapping, Sequence
from typing import Any

from roboalign.cli.comparison.sides import RunSide
from roboalign.evaluate.token_metrics import compare_metrics
from roboalign.report.console import grid, render
from roboalign.report.tables import DIFFERENCES
from roboalign.report.text import interval, value
from roboalign.run.answered import AnswerSet, answering_arm, answers_of

SETS: dict[AnswerSet, str] = {"tokens": "held-out frames", "visited": "visited states"}
TARGET = ("l1_mean_action", "l1_zero", "type", "expected")
"""Keys of a record that depend on the sample alone: a fingerprint of what was asked."""


def compare_answers(before: RunSide, after: RunSide, seeds: Sequence[int]) -> dict[str, Any]:
    """Return by stage below `eval/` the paired differences, or under "none" why there are none.
    Visited states are left out if neither run measures them."""
    asked: list[AnswerSet] = ["tokens"]
    if before.recipe.measures_visited or after.recipe.measures_visited:
        asked.append("visited")
    return {one: _compare(before, after, seeds, one) for one in asked}


def _compare(
    before: RunSide, after: RunSide, seeds: Sequence[int], asked: AnswerSet
) -> dict[str, Any]:
    sides = [(one, answering_arm(one.arm, one.recipe.arms)) for one in (before, after)]
    (first, a), (second, b) = sides
    if a and (first.folder.resolve(), a) == (second.folder.resolve(), b):
        return {"none": f"both answer with the same MLLM, that of {a}"}
    answers = [
        answers_of(one.folder, seeds or one.recipe.seeds, arm, asked) if arm else []
        for one, arm in sides
    ]
    if lacking := [one.name for (one, _), rows in zip(sides, answers, strict=True) if not rows]:
        return {"none": f"no records of {' and of '.join(lacking)}"}
    if problem := _other_samples(*answers):
        return {"none": problem}
    return compare_metrics(*answers)


def _other_samples(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> str:
    """Return why two sets of answers do not pair, or "".

    Names alone do not tell: a visited state is that of the policy that drove there.
    """
    asked = [
        {
            (row["probe"], row["id"], row["mode"], row["run_seed"]): [row.get(k) for k in TARGET]
            for row in rows
            if row["probe"] in ("vqa", "action")
        }
        for rows in (before, after)
    ]
    if asked[0] == asked[1]:
        return ""
    same = sum(asked[1].get(key) == target for key, target in asked[0].items())
    return (
        f"the two were not asked the same: {len(asked[0])} samples before, {len(asked[1])} after, "
        f"{same} of them equal"
    )


def format_answers(answers: Mapping[AnswerSet, Mapping[str, Any]]) -> list[str]:
    """Return the tables of both sets as text, or why there is none."""
    lines = []
    for asked, found in answers.items():
        title = SETS[asked]
        if "none" in found:
            lines.append(f"answers on {title}: not compared, {found['none']}")
            continue
        table = grid(f"answers on {title}", "after minus before", "95%, drawing episodes", "n")
        for name, key, kind, lower in DIFFERENCES:
            if (one := found[key])["n"]:
                unit = ", points" if kind == "points" else ", lower is better" if lower else ""
                bounds = interval(one, kind) or "–"
                table.add_row(f"  {name}{unit}", value(one, kind), bounds, str(one["n"]))
        lines += ["", render(table).rstrip()]
    return lines
