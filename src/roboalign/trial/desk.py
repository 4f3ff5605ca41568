"""Where operators and the router meet: which trial is under way, and what is noted of it."""

import base64
import threading
import time
from dataclasses import dataclass
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.trial.attempts import (
    Outcome,
    TrialAttempt,
    add_row,
    check_outcome,
    next_trial,
)
from roboalign.trial.log import TrialLog
from roboalign.trial.plan import LockedPlan, PlannedTrial

LONGEST_NAME = 60


@dataclass(eq=False)
class Running:
    """The attempt under way, and what the router counts of it."""

    trial: PlannedTrial
    began: float
    """By `time.monotonic`."""
    requests: int = 0
    unanswered: int = 0
    faults: int = 0


class Desk:
    """The state of a study, one change at a time. Every change is on disk before a method returns.

    It knows no arm: whatever it shows is blind.
    """

    def __init__(self, plan: LockedPlan, log: TrialLog) -> None:
        """Continue where the log ends. An attempt that was under way is void.

        Raises RoboAlignError if the log does not fit the plan.
        """
        self.plan, self.log = plan, log
        self._turn = threading.RLock()
        self._running: Running | None = None
        self._attempts: list[TrialAttempt] = []
        self._read = 0
        last = self._last()
        if last is not None and last.result is None:
            log.append("interrupted", trial=last.trial, attempt=last.number)

    def attempts(self) -> list[TrialAttempt]:
        """Return all attempts so far."""
        with self._turn:
            for row in self.log.rows[self._read :]:
                add_row(self.plan, self._attempts, row, str(self.log.path))
                self._read += 1
            return list(self._attempts)

    def trial(self) -> PlannedTrial | None:
        """Return the trial under way, or the next one; None when all are done."""
        return next_trial(self.plan, self.attempts())

    def running(self) -> Running | None:
        """Return the attempt under way; None between trials."""
        with self._turn:
            return self._running

    def start(self, trial: int, attempt: int, operator: str) -> None:
        """Begin an attempt. Raises RoboAlignError if it is not the next one, or one is under way."""
        name = _operator(operator)
        with self._turn:
            if self._running:
                last = self._last()
                if last and (last.trial, last.number, last.operator) == (trial, attempt, name):
                    return  # sent twice
                raise self._conflict("a trial is under way already")
            if (trial, attempt) != self._next():
                raise self._conflict("this trial is not the next one any more")
            self.log.append("started", **self._of(trial, attempt), operator=name)
            self._running = Running(self.plan.trials[trial - 1], time.monotonic())

    def end(self, trial: int, attempt: int, operator: str, result: Outcome) -> None:
        """Note the outcome of the attempt under way. The same note sent twice is one note.

        Raises RoboAlignError if another outcome was noted before, or the attempt has to be void.
        """
        name = _operator(operator)
        with self._turn:
            last = self._last()
            if last is None or (last.trial, last.number) != (trial, attempt):
                raise self._conflict("another trial is under way by now")
            if last.result is not None:
                if last.result == result:
                    return
                raise self._conflict(f"{last.result.outcome} was noted for this trial already")
            counts = self._running
            assert counts is not None
            check_outcome(self.plan, self.plan.trials[trial - 1], result)
            _check_asked(counts.requests, counts.unanswered, result)
            self.log.append(
                "ended",
                **self._of(trial, attempt),
                operator=name,
                result=result.model_dump(mode="json"),
                seconds=round(time.monotonic() - counts.began, 3),
                requests=counts.requests,
                unanswered=counts.unanswered,
                faults=counts.faults,
            )
            self._running = None

    def correct(
        self, trial: int, attempt: int, operator: str, result: Outcome, reason: str
    ) -> None:
        """Replace the outcome of the last attempt, until the next one is started; both stay in the log.

        Raises RoboAlignError if it is not the last any more, or was interrupted.
        """
        name = _operator(operator)
        with self._turn:
            last = self._last()
            ended = last is not None and last.result is not None and last.seconds is not None
            if last is None or not ended or (last.trial, last.number) != (trial, attempt):
                raise self._conflict("only the last trial can be corrected, before the next starts")
            if last.result == result:
                return
            if not reason.strip() or len(reason) > 2000:
                raise RoboAlignError(
                    "the reason is missing or too long",
                    where="reason",
                    fix="write why in a sentence",
                )
            check_outcome(self.plan, self.plan.trials[trial - 1], result)
            _check_asked(last.requests, last.unanswered, result)
            self.log.append(
                "corrected",
                **self._of(trial, attempt),
                operator=name,
                result=result.model_dump(mode="json"),
                reason=reason,
            )

    def count(self, attempt: Running, what: str) -> bool:
        """Count one of `requests`, `unanswered`, `faults`; return whether the attempt still runs."""
        with self._turn:
            setattr(attempt, what, getattr(attempt, what) + 1)
            return attempt is self._running

    def picture(self, number: int) -> bytes | None:
        """Return the photo of a trial's initial condition, JPEG; None if the plan has none."""
        if not 1 <= number <= len(self.plan.trials):
            return None
        trial = self.plan.trials[number - 1]
        kept = self.plan.pictures.get(trial.task, {}).get(trial.condition)
        return None if kept is None else base64.b64decode(kept)

    def view(self) -> dict[str, Any]:
        """Return what operators see, as JSON values."""
        with self._turn:
            attempts, trial, counts = self.attempts(), self.trial(), self._running
            last = attempts[-1] if attempts else None
            if counts:
                last = attempts[-2] if len(attempts) > 1 else None
            done = len(self.plan.trials) if trial is None else trial.number - 1
            return {
                "study": self.plan.name,
                "plan": self.plan.sha256[:12],
                "done": done,
                "total": len(self.plan.trials),
                "void": sum(attempt.is_void for attempt in attempts),
                "trial": None if trial is None else self._shown(trial),
                "running": None
                if counts is None
                else {
                    "seconds": round(time.monotonic() - counts.began, 1),
                    "requests": counts.requests,
                    "unanswered": counts.unanswered,
                    "faults": counts.faults,
                },
                "limit": self.plan.seconds,
                "failures": list(self.plan.failures),
                "exclusions": list(self.plan.exclusions),
                "last": None if last is None else self._noted(last, correctable=counts is None),
            }

    def _shown(self, trial: PlannedTrial) -> dict[str, Any]:
        task = self.plan.tasks[trial.task]
        return {
            "number": trial.number,
            "attempt": self._last_number() if self._running else self._next()[1],
            "code": trial.code,
            "task": trial.task,
            "condition": trial.condition,
            "picture": trial.condition in self.plan.pictures.get(trial.task, {}),
            "instruction": task.instruction,
            "success": task.success,
            "stages": list(task.stages),
        }

    def _noted(self, attempt: TrialAttempt, *, correctable: bool) -> dict[str, Any]:
        trial = self.plan.trials[attempt.trial - 1]
        assert attempt.result is not None
        return {
            "number": trial.number,
            "attempt": attempt.number,
            "code": trial.code,
            "stages": list(self.plan.tasks[trial.task].stages),
            "result": attempt.result.model_dump(mode="json"),
            "correctable": correctable and attempt.seconds is not None,
        }

    def _next(self) -> tuple[int, int]:
        """Return the trial to be started and the number of the attempt; (0, 0) when all are done."""
        attempts = self.attempts()
        trial = next_trial(self.plan, attempts)
        if trial is None:
            return 0, 0
        return trial.number, 1 + sum(attempt.trial == trial.number for attempt in attempts)

    def _last(self) -> TrialAttempt | None:
        attempts = self.attempts()
        return attempts[-1] if attempts else None

    def _last_number(self) -> int:
        last = self._last()
        return last.number if last else 0

    def _of(self, trial: int, attempt: int) -> dict[str, Any]:
        return {"trial": trial, "attempt": attempt, "code": self.plan.trials[trial - 1].code}

    def _conflict(self, problem: str) -> RoboAlignError:
        return RoboAlignError(problem, where="trial", fix="look at what is shown now")


def _check_asked(requests: int, unanswered: int, result: Outcome) -> None:
    """Raise RoboAlignError for a result of a policy that was not asked, or did not answer."""
    if result.outcome == "excluded" or (requests and not unanswered):
        return
    said = f"{unanswered} requests were not answered" if unanswered else "the robot never asked"
    raise RoboAlignError(
        f"{said}, so this attempt is void",
        where="outcome",
        fix="exclude it; the trial is done again",
    )


def _operator(name: str) -> str:
    text = " ".join(name.split())
    if not text or len(text) > LONGEST_NAME:
        raise RoboAlignError(
            f"a name has 1 to {LONGEST_NAME} characters", where="operator", fix="write your name"
        )
    return text
