"""Note trials in a terminal: what to set up, when it starts, how it ended."""

from collections.abc import Callable, Sequence
from typing import Any

from roboalign.core.config import validated
from roboalign.core.errors import RoboAlignError, format_error
from roboalign.trial.attempts import Outcome
from roboalign.trial.desk import Desk

BETWEEN = "[Enter] start  [c] correct the last trial  [q] stop: "
RUNNING = "[y] success  [n] failure  [x] void, to be done again: "
LETTERS = {"y": "success", "n": "failure", "x": "excluded"}


class Terminal:
    """Asks one operator, a line at a time. Another operator may use the page meanwhile."""

    def __init__(
        self,
        desk: Desk,
        operator: str,
        ask: Callable[[str], str] = input,
        tell: Callable[[str], None] = print,
    ) -> None:
        """`ask` prints a question and returns a line; it raises EOFError at the end of the input."""
        self.desk, self.operator = desk, operator
        self.ask, self.tell = ask, tell

    def work(self) -> None:
        """Go from trial to trial until the operator stops or all are done."""
        while True:
            view = self.desk.view()
            try:
                goes_on = self._running(view) if view["running"] else self._between(view)
            except EOFError:
                return
            except RoboAlignError as error:
                self.tell(format_error(error))
                continue
            if not goes_on:
                return

    def _between(self, view: dict[str, Any]) -> bool:
        self.tell("")
        trial = view["trial"]
        if trial is None:
            self.tell(f"all {view['total']} trials are done")
            if not self._may_correct(view):
                return False
        else:
            again = f", attempt {trial['attempt']}" if trial["attempt"] > 1 else ""
            self.tell(f"trial {trial['number']} of {view['total']}, code {trial['code']}{again}")
            self.tell(f"  task:       {trial['task']}: {trial['instruction']}")
            self.tell(f"  set up:     {trial['condition']}")
            if trial["picture"]:
                self.tell("              (its picture is on the page)")
            self.tell(f"  success if: {trial['success']}")
        answer = self.ask(BETWEEN if trial else "[c] correct the last trial  [Enter] end: ").strip()
        if answer == "c":
            return self._correct(view)
        if answer == "q" or (trial is None and not answer):
            return False
        if not answer and trial:
            self.desk.start(trial["number"], trial["attempt"], self.operator)
        return True

    def _running(self, view: dict[str, Any]) -> bool:
        trial = view["trial"]
        letter = self.ask(RUNNING).strip().lower()
        if letter not in LETTERS:
            return True
        result = self._asked(LETTERS[letter], trial["stages"], view)
        self.desk.end(trial["number"], trial["attempt"], self.operator, result)
        return True

    def _correct(self, view: dict[str, Any]) -> bool:
        if not self._may_correct(view):
            self.tell("no trial can be corrected now")
            return True
        last = view["last"]
        self.tell(f"trial {last['number']}, code {last['code']}: {last['result']['outcome']}")
        letter = self.ask(RUNNING).strip().lower()
        if letter in LETTERS:
            result = self._asked(LETTERS[letter], last["stages"], view)
            reason = self.ask("why is it corrected? ")
            self.desk.correct(last["number"], last["attempt"], self.operator, result, reason)
        return True

    def _asked(self, outcome: str, stages: Sequence[str], view: dict[str, Any]) -> Outcome:
        """Ask for what belongs to an outcome."""
        values: dict[str, Any] = {"outcome": outcome}
        if outcome == "failure":
            values["failure"] = self._choice("kind of failure", view["failures"])
            if stages:
                chosen = self._choice("last stage that was reached", ["none", *stages])
                values["stage"] = None if chosen == "none" else chosen
            values["intervention"] = self.ask("did a person step in? [y/N] ").strip() == "y"
        elif outcome == "excluded":
            values["exclusion"] = self._choice("why is it void", view["exclusions"])
        values["note"] = self.ask("note (may be empty): ").strip()
        result: Outcome = validated(Outcome, values, "note")
        return result

    def _choice(self, question: str, names: Sequence[str]) -> str:
        for number, name in enumerate(names, start=1):
            self.tell(f"  {number} {name}")
        while True:
            answer = self.ask(f"{question}, 1 to {len(names)}: ").strip()
            if answer.isdecimal() and 1 <= int(answer) <= len(names):
                return names[int(answer) - 1]

    def _may_correct(self, view: dict[str, Any]) -> bool:
        return bool(view["last"] and view["last"]["correctable"])
