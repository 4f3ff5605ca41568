"""Unblind a log: success by arm and task, exact paired tests, and what was void by arm."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import fisher_exact

from roboalign.core.errors import RoboAlignError
from roboalign.evaluate.statistics import holm, mcnemar_exact, paired_score_interval, wilson
from roboalign.trial.attempts import TrialAttempt, attempts_in, next_trial
from roboalign.trial.log import TrialLog, read_log
from roboalign.trial.plan import LockedPlan, PlanKey, read_key, read_plan


def results_of(log: str | Path, plan: str | Path, *, unfinished: bool = False) -> dict[str, Any]:
    """Return what the trials of a log showed, ready for JSON.

    Raises RoboAlignError if trials of the plan are left, unless `unfinished` says that they may be:
    looking at results of half a study, and then going on or not, makes its p-values meaningless.
    The look is then written into the log, and every later result says so.
    """
    locked, key = read_plan(plan), read_key(plan)
    rows = read_log(log, locked.sha256)
    attempts = attempts_in(locked, rows, str(log))
    done = len(_results(attempts))
    total = len(locked.trials)
    if next_trial(locked, attempts) is not None:
        if not unfinished:
            raise RoboAlignError(
                f"{done} of {total} trials are done, and a look at half a study would unblind it",
                where=str(log),
                fix="finish it with `roboalign trial run`, or pass --unfinished, which is written down",
            )
        with TrialLog(log, locked.sha256) as writer:
            writer.append("unblinded", done=done)
            rows = list(writer.rows)
    return _described(locked, key, rows, attempts)


def _described(
    plan: LockedPlan, key: PlanKey, rows: Sequence[Mapping[str, Any]], attempts: list[TrialAttempt]
) -> dict[str, Any]:
    won = {trial: attempt.succeeded for trial, attempt in _results(attempts).items()}
    strict = dict(won)
    for attempt in attempts:
        if attempt.is_void and attempt.trial in strict:
            strict[attempt.trial] = False
    compared = [_compared(plan, key, pair, won, strict, attempts) for pair in plan.comparisons]
    for row, p in zip(compared, holm([row["p"] for row in compared])):
        row["p_holm"] = p
    opened = [row for row in rows if row["event"] == "opened"]
    return {
        "study": plan.name,
        "plan_sha256": plan.sha256,
        "done": len(won),
        "total": len(plan.trials),
        "looks": [row["done"] for row in rows if row["event"] == "unblinded"],
        "sessions": len(opened),
        "operators": sorted({attempt.operator for attempt in attempts}),
        "first": attempts[0].started if attempts else None,
        "last": attempts[-1].started if attempts else None,
        "alpha": plan.alpha,
        "tasks": {name: task.success for name, task in plan.tasks.items()},
        "policies": opened[0]["arms"] if opened else {},
        "arms": {arm: _arm(plan, key, arm, won, attempts) for arm in plan.arms},
        "comparisons": compared,
    }


def _results(attempts: Iterable[TrialAttempt]) -> dict[int, TrialAttempt]:
    """Return the attempt that counts, by trial; trials without one are absent."""
    return {
        attempt.trial: attempt
        for attempt in attempts
        if attempt.result is not None and not attempt.is_void
    }


def _arm(
    plan: LockedPlan,
    key: PlanKey,
    arm: str,
    won: Mapping[int, bool],
    attempts: Sequence[TrialAttempt],
) -> dict[str, Any]:
    """Return the success rates of one arm, and counts of everything that happened in its attempts."""
    mine = [trial for trial in plan.trials if key.assignment[trial.number - 1] == arm]
    numbers = {trial.number for trial in mine}
    own = [attempt for attempt in attempts if attempt.trial in numbers]
    results = list(_results(own).values())
    return {
        "overall": _rate([won[n] for n in sorted(numbers) if n in won]),
        "tasks": {
            task: _rate([won[t.number] for t in mine if t.task == task and t.number in won])
            for task in plan.tasks
        },
        "progress": {
            task: _progress(plan, task, [a for a in results if _task(plan, a) == task])
            for task in plan.tasks
            if plan.tasks[task].stages
        },
        "attempts": len(own),
        "void": _counted(a.result.exclusion for a in own if a.is_void and a.result),
        "failures": _counted(a.result.failure for a in results if a.result),
        "interventions": sum(bool(a.result and a.result.intervention) for a in own),
        "corrections": sum(attempt.corrections for attempt in own),
        "faults": sum(attempt.faults for attempt in own),
    }


def _compared(
    plan: LockedPlan,
    key: PlanKey,
    pair: tuple[str, str],
    won: Mapping[int, bool],
    strict: Mapping[int, bool],
    attempts: Sequence[TrialAttempt],
) -> dict[str, Any]:
    """Return the paired test of two arms over all tasks, by task, and with void attempts as failures."""
    blocks: dict[int, dict[str, int]] = {}
    for trial in plan.trials:
        arm = key.assignment[trial.number - 1]
        if arm in pair and trial.number in won:
            blocks.setdefault(trial.block, {})[arm] = trial.number
    both = [(block[pair[0]], block[pair[1]]) for block in blocks.values() if len(block) == 2]
    void = {arm: [0, 0] for arm in pair}
    for attempt in attempts:
        arm = key.assignment[attempt.trial - 1]
        if arm in pair and attempt.result is not None:
            void[arm][attempt.is_void] += 1
    return {
        "before": pair[0],
        "after": pair[1],
        **_paired(both, won),
        "tasks": {
            task: _paired([p for p in both if plan.trials[p[0] - 1].task == task], won)
            for task in plan.tasks
        },
        "void_as_failures": _paired(both, strict),
        "void_differs_p": float(fisher_exact([void[arm] for arm in pair]).pvalue),
    }


def _paired(pairs: Sequence[tuple[int, int]], won: Mapping[int, bool]) -> dict[str, Any]:
    test = mcnemar_exact([won[a] for a, _ in pairs], [won[b] for _, b in pairs])
    low, high = paired_score_interval(test.only_a, test.only_b, test.n)
    return {
        "n": test.n,
        "only_before": test.only_a,
        "only_after": test.only_b,
        "p": test.p,
        "difference": (test.only_b - test.only_a) / test.n if test.n else None,
        "low": low,
        "high": high,
    }


def _rate(outcomes: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(sum(outcomes), len(outcomes))
    rate = sum(outcomes) / len(outcomes) if outcomes else None
    return {"successes": sum(outcomes), "n": len(outcomes), "rate": rate, "low": low, "high": high}


def _progress(plan: LockedPlan, task: str, results: Sequence[TrialAttempt]) -> float | None:
    """Return the mean share of stages that was reached; success is the last of them."""
    stages = plan.tasks[task].stages
    reached = []
    for attempt in results:
        assert attempt.result is not None
        stage = attempt.result.stage
        last = len(stages) + 1 if attempt.succeeded else 1 + stages.index(stage) if stage else 0
        reached.append(last / (len(stages) + 1))
    return sum(reached) / len(reached) if reached else None


def _task(plan: LockedPlan, attempt: TrialAttempt) -> str:
    return plan.trials[attempt.trial - 1].task


def _counted(reasons: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(reason for reason in reasons if reason).most_common())
