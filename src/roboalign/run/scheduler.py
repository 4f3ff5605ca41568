"""Run a recipe's stages: decide which stages there are, what is already done, and what must run
again.

A run is a folder in which each stage owns one folder. A stage's `stage.json` is written last and
holds the key under which the stage was done: a hash of its settings and of the keys of the stages
it needs. The same key never runs twice. A folder whose key differs is moved aside, never deleted. A
folder without `stage.json` was killed and is resumed.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from roboalign.core import progress
from roboalign.core.distributed import Team, leave_team
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import locked, write_json, write_text
from roboalign.core.machine import cores, device_of, side_by_side
from roboalign.core.processes import give_memory_back, worker_pool
from roboalign.core.state import State, check_digests, digests, read_state
from roboalign.core.trackers import check_trackers, tracking
from roboalign.run.load import dump_recipe
from roboalign.run.observer import Observer, PlainLines
from roboalign.run.recipe import Recipe
from roboalign.run.stage import Context, Stage, limit_threads

_Row = dict[str, Any]
AGAIN = "restore the file, or remove the stage's folder: the same command does the stage again"


class Started(State):
    """Contents of started.json: the key under which a stage was begun."""

    key: str = Field(pattern=r"^[0-9a-f]{16}$")


class Digest(State):
    """What stage.json records about a file of its folder: its sha256, or only the size if it is
    large."""

    sha256: str = ""
    lines: int | None = None
    bytes: int | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Digest":
        if bool(self.sha256) == (self.bytes is not None):
            raise ValueError("one of sha256 and bytes belongs to a file")
        return self


class Finished(Started):
    """Contents of stage.json that every stage has."""

    stage: str
    seconds: float
    needs: list[str] = Field(default_factory=list)
    files: dict[str, Digest] = Field(default_factory=dict)


class Run:
    """Run the stages of one recipe in one folder.

        run = Run(recipe, "runs/mine", plan_stages(recipe))
        run.execute(run.select(until="rl"))

    `observer` is notified of events. If this process is one of a `team`, its leader does all the
    work except the `together` stages, in which the others take part.
    """

    def __init__(
        self,
        recipe: Recipe,
        run_dir: str | Path,
        stages: Iterable[Stage],
        observer: Observer | None = None,
        team: Team | None = None,
    ) -> None:
        self.recipe = recipe
        self.run_dir = Path(run_dir)
        self.stages = by_name(stages)
        self.keys = stage_keys(self.stages)
        self.observer: Observer = observer or PlainLines()
        self.team = team

    def select(self, until: str | None = None) -> list[str]:
        """Return the names of the stages up to `until`, with all that they need, in order; None:
        all stages.

        `until` is a stage's name (`seed-0/head/roboalign`), or its leading parts, with or without
        the seed: `head` is every head, `eval/tokens` all token metrics, `seed-1` everything of that
        seed. Raises RoboAlignError if the recipe has no such stage.
        """
        if until is None:
            return list(self.stages)
        wanted = {stage.name for stage in self.stages.values() if _is_part(stage, until)}
        if not wanted:
            available = ", ".join(self.stages)
            raise RoboAlignError(
                f"stage `{until}` not found. Available: {available}",
                fix="name one of them, or the first words of several, as `head`",
            )
        for stage in reversed(self.stages.values()):
            if stage.name in wanted:
                wanted |= set(stage.needs)
        return [name for name in self.stages if name in wanted]

    def execute(self, names: Iterable[str] | None = None) -> None:
        """Run the named stages, or all, skipping those done under the same key.

        Independent stages run at the same time, in as many processes as `recipe.parallel` says.
        When a stage fails, the running stages finish first, and then the run ends with its error.
        What is done stays done.
        """
        wanted = list(self.stages if names is None else names)
        check_trackers(self.recipe.trackers)
        if self.team is None:
            with locked(self.run_dir):
                self._lead(wanted)
            return
        _check_patience(self.recipe)
        hardware = self.recipe.hardware
        self.team.form_group(device_of(hardware.device), hardware.timeout)
        if self.team.leads:
            with locked(self.run_dir):
                self._lead(wanted)
        else:
            self._follow(self.team)
        self.team.part()

    def do(self, name: str, threads: int = 0) -> _Row:
        """Run one stage in this process; return its row of the ledger. See `do_stage`."""
        stage = self.stages[name]
        return do_stage(self.recipe, self.run_dir, stage, self.keys[name], threads)

    def _lead(self, names: list[str]) -> None:
        write_text(self.run_dir / "recipe.yaml", dump_recipe(self.recipe))
        done = [name for name in names if self._prepare(name)]
        todo = [name for name in names if name not in done]
        self.observer.run_started([self.stages[name] for name in todo], done)
        began = time.monotonic()
        if self.team:
            self._with_team(todo, self.team)
        elif side_by_side(self.recipe.parallel) == 1:
            for name in todo:
                self._here(name, todo)
        elif todo:
            self._side_by_side(todo, todo)
        self.observer.run_ended(time.monotonic() - began, self.run_dir)

    def _follow(self, team: Team) -> None:
        """Do the part of a process that does not lead: its share of each stage that the leader
        names."""
        for name in team.words():
            limit_threads(max(1, cores() // team.local_size))
            stage = self.stages[name]
            stage.work(Context(self.recipe, self.run_dir, stage))

    def _with_team(self, todo: list[str], team: Team) -> None:
        """Do the leader's part, in order.

        Consecutive stages for the leader alone each run in a process that trains alone; all ranks
        run the `together` stages.
        """
        told = 0
        for together, names in itertools.groupby(todo, lambda name: self.stages[name].together):
            if not together:
                self._side_by_side(list(names), todo)
                continue
            for name in names:
                team.tell(told, name)
                told += 1
                self._here(name, todo, cores() // team.local_size)
        team.tell(told, "")

    def _here(self, name: str, todo: list[str], threads: int = 0) -> None:
        """Run one stage in this process."""
        self._tell_start(name, todo)
        self.observer.stage_finished(name, self.do(name, threads))

    def _side_by_side(self, names: list[str], todo: list[str]) -> None:
        """Run these stages side by side; `todo` lists all stages of the run that are to be done.

        A stage starts when those it needs are done and a process is free; an exclusive one waits
        for all running stages.
        """
        waiting = list(names)
        running: dict[Future[_Row], str] = {}
        channel = self.observer.channel()
        workers = side_by_side(self.recipe.parallel)
        with worker_pool(workers, _begin_worker, (channel,)) as pool:
            while waiting or running:
                for name in list(waiting):
                    if self._may_start(name, waiting, list(running.values())):
                        self._tell_start(name, todo)
                        work = (self.recipe, self.run_dir, self.stages[name], self.keys[name])
                        running[pool.submit(do_stage, *work)] = name
                        waiting.remove(name)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(future)
                    row = _row_of(future, [name, *running.values()])
                    self.observer.stage_finished(name, row)

    def _may_start(self, name: str, waiting: list[str], running: list[str]) -> bool:
        """Return whether what the stage needs is done and there is a process for it."""
        if set(self.stages[name].needs) & {*waiting, *running}:
            return False
        alone = any(self.stages[one].exclusive for one in (name, *running))
        return len(running) < (1 if alone else side_by_side(self.recipe.parallel))

    def _tell_start(self, name: str, todo: list[str]) -> None:
        self.observer.stage_started(name, todo.index(name) + 1, len(todo))

    def _prepare(self, name: str) -> bool:
        """Return whether the stage is done under its key; move a folder with another key aside."""
        folder = self.run_dir / name
        started = folder / "started.json"
        if not started.exists():
            return False
        old = read_state(started, Started, AGAIN)["key"]
        if old == self.keys[name]:
            return _is_done(folder, old)
        aside = next(
            path
            for count in range(1, 1000)
            if not (path := folder.with_name(f"{folder.name}.outdated-{old[:8]}-{count}")).exists()
        )
        folder.rename(aside)
        self.observer.note(
            f"[{name}] settings or inputs changed; the old result is kept in {aside}"
        )
        return False


def _is_done(folder: Path, key: str) -> bool:
    """Return whether a stage begun under this key has ended. Raises RoboAlignError if its output is
    damaged."""
    path = folder / "stage.json"
    if not path.exists():
        return False
    row = read_state(path, Finished, AGAIN)
    if row["key"] != key:
        raise RoboAlignError("its key is not that of started.json", where=str(path), fix=AGAIN)
    check_digests(folder, row.get("files", {}), AGAIN)
    return True


def by_name(stages: Iterable[Stage]) -> dict[str, Stage]:
    """Return the stages by name, each after those it needs."""
    table: dict[str, Stage] = {}
    for stage in stages:
        unknown = [need for need in stage.needs if need not in table]
        assert not unknown, f"stage {stage.name} needs {unknown}, which come later"
        table[stage.name] = stage
    return table


def stage_keys(table: dict[str, Stage]) -> dict[str, str]:
    """Return the key of each stage: sha256 over its settings and the keys of what it needs."""
    keys: dict[str, str] = {}
    for stage in table.values():
        needs = [keys[need] for need in stage.needs]
        keys[stage.name] = stage_key(stage.name, stage.settings, needs)
    return keys


def stage_key(name: str, settings: dict[str, Any], needs: list[str]) -> str:
    """Return the key of one stage; `needs` are the keys of the stages it needs, in order."""
    content = json.dumps([name, settings, needs], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def do_stage(recipe: Recipe, run_dir: Path, stage: Stage, key: str, threads: int = 0) -> _Row:
    """Run one stage in this process and write its `stage.json`; return its row of the ledger.

    `seconds` is the wall time of this process in the stage. `training_seconds` is the time of the
    training loop, including earlier processes that were killed. `threads` 0: every core for an
    exclusive stage, else this process's share.
    """
    folder = run_dir / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "started.json", {"key": key})
    began = time.monotonic()
    share = cores() if stage.exclusive else cores() // side_by_side(recipe.parallel)
    limit_threads(max(1, threads or share))
    with progress.of_stage(stage.name), tracking(recipe.trackers, recipe.name, stage.name):
        ledger = stage.work(Context(recipe, run_dir, stage))
    row = {"stage": stage.name, "key": key, "seconds": round(time.monotonic() - began, 2)}
    for count, value in ledger.items():
        row["training_seconds" if count == "seconds" else count] = value
    described = {**row, "needs": list(stage.needs), "settings": stage.settings}
    described["files"] = digests(folder, ("started.json", "stage.json"))
    write_json(folder / "stage.json", described)
    give_memory_back()
    return row


def _is_part(stage: Stage, until: str) -> bool:
    """Return whether `until` is the stage's name or its leading parts, with or without the seed."""
    return any(f"{name}/".startswith(f"{until}/") for name in (stage.name, stage.kind))


def _check_patience(recipe: Recipe) -> None:
    """Raise RoboAlignError if one process may wait for a server longer than the others wait for
    it."""
    for where, config in (("rl.vllm", recipe.rl), ("distill.rl.vllm", recipe.distill.rl)):
        if config.vllm is None:
            continue
        # The last attempt begins when patience ends.
        longest = config.vllm.patience + config.vllm.timeout
        if longest >= recipe.hardware.timeout:
            raise RoboAlignError(
                f"a process may wait {longest:g} s for the server (patience {config.vllm.patience:g}, timeout "
                f"{config.vllm.timeout:g}), and is held to be dead by the others after {recipe.hardware.timeout:g} s",
                where=where,
                fix=f"set hardware.timeout above {longest:g}, or less patience",
            )


def _row_of(future: Future[_Row], names: list[str]) -> _Row:
    """Return the stage's result from this future. If the process died, any of the stages `names`
    may have caused it."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise RoboAlignError(
            "its process was killed (out of memory?)",
            where=" or ".join(f"stage {name}" for name in names),
            fix="run the same command again: it continues from the last checkpoint",
        ) from None


def _begin_worker(channel: "Queue[Any] | None") -> None:
    """Prepare a process that runs stages: it trains alone, and its progress goes where the observer
    says."""
    leave_team()
    if channel is not None:
        progress.send_to(channel)
