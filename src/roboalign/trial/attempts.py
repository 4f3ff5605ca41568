"""Read the attempts at each planned trial out of the rows of a log.

The rule: an attempt that ends in success or failure is the trial's result. One that is void (excluded,
interrupted, or left unanswered by its policy) is counted, and the same trial is done again at once: same
arm, same initial condition. No attempt is ever dropped.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from roboalign.core.config import Config, validated
from roboalign.core.errors import RoboAlignError
from roboalign.trial.plan import LockedPlan, PlannedTrial

INTERRUPTED = "interrupted"
"""Reason of an attempt that was open when the process ended."""


class Outcome(Config):
    """What an operator notes at the end of an attempt."""

    outcome: Literal["success", "failure", "excluded"]
    stage: str | None = None
    """Of a failure: the last stage that was reached; None for none of them."""
    failure: str | None = None
    """Of a failure: its kind."""
    exclusion: str | None = None
    """Of a void attempt: why."""
    intervention: bool = False
    """Whether a person had to step in."""
    note: str = Field(default="", max_length=2000)


class TrialAttempt(Config):
    """One attempt at a trial. `result` is None while it is under way."""

    trial: int
    number: int
    """1 for the first attempt at this trial."""
    operator: str
    started: str
    result: Outcome | None = None
    seconds: float | None = None
    requests: int = 0
    unanswered: int = 0
    """Requests that the policy did not answer: the attempt is void."""
    faults: int = 0
    """Requests that the policy answered with a fault."""
    corrections: int = 0

    @property
    def is_void(self) -> bool:
        """Return whether the trial is to be done again."""
        return self.result is not None and self.result.outcome == "excluded"

    @property
    def succeeded(self) -> bool:
        """Return whether it ended in success."""
        return self.result is not None and self.result.outcome == "success"


def check_outcome(plan: LockedPlan, trial: PlannedTrial, result: Outcome) -> None:
    """Raise RoboAlignError if an outcome contradicts itself, or names what the plan does not know."""
    stages = plan.tasks[trial.task].stages
    allowed: dict[str, Sequence[str]] = {
        "stage": stages if result.outcome == "failure" else (),
        "failure": plan.failures if result.outcome == "failure" else (),
        "exclusion": plan.exclusions if result.outcome == "excluded" else (),
    }
    for name, choices in allowed.items():
        value = getattr(result, name)
        if value is not None and value not in choices:
            raise RoboAlignError(
                f"{value!r} is not one of {', '.join(choices) or 'none'} here",
                where=name,
                fix=f"choose another, or leave `{name}` out",
            )
    if result.outcome == "failure" and result.failure is None:
        raise RoboAlignError("the kind is missing", where="failure", fix="choose a kind of failure")
    if result.outcome == "excluded" and result.exclusion is None:
        raise RoboAlignError("the reason is missing", where="exclusion", fix="choose a reason")
    if "other" in (result.failure, result.exclusion) and not result.note.strip():
        raise RoboAlignError("`other` needs words", where="note", fix="write what happened")
    if result.outcome == "success" and result.intervention:
        raise RoboAlignError(
            "a trial in which a person stepped in is no success",
            where="intervention",
            fix="note a failure, or void it if the rig was at fault",
        )


def attempts_in(plan: LockedPlan, rows: Sequence[dict[str, Any]], where: str) -> list[TrialAttempt]:
    """Return all attempts in their order; only the last can be under way.

    Raises RoboAlignError at a row that does not follow from the rows before it.
    """
    attempts: list[TrialAttempt] = []
    for row in rows:
        add_row(plan, attempts, row, where)
    return attempts


def add_row(
    plan: LockedPlan, attempts: list[TrialAttempt], row: dict[str, Any], where: str
) -> None:
    """Change `attempts` by one row of the log at `where`. Raises RoboAlignError as `attempts_in`."""
    at = f"{where}, line {row['row']}"
    try:
        if row["event"] == "started":
            _begin(plan, attempts, row, at)
        elif row["event"] in ("ended", "interrupted", "corrected"):
            _end(plan, attempts, row, at)
    except KeyError as error:
        raise RoboAlignError(f"the row has no {error}", where=at) from None


def next_trial(plan: LockedPlan, attempts: Sequence[TrialAttempt]) -> PlannedTrial | None:
    """Return the trial that is under way or to be done next; None when all are done."""
    if not attempts:
        return plan.trials[0]
    last = attempts[-1]
    if last.result is None or last.is_void:
        return plan.trials[last.trial - 1]
    return plan.trials[last.trial] if last.trial < len(plan.trials) else None


def _begin(plan: LockedPlan, attempts: list[TrialAttempt], row: dict[str, Any], at: str) -> None:
    trial, number = row["trial"], row["attempt"]
    expected = next_trial(plan, attempts)
    again = sum(attempt.trial == trial for attempt in attempts)
    open_now = bool(attempts) and attempts[-1].result is None
    if expected is None or open_now or (trial, number) != (expected.number, again + 1):
        raise RoboAlignError("this trial is not the next one of the plan", where=at)
    values = {"trial": trial, "number": number, "operator": row["operator"], "started": row["time"]}
    attempts.append(validated(TrialAttempt, values, at))


def _end(plan: LockedPlan, attempts: list[TrialAttempt], row: dict[str, Any], at: str) -> None:
    of = row["trial"], row["attempt"]
    is_last = bool(attempts) and (attempts[-1].trial, attempts[-1].number) == of
    if not is_last or (attempts[-1].result is None) == (row["event"] == "corrected"):
        raise RoboAlignError("this row is of no attempt that it could be of", where=at)
    attempts[-1] = _ended(plan, attempts[-1], row, at)


def _ended(plan: LockedPlan, attempt: TrialAttempt, row: dict[str, Any], at: str) -> TrialAttempt:
    if row["event"] == "interrupted":
        result = Outcome(outcome="excluded", exclusion=INTERRUPTED)
        return attempt.model_copy(update={"result": result})
    result = validated(Outcome, row["result"], at)
    try:
        check_outcome(plan, plan.trials[attempt.trial - 1], result)
    except RoboAlignError as error:
        raise RoboAlignError(f"{error.where}: {error.problem}", where=at) from None
    if row["event"] == "corrected":
        changed = {"result": result, "corrections": attempt.corrections + 1}
        return attempt.model_copy(update=changed)
    counted = {name: row[name] for name in ("seconds", "requests", "unanswered", "faults")}
    return attempt.model_copy(update={"result": result, **counted})
