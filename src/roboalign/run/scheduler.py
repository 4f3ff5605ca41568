"""The stages of a run: which need which, what is already done, and what must run again.

A run is a folder. Each stage owns one folder in it; `stage.json` there is written last and names the key under which
the stage was done: a hash of its settings and of the keys of the stages it needs. The same key is never run twice; a
folder whose key differs is moved aside, never deleted; a folder without `stage.json` was killed and goes on.
"""

import hashlib
import itertools
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from roboalign.core.distributed import Team, leave_team
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import locked, read_json, write_json, write_text
from roboalign.core.processes import die_with_parent, give_memory_back
from roboalign.core.progress import format_seconds
from roboalign.run.graph import distill_stages, plan_stages
from roboalign.run.recipe import Recipe, cores, device_of, dump_recipe, processes
from roboalign.run.stage import Context, Stage, limit_threads

Say = Callable[[str], None]


def stage_table(recipe: Recipe, verb: str = "run") -> dict[str, Stage]:
    """Every stage of the recipe by name, in an order in which they can run; `distill` has stages of its own."""
    table: dict[str, Stage] = {}
    for stage in distill_stages(recipe) if verb == "distill" else plan_stages(recipe):
        unknown = [need for need in stage.needs if need not in table]
        assert not unknown, f"stage {stage.name} needs {unknown}, which come later"
        table[stage.name] = stage
    return table


def stage_keys(table: dict[str, Stage]) -> dict[str, str]:
    """The key of each stage: sha256 over its settings and the keys of what it needs."""
    keys: dict[str, str] = {}
    for stage in table.values():
        content = json.dumps(
            [stage.name, stage.settings, [keys[need] for need in stage.needs]], sort_keys=True
        )
        keys[stage.name] = hashlib.sha256(content.encode()).hexdigest()[:16]
    return keys


def select(table: dict[str, Stage], verb: str) -> list[str]:
    """Names of the stages that `verb` asks for, with all that they need, in order.

    `verb` is `run` (everything), or the first part of a stage's name below its seed: `mix`, `sft`, `head`, `eval`.
    Raises RoboAlignError where the recipe has no such stage.
    """
    wanted = set(table) if verb == "run" else {name for name in table if verb == _verb(name)}
    if not wanted:
        raise RoboAlignError(
            f"this recipe has no stage `{verb}`", fix=f"choose one of: {', '.join(table)}"
        )
    for stage in reversed(list(table.values())):
        if stage.name in wanted:
            wanted |= set(stage.needs)
    return [name for name in table if name in wanted]


def _verb(name: str) -> str:
    """`seed-0/head/roboalign` -> `head`."""
    parts = name.split("/")
    return parts[1] if parts[0].startswith("seed-") else parts[0]


def run_stages(
    recipe: Recipe,
    run_dir: str | Path,
    names: Iterable[str],
    say: Say = print,
    verb: str = "run",
    team: Team | None = None,
) -> None:
    """Run the named stages of `stage_table(recipe, verb)` in `run_dir`, skipping those done under the same key.

    Independent stages run side by side in `processes(recipe)` processes. The first stage that fails ends the run with
    its error once the stages beside it have ended; what is done stays done.

    Where this process is one of a `team`, its leader does all this, and the others take part in the `together` stages.
    """
    run_dir = Path(run_dir)
    if team:
        _check_patience(recipe)
        team.form_group(device_of(recipe.hardware), recipe.hardware.timeout)
    if team and not team.leads:
        for name in team.words():
            _work(recipe, run_dir, stage_table(recipe, verb)[name], cores() // team.local_size)
    else:
        with locked(run_dir):
            _run_stages(recipe, run_dir, names, say, verb, team)
    if team:
        team.part()


def _check_patience(recipe: Recipe) -> None:
    """Raise RoboAlignError where one process may wait for a server longer than the others wait for it."""
    for where, config in (("rl.vllm", recipe.rl), ("distill.rl.vllm", recipe.distill.rl)):
        if config.vllm is None:
            continue
        longest = (
            config.vllm.patience + config.vllm.timeout
        )  # the last try begins when patience ends
        if longest >= recipe.hardware.timeout:
            raise RoboAlignError(
                f"a process may wait {longest:g} s for the server (patience {config.vllm.patience:g}, timeout "
                f"{config.vllm.timeout:g}), and is held to be dead by the others after {recipe.hardware.timeout:g} s",
                where=where,
                fix=f"set hardware.timeout above {longest:g}, or less patience",
            )


def _run_stages(
    recipe: Recipe, run_dir: Path, names: Iterable[str], say: Say, verb: str, team: Team | None
) -> None:
    table = stage_table(recipe, verb)
    keys = stage_keys(table)
    write_text(run_dir / "recipe.yaml", dump_recipe(recipe))
    todo = []
    for name in names:
        state = _prepare(run_dir / name, keys[name], say)
        if state == "done":
            say(f"{name}: done before, nothing to do")
        else:
            todo.append(name)
    began = time.monotonic()
    if team:
        _run_with_team(recipe, run_dir, table, keys, todo, say, verb, team)
    elif processes(recipe) == 1:
        for number, name in enumerate(todo, start=1):
            _announce(say, name, number, len(todo), began)
            _finish(say, run_stage(recipe, run_dir, name, keys[name], verb))
    elif todo:
        _run_side_by_side(recipe, run_dir, table, keys, todo, say, verb, todo)
    say(
        f"run: {len(todo)} stages in {format_seconds(time.monotonic() - began)}, results in {run_dir}"
    )


def run_stage(
    recipe: Recipe, run_dir: Path, name: str, key: str, verb: str = "run", threads: int = 0
) -> dict[str, Any]:
    """Do one stage in this process and write its `stage.json`; its row of the ledger is returned.

    `seconds` is the wall time of this process in the stage. What a training loop itself took, killed processes before
    this one included, is `training_seconds`. `threads` 0: every core for an exclusive stage, else this process's share.
    """
    stage = stage_table(recipe, verb)[name]
    folder = run_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "started.json", {"key": key})
    began = time.monotonic()
    ledger = _work(
        recipe,
        run_dir,
        stage,
        threads or (cores() if stage.exclusive else cores() // processes(recipe)),
    )
    row = {"stage": name, "key": key, "seconds": round(time.monotonic() - began, 2)}
    row |= {
        "training_seconds" if count == "seconds" else count: value
        for count, value in ledger.items()
    }
    write_json(
        folder / "stage.json", {**row, "needs": list(stage.needs), "settings": stage.settings}
    )
    give_memory_back()
    return row


def _work(recipe: Recipe, run_dir: Path, stage: Stage, threads: int) -> dict[str, Any]:
    limit_threads(max(1, threads))
    return stage.work(
        Context(recipe=recipe, run_dir=run_dir, folder=run_dir / stage.name, name=stage.name)
    )


def _run_with_team(
    recipe: Recipe,
    run_dir: Path,
    table: dict[str, Stage],
    keys: dict[str, str],
    todo: list[str],
    say: Say,
    verb: str,
    team: Team,
) -> None:
    """The leader's part, in order: stretches of stages of its own, each in a process that trains alone, and those that
    all ranks do together."""
    began, told = time.monotonic(), 0
    for together, names in itertools.groupby(todo, lambda name: table[name].together):
        if not together:
            _run_side_by_side(recipe, run_dir, table, keys, list(names), say, verb, todo)
            continue
        for name in names:
            team.tell(told, name)
            told += 1
            _announce(say, name, todo.index(name) + 1, len(todo), began)
            _finish(
                say, run_stage(recipe, run_dir, name, keys[name], verb, cores() // team.local_size)
            )
    team.tell(told, "")


def _run_side_by_side(
    recipe: Recipe,
    run_dir: Path,
    table: dict[str, Stage],
    keys: dict[str, str],
    names: list[str],
    say: Say,
    verb: str,
    todo: list[str],
) -> None:
    """These stages, of all those of the run that are `todo`: one starts when those it needs are done and a process is
    free; an exclusive one waits for all of them."""
    began = time.monotonic()
    waiting, running = list(names), dict[Future[dict[str, Any]], str]()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes(recipe), mp_context=context, initializer=_begin_worker
    ) as pool:
        while waiting or running:
            unfinished = {*waiting, *running.values()}
            for name in list(waiting):
                blocked = any(need in unfinished for need in table[name].needs)
                alone = table[name].exclusive or any(
                    table[other].exclusive for other in running.values()
                )
                if blocked or len(running) >= (1 if alone else processes(recipe)):
                    continue
                _announce(say, name, todo.index(name) + 1, len(todo), began)
                running[pool.submit(run_stage, recipe, run_dir, name, keys[name], verb)] = name
                waiting.remove(name)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                try:
                    row = future.result()
                except BrokenProcessPool:
                    fix = "run the same command again: it goes on from the last checkpoint"
                    where = " or ".join(f"stage {one}" for one in (name, *running.values()))
                    raise RoboAlignError(
                        "its process was killed (out of memory?)", where=where, fix=fix
                    ) from None
                except BaseException:
                    waiting.clear()
                    raise
                _finish(say, row)


def _begin_worker() -> None:
    die_with_parent()
    leave_team()


def _announce(say: Say, name: str, number: int, total: int, began: float) -> None:
    say(f"[{number}/{total}] {name}: started at {format_seconds(time.monotonic() - began)}")


def _finish(say: Say, row: dict[str, Any]) -> None:
    say(f"{row['stage']}: finished in {format_seconds(row['seconds'])}")


def _prepare(folder: Path, key: str, say: Say) -> str:
    """`new`, `done` or `killed` (started under this key, not finished); a folder of another key is moved aside."""
    started, finished = folder / "started.json", folder / "stage.json"
    if not started.exists():
        return "new"
    old = read_json(started)["key"]
    if old == key:
        return "done" if finished.exists() else "killed"
    aside = next(
        path
        for count in range(1, 1000)
        if not (path := folder.with_name(f"{folder.name}.outdated-{old[:8]}-{count}")).exists()
    )
    folder.rename(aside)
    say(f"{folder.name}: settings or inputs changed; the old result is kept in {aside}")
    return "new"
