"""Write the page's opening: does RL on action accuracy help, and how certain is that? All words
follow from the numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roboalign.report.summary import RunSummary
from roboalign.report.tables import lookup, success_mark
from roboalign.report.text import interval, p_value, percent, points, side, signed_text, value

_WORDS = {"better": "better", "worse": "worse", "open": "not settled", "missing": "not run"}


@dataclass(frozen=True)
class Finding:
    """One measured difference: what was measured, before and after, the difference with its
    interval, and the judgment."""

    label: str
    before: str
    after: str
    difference: str
    detail: str
    mark: str
    """better, worse, open (the interval holds zero) or missing."""

    @property
    def word(self) -> str:
        """Return the judgment in words."""
        return _WORDS[self.mark]


def pair_of(pairs: list[Mapping[str, Any]], before: str, after: str) -> Mapping[str, Any] | None:
    """Return the comparison of these two arms, or None."""
    return next(
        (pair for pair in pairs if (pair["before"], pair["after"]) == (before, after)), None
    )


def findings(run: RunSummary) -> list[Finding]:
    """Return the findings on action tokens after reasoning, the policy's success, and the
    questions: before against after RL."""
    return [
        _token_finding(
            run,
            "Action tokens, asked to reason",
            "prefix_think",
            ("actions", "think", "prefix"),
            "number",
        ),
        success_finding(run, "Success of the policy", *run.question),
        _token_finding(
            run,
            "Questions answered correctly",
            "vqa_direct",
            ("vqa", "direct", "accuracy"),
            "percent",
        ),
    ]


def _token_finding(
    run: RunSummary, label: str, key: str, path: tuple[str, ...], kind: str
) -> Finding:
    before, after = run.question
    difference = (pair_of(run.mllm_pairs, before, after) or {}).get(key)
    estimates = [
        lookup(arm.mllm, path) if (arm := run.arm(name)) else None for name in run.question
    ]
    shown = [value(e, kind) if e else "–" for e in estimates]
    if difference is None or difference["value"] is None:
        return Finding(
            label,
            shown[0],
            shown[1],
            "",
            "the two were not compared on the same samples",
            "missing",
        )
    unit = "points" if kind == "percent" else "signed"
    text = (
        f"{points(difference['value'])} points"
        if unit == "points"
        else signed_text(difference["value"])
    )
    detail = (
        f"95% interval {interval(difference, unit) or 'unknown'}, {difference['n']} paired samples"
    )
    return Finding(label, shown[0], shown[1], text, detail, side(difference))


def success_finding(run: RunSummary, label: str, before: str, after: str) -> Finding:
    """Return the finding judged by McNemar's exact test at 5%, with the bootstrap interval of the
    difference."""
    shown = [
        percent(lookup(run.success, ("arms", name, "overall", "rate"))) for name in (before, after)
    ]
    pair = pair_of(run.success["pairs"], before, after) if run.success else None
    if pair is None or not pair["n"]:
        return Finding(
            label,
            shown[0],
            shown[1],
            "",
            "no policy of both was measured on the same episodes",
            "missing",
        )
    difference = pair["difference"]
    bounds = interval(difference, "points") or "unknown"
    detail = f"95% interval {bounds}, {p_value(pair['p'])}, {pair['n']} paired episodes"
    return Finding(
        label,
        shown[0],
        shown[1],
        f"{points(difference['value'])} points",
        detail,
        success_mark(pair),
    )


def _reasoned(run: RunSummary) -> float | None:
    """Return the share of well-formed answers after RL when asked to reason: a reasoning, then one
    block of actions."""
    arm = run.arm(run.question[1])
    estimate = lookup(arm.mllm, ("actions", "think", "format")) if arm else None
    return estimate["value"] if estimate else None


def headline(run: RunSummary) -> str:
    """Return the answer in one or two sentences."""
    tokens, success, questions = findings(run)
    token_words = {
        "better": "RL made the action tokens that follow a reasoning measurably more accurate",
        "worse": "RL made the action tokens that follow a reasoning measurably less accurate",
        "open": "RL did not measurably change the action tokens that follow a reasoning",
        "missing": "The action tokens before and after RL were not compared",
    }
    success_words = {
        "better": "the policy built on it succeeds measurably more often",
        "worse": "the policy built on it succeeds measurably less often",
        "open": "whether the policy succeeds more often, these episodes do not settle",
        "missing": "no pair of policies was measured",
    }
    if (share := _reasoned(run)) is not None and share < 0.5:
        token_words["better"] = (
            f"Asked to reason, the model after RL gives better action tokens, but it has dropped the reasoning: "
            f"{percent(share)} of its answers reason and then act"
        )
    kept = (
        " It answers measurably fewer questions than before." if questions.mark == "worse" else ""
    )
    return f"{token_words[tokens.mark]}; {success_words[success.mark]}.{kept}"
