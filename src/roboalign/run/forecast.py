"""Estimate how long a run still takes, from its finished stages and a table of the quickstart's
stage times."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from roboalign.core.progress import Update

QUICKSTART_SECONDS: Mapping[str, float] = {
    "collect": 88,
    "tokenizer": 1,
    "mix": 6,
    "base": 1,
    "sft": 260,
    "rl": 167,
    "extra-sft": 25,
    "ecot": 25,
    "visited": 240,
    "rl-visited": 167,
    "sft-visited": 25,
    "random": 1,
    "eval/tokens": 16,
    "eval/visited": 10,
    "head": 55,
    "token-policy": 1,
    "online": 1584,
    "eval/rollouts": 33,
    "eval/replay": 20,
    "report": 6,
}
"""Seconds of each kind of stage of recipes/quickstart.yaml on two idle cores: those that its run of
11:20 minutes printed at the end (docs/tutorials/quickstart.md), divided by the number of stages of a
kind, and at least 1. `ecot` and `sft-visited`, which it lacks, are as `extra-sft`, and `rl-visited`
as `rl`; `online` is the default's 1,920 rollouts at the pace of its 40 of `eval/rollouts`, without
updates; `visited`, `eval/visited` and `eval/replay` are guesses. Only their ratios are used, until this
run's own stages have been timed."""
LONG_ENOUGH = 5.0
"""Minimum seconds in the table for a stage to count as evidence of this machine's speed."""


class AnyStage(Protocol):
    """What this module needs of a stage."""

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def exclusive(self) -> bool: ...


def kind_of(name: str) -> str:
    """Return the kind: `seed-0/head/roboalign` -> `head`, `seed-1/eval/tokens/sft` ->
    `eval/tokens`, `collect` -> `collect`."""
    parts = name.split("/")
    if parts[0].startswith("seed-"):
        parts = parts[1:]
    for count in range(len(parts), 0, -1):
        if "/".join(parts[:count]) in QUICKSTART_SECONDS:
            return "/".join(parts[:count])
    return "/".join(parts)


def reference_seconds(kind: str) -> float:
    """Return what a stage of this kind takes in the quickstart; if it has none, what the most
    similar one takes."""
    for known in (kind, kind.rsplit("-", 1)[-1]):
        if known in QUICKSTART_SECONDS:
            return QUICKSTART_SECONDS[known]
    return QUICKSTART_SECONDS["head"]


@dataclass
class Forecast:
    """Track the stages that a run has to do, of which `at_once` run side by side."""

    stages: Sequence[AnyStage]
    at_once: int
    began: dict[str, float] = field(default_factory=dict)
    """Start times of the running stages, by `time.monotonic`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What the finished stages took."""
    updates: dict[str, Update] = field(default_factory=dict)
    """The last progress count of each stage that has one."""
    last_pace: float | None = None
    """The last value of `_pace`, kept because a stage that begins another count has none for a
    while."""

    def start(self, name: str) -> None:
        self.began[name] = time.monotonic()

    def finish(self, name: str, seconds: float) -> None:
        self.began.pop(name, None)
        self.seconds[name] = seconds

    def left_of(self, name: str) -> float | None:
        """Return the seconds until this stage, once started, is done; None while nothing is known
        of this run."""
        if name in self.seconds:
            return 0.0
        whole = self._whole(name)
        if name not in self.began:
            return whole
        counted = self._counted_left(name)
        guesses = [guess for guess in (counted,) if guess is not None]
        if whole is not None:
            guesses.append(whole - (time.monotonic() - self.began[name]))
        return max(0.0, *guesses) if guesses else None

    def left(self) -> float | None:
        """Return the seconds until the run is done; None while nothing is known."""
        left = {stage.name: self.left_of(stage.name) for stage in self.stages}
        known = {name: seconds for name, seconds in left.items() if seconds is not None}
        return self._play(known) if len(known) == len(left) else None

    def _whole(self, name: str) -> float | None:
        """Return the seconds of the whole stage: those of its kind in this run, else its share of
        the table at this run's pace."""
        kind = kind_of(name)
        same = [seconds for other, seconds in self.seconds.items() if kind_of(other) == kind]
        if same:
            return sum(same) / len(same)
        pace = self._pace()
        return None if pace is None else pace * reference_seconds(kind)

    def _pace(self) -> float | None:
        """Return this run's seconds per second of the table."""
        ours = 0.0
        theirs = 0.0
        now = time.monotonic()
        for name, seconds in self.seconds.items():
            if (reference := reference_seconds(kind_of(name))) >= LONG_ENOUGH:
                ours += seconds
                theirs += reference
        if theirs:
            return ours / theirs
        for name, began in self.began.items():
            reference = reference_seconds(kind_of(name))
            left = self._counted_left(name)
            if left is not None and reference >= LONG_ENOUGH:
                ours += now - began + left
                theirs += reference
        if theirs:
            self.last_pace = ours / theirs
        return self.last_pace

    def _counted_left(self, name: str) -> float | None:
        update = self.updates.get(name)
        return None if update is None or update.ended else update.left

    def _play(self, left: Mapping[str, float]) -> float:
        """Return the end of the schedule in which every stage takes its remaining time (see
        `Run`)."""
        running = {name: left[name] for name in self.began}
        waiting = [s for s in self.stages if s.name not in running and s.name not in self.seconds]
        exclusive = {stage.name for stage in self.stages if stage.exclusive}
        clock = 0.0
        while waiting or running:
            for stage in list(waiting):
                open_names = {*running, *(other.name for other in waiting)}
                alone = bool(exclusive & {stage.name, *running})
                if set(stage.needs) & open_names or len(running) >= (1 if alone else self.at_once):
                    continue
                running[stage.name] = left[stage.name]
                waiting.remove(stage)
            step = min(running.values())
            clock += step
            running = {name: rest - step for name, rest in running.items() if rest > step}
        return clock
