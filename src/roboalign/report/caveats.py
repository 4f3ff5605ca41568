"""State what a run does not show: limits that follow from its own numbers, one sentence each."""

from collections.abc import Iterator, Mapping
from typing import Any

from roboalign.report.summary import RunSummary
from roboalign.report.tables import lookup
from roboalign.report.text import interval, number_text, p_value, percent, signed_text
from roboalign.report.verdict import pair_of


def caveats(run: RunSummary) -> list[str]:
    """Return every limit that applies, the run's own notes last."""
    rules = (
        _success_open,
        _controls,
        _seeds,
        _tasks,
        _direct_beats_reasoned,
        _format_gain,
        _lengths,
        _sight,
        _causality,
        _crashes,
    )
    found = [sentence for rule in rules for sentence in rule(run)]
    return [*found, *run.notes]


def _success_open(run: RunSummary) -> Iterator[str]:
    before, after = run.question
    pair = _success_pair(run, before, after)
    if pair is None:
        yield "Whether the aligned backbone makes a better policy: no paired rollouts of both were run."
    elif pair["p"] >= 0.05:
        bounds = interval(pair["difference"], "points") or "unknown"
        yield (
            f"A difference in success between {run.title(before)} and {run.title(after)} beyond chance: "
            f"{p_value(pair['p'])} over {pair['n']} paired episodes, interval {bounds} points."
        )


def _controls(run: RunSummary) -> Iterator[str]:
    """Yield limits from controls: if the arm is no better than an arm without the claimed
    ingredient, the claim is not the cause."""
    _, after = run.question
    for control in (arm for arm in run.arms if arm.claim):
        pair = _success_pair(run, control.name, after)
        if pair is not None and not (pair["p"] < 0.05 and pair["difference"]["value"] > 0):
            yield (
                f"By success, that {control.claim}: against {control.title} {run.title(after)} has "
                f"{p_value(pair['p'])} ({pair['only_after']} episodes only it solved, {pair['only_before']} "
                "only the other)."
            )


def _seeds(run: RunSummary) -> Iterator[str]:
    arms = (run.success or {}).get("arms", {})
    seeds = max((len(arm["run_seeds"]) for arm in arms.values()), default=0)
    if seeds == 1:
        yield "What another training seed would give: each arm was trained once, and the intervals hold no such spread."
    elif seeds > 1:
        yield (
            f"The spread over training seeds beyond {seeds}: the intervals are over episodes and samples; "
            "the rows per training seed show how far the trainings differ."
        )


def _tasks(run: RunSummary) -> Iterator[str]:
    pair = _success_pair(run, *run.question)
    tasks = {task for arm in (run.success or {}).get("arms", {}).values() for task in arm["tasks"]}
    if pair is None:
        return
    by_task = pair["difference_by_task"]
    bounds = (
        f"; drawing tasks with replacement, the interval is {interval(by_task, 'points')} points"
        if by_task
        else ""
    )
    yield f"How it does on other tasks: success was measured on {len(tasks)} task{'s' * (len(tasks) != 1)}{bounds}."


def _direct_beats_reasoned(run: RunSummary) -> Iterator[str]:
    before, after = (run.arm(name) for name in run.question)
    direct = lookup(before.mllm, ("actions", "direct", "prefix")) if before else None
    reasoned = lookup(after.mllm, ("actions", "think", "prefix")) if after else None
    if before and after and direct and reasoned and direct["value"] >= reasoned["value"]:
        yield (
            f"That reasoning gives better actions than none: {before.title} answering directly has prefix accuracy "
            f"{number_text(direct['value'])}, {after.title} after reasoning {number_text(reasoned['value'])}."
        )


def _format_gain(run: RunSummary) -> Iterator[str]:
    pair = pair_of(run.mllm_pairs, *run.question)
    change, closer = lookup(pair, ("prefix_formed",)), lookup(pair, ("l1_formed",))
    if change and change["n"] and not (change["low"] is not None and change["low"] > 0):
        sentence = (
            "That RL gained more than the format in prefix accuracy: where both models reason and then act, it "
            f"changed by {signed_text(change['value'])} (interval {interval(change, 'signed') or 'unknown'}, "
            f"{change['n']} frames)"
        )
        if closer and closer["n"]:
            sentence += f"; L1 there by {signed_text(closer['value'])} ({interval(closer, 'signed') or 'no interval'})"
        yield sentence + "."


def _lengths(run: RunSummary) -> Iterator[str]:
    shares = _both(run, ("actions", "think", "wrong_length"))
    if shares and shares[1]["value"] > shares[0]["value"]:
        yield (
            f"That whole chunks got better: prefix accuracy ignores the tail, and answers of the wrong length rose "
            f"from {percent(shares[0]['value'])} to {percent(shares[1]['value'])} of those with an action. Read L1."
        )
    errors = _both(run, ("actions", "think", "l1_all"))
    arm = run.arm(run.question[1])
    mean_action = lookup(arm.mllm, ("baselines", "mean_action_l1")) if arm else None
    if errors and mean_action and errors[1]["value"] >= mean_action["value"]:
        yield (
            f"That the decoded actions are useful: their L1 ({number_text(errors[1]['value'])}) is no better than the "
            f"mean action's ({number_text(mean_action['value'])})."
        )


def _sight(run: RunSummary) -> Iterator[str]:
    arm = run.arm(run.question[1])
    drop = lookup(arm.mllm, ("image_shuffle", "drop")) if arm else None
    if arm and drop and (drop["high"] is None or drop["high"] >= 0):
        yield f"That {arm.title} looks at the image: with another episode's image it answers as many questions."


def _causality(run: RunSummary) -> Iterator[str]:
    arm = run.arm(run.question[1])
    causal = lookup(arm.mllm, ("reasoning",)) if arm else None
    if arm and not causal:
        yield "Whether the reasoning causes the action: it was not tested by emptying and swapping it."
    for key, words in (("emptied_minus_kept", "emptying"), ("swapped_minus_kept", "swapping")):
        change = lookup(causal, (key,))
        if arm and change and (change["high"] is None or change["high"] >= 0):
            yield (
                f"That the reasoning carries the action: {words} it does not measurably lower {arm.title}'s prefix "
                f"accuracy ({interval(change, 'signed') or 'no interval'})."
            )


def _crashes(run: RunSummary) -> Iterator[str]:
    arms = (run.success or {}).get("arms", {})
    crashed = sum(arm["overall"]["crashes"] for arm in arms.values())
    if crashed:
        yield f"What {crashed} crashed episode{'s' * (crashed != 1)} would have given: they are in no rate."


def _success_pair(run: RunSummary, before: str, after: str) -> Mapping[str, Any] | None:
    pair = pair_of(run.success["pairs"], before, after) if run.success else None
    return pair if pair and pair["n"] else None


def _both(run: RunSummary, path: tuple[str, ...]) -> tuple[Any, Any] | None:
    """Return the estimates before and after RL, if both have a value."""
    found = [lookup(arm.mllm, path) if (arm := run.arm(name)) else None for name in run.question]
    if any(estimate is None or estimate["value"] is None for estimate in found):
        return None
    return found[0], found[1]
