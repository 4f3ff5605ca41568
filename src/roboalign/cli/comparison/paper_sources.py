"""Read what a folder or file holds for the paper's tables: runs, scored servers, benches, probes and
logs of trials."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from roboalign.cli.comparison.trials import plan_of
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl
from roboalign.evaluate.statistics import wilson
from roboalign.evaluate.success import success_table
from roboalign.report.comparison import Measured
from roboalign.report.paper_numbers import (
    CALVIN_TABLE,
    LIBERO_TABLE,
    MODEL,
    ROBOT_TABLE,
    TARGETS_TABLE,
)
from roboalign.report.paper_tables import MeasuredCell, MeasuredRow, Source
from roboalign.sim.calvin.chains import COUNT
from roboalign.sim.libero.task_names import SUITE_TASKS
from roboalign.trial.plan import LOG_ENDING
from roboalign.trial.results import results_of

SUITE_COLUMNS = {
    "libero_spatial": "Spatial",
    "libero_object": "Object",
    "libero_goal": "Goal",
    "libero_10": "Long",
}
EPISODES_PER_TASK = 50
"""Of the paper on LIBERO."""
BENCH_COLUMNS = {
    "mmstar": "MMStar",
    "robospatial": "Robo-\nSpatial",
    "where2place": "Where2-\nPlace",
    "blink_relative_depth": "BLINK\ndepth",
    "robot_r1": "Robot-R1",
}
_FIX = (
    "give a run's folder or one of docs/results/, the folder of an eval or bench, the file of a "
    "probe, or a trial's log"
)


def read_paper_source(path: Path) -> Source | None:
    """Return what one folder or file, other than a run's, holds for the tables; None for a run.

    Raises RoboAlignError if it is none of them.
    """
    if path.name.endswith(LOG_ENDING):
        return _trial(path)
    if path.is_file():
        return _probe(path)
    if (path / "recipe.yaml").is_file():
        return None
    if (path / "client.json").is_file():
        return _scored(path)
    if (path / "summary.json").is_file():
        return _bench(path)
    raise RoboAlignError("it holds no results", where=str(path), fix=_FIX)


def merged(runs: Sequence[Measured]) -> list[Measured]:
    """Return the runs, those of one name as one: a recipe that was run once for each suite.

    Raises RoboAlignError if two of one name measured an arm in the same task.
    """
    by_name: dict[str, Measured] = {}
    for run in runs:
        before = by_name.get(run.name)
        by_name[run.name] = run if before is None else _together(before, run)
    return list(by_name.values())


def _together(a: Measured, b: Measured) -> Measured:
    success = {}
    for arm in dict.fromkeys((*a.success, *b.success)):
        one, two = (side.success.get(arm, {"tasks": {}})["tasks"] for side in (a, b))
        if twice := sorted(set(one) & set(two)):
            raise RoboAlignError(
                f"two runs are called {a.name}, and both measured {arm} in {twice[0]}",
                where="SOURCE",
                fix="give one of them, or another `name` to the recipe of one",
            )
        crashes = sum(
            side.success[arm]["overall"]["crashes"] for side in (a, b) if arm in side.success
        )
        success[arm] = {"overall": {"crashes": crashes}, "tasks": {**one, **two}}
    model = a.model if a.model == b.model else f"{a.model}; {b.model}"
    tasks = tuple(dict.fromkeys((*a.tasks, *b.tasks)))
    return replace(a, tasks=tasks, model=model, success=success)


def suites_of(run: Measured) -> Source:
    """Return the rows of a run on LIBERO."""
    source = Source(run.name)
    targets = set(run.success) & {"ecot", "language-rl", "trajectory-rl"}
    for arm, rows in run.success.items():
        cells = _suite_cells(rows["tasks"])
        source.rows.append(MeasuredRow("libero", arm, run.name, cells))
        if targets and arm in TARGETS_TABLE.rows:
            source.rows.append(MeasuredRow("targets", arm, run.name, cells))
    different = _differs(run)
    for name in ("libero", "targets") if targets else ("libero",):
        source.differs[name] = different
    return source


def on_libero(run: Measured) -> bool:
    """Return whether a run measured tasks of LIBERO's four suites."""
    return bool(_suites(run.tasks))


def _suites(tasks: Sequence[str]) -> list[str]:
    """Return LIBERO's four suites of which there are tasks."""
    named = {task.partition("/")[0] for task in tasks}
    return [suite for suite in SUITE_COLUMNS if suite in named]


def _suite_cells(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, MeasuredCell]:
    """Return the success rate of each suite, and their mean if there are all four."""
    counts = {}
    for suite, column in SUITE_COLUMNS.items():
        rows = [row for name, row in tasks.items() if name.partition("/")[0] == suite]
        if n := sum(row["n"] for row in rows):
            counts[column] = (sum(row["successes"] for row in rows), n)
    cells = {column: percent_cell(*count) for column, count in counts.items()}
    if len(cells) < len(SUITE_COLUMNS):
        return cells
    mean = sum(cell.value for cell in cells.values()) / len(cells)
    all_n = sum(n for _, n in counts.values())
    if len({n for _, n in counts.values()}) > 1:
        # A suite of fewer episodes weighs as much as the others: no interval of a share holds.
        return {**cells, LIBERO_TABLE.columns[-1]: MeasuredCell(mean, None, None, all_n)}
    return {
        **cells,
        LIBERO_TABLE.columns[-1]: percent_cell(sum(k for k, _ in counts.values()), all_n),
    }


def chains_of(run: Measured) -> Source:
    """Return the rows of a run on CALVIN: chains of five tasks in a row."""
    source = Source(run.name)
    counts = set()
    for arm, rows in run.success.items():
        if (found := rows.get("progress")) is None:
            continue
        counts.add(found["chains"])
        *shares, mean = CALVIN_TABLE.columns
        cells = {name: _scaled(one, 100) for name, one in zip(shares, found["in_a_row"])}
        cells[mean] = _scaled(found["mean"], 1)
        source.rows.append(MeasuredRow("calvin", arm, run.name, cells))
    if MODEL.lower() not in run.model.lower():
        source.differs["calvin"] = [f"another model: {run.model}."]
    if counts and counts != {COUNT}:
        fewer = " to ".join(map(str, sorted({min(counts), max(counts)})))
        source.differs.setdefault("calvin", []).append(f"{fewer} chains; the paper has {COUNT}.")
    return source


def percent_cell(successes: int, n: int) -> MeasuredCell:
    """Return a success rate in percent with Wilson's interval; n > 0."""
    low, high = wilson(successes, n)
    return MeasuredCell(100 * successes / n, 100 * low, 100 * high, n)


def _differs(run: Measured) -> list[str]:
    """Return why measured numbers on LIBERO are no reproduction of the paper's."""
    found = []
    if MODEL.lower() not in run.model.lower():
        found.append(f"another model: {run.model}.")
    for suite in _suites(run.tasks):
        tasks = [task for task in run.tasks if task.startswith(f"{suite}/")]
        if len(tasks) < len(SUITE_TASKS[suite]):
            found.append(f"{len(tasks)} of the {len(SUITE_TASKS[suite])} tasks of {suite}.")
    counts = {row["n"] for arm in run.success.values() for row in arm["tasks"].values()}
    if counts != {EPISODES_PER_TASK}:
        shown = " to ".join(map(str, sorted({min(counts), max(counts)})))
        found.append(f"{shown} episodes a task and arm; the paper has {EPISODES_PER_TASK}.")
    if crashes := sum(arm["overall"]["crashes"] for arm in run.success.values()):
        found.append(f"{crashes} crashed episodes are left out.")
    if run.counts == "matched" and {"language-sft", "action-sft"} & set(run.success):
        found.append(
            "language-only and action-only SFT have as many samples as the whole mixture; the "
            "paper's have 1.88 of 2.28 million."
        )
    return found


def _scored(folder: Path) -> Source:
    """Return the rows of `roboalign eval`'s folder: a server's policy on LIBERO."""
    records = read_jsonl(folder / "episodes.jsonl")
    if not records:
        raise RoboAlignError(
            "it has no episodes yet", where=str(folder), fix="give the same `roboalign eval` again"
        )
    name = folder.resolve().name
    arms = success_table({name: [{"run_seed": 0, **row} for row in records]}, [])["arms"]
    tasks = tuple(dict.fromkeys(row["task"] for row in records))
    run = Measured(name, "libero", tasks, "a server's policy", "", arms, {})
    if not on_libero(run):
        raise RoboAlignError(
            f"the paper has no table for {tasks[0].partition('/')[0]}",
            where=str(folder),
            fix="compare it with a run: roboalign compare",
        )
    return suites_of(run)


def _bench(folder: Path) -> Source:
    """Return the rows of `roboalign bench`'s folder."""
    summary = read_json(folder / "summary.json", fix=_FIX)
    try:
        tasks, settings = summary["tasks"], summary["settings"]
        models = list(summary["models"])
        found = {
            model: {
                BENCH_COLUMNS[name]: _score(task["models"][model]["asked"])
                for name, task in tasks.items()
                if name in BENCH_COLUMNS and task["models"][model]["asked"]["score"]["n"]
            }
            for model in models
        }
    except (KeyError, TypeError):
        raise RoboAlignError(
            "it is no summary of a bench", where=str(folder / "summary.json"), fix=_FIX
        ) from None
    source = Source(folder.resolve().name)
    source.rows = [
        MeasuredRow("mllm", model, source.name, cells) for model, cells in found.items() if cells
    ]
    if not source.rows:
        raise RoboAlignError(
            f"the paper has none of {', '.join(tasks)}",
            where=str(folder),
            fix=f"measure some of {', '.join(BENCH_COLUMNS)}",
        )
    unlike = [name for name in tasks if name not in BENCH_COLUMNS]
    source.differs["mllm"] = [
        f"asked by preset `{settings['preset']}`, mode `{settings['mode']}`; the paper names no protocol.",
        *([f"not in the paper: {', '.join(unlike)}."] if unlike else []),
    ]
    return source


def _score(asked: Mapping[str, Any]) -> MeasuredCell:
    """Return a task's score: on the judge's scale if it has one, else in percent."""
    score = asked["score"]
    headline = asked.get("headline")
    graded = headline is not None and headline["name"] == "mean of 0 to 3"
    scale = 3 if graded else 100
    return _scaled(score, scale)


def _probe(path: Path) -> Source:
    """Return the rows of the file that `roboalign probe` writes, at the layer that the head reads."""
    found = read_json(path, fix=_FIX)
    try:
        layer, settings = str(found["head_layer"]), found["settings"]
        chosen = {arm: layers.get(layer) for arm, layers in found["arms"].items()}
        name, tasks = found["recipe"], ", ".join(found["tasks"])
        if absent := [arm for arm, row in chosen.items() if row is None]:
            raise RoboAlignError(
                f"layer {layer}, which the head reads, was not probed for {', '.join(absent)}",
                where=str(path),
                fix=f"roboalign probe {found['run']} --layers {layer}",
            )
        cells = {arm: row["accuracy"] for arm, row in chosen.items() if row}
        source = Source(name)
        source.rows = [
            MeasuredRow("probe", arm, name, {"accuracy": _scaled(one, 100)})
            for arm, one in cells.items()
        ]
        source.differs["probe"] = [
            f"{found['episodes']} demonstrations of {tasks}; {settings['phases']} phases, "
            f"k = {settings['k']}, layer {layer}: the paper names none of the three.",
        ]
    except (KeyError, TypeError, AttributeError):
        raise RoboAlignError("it is no file of a probe", where=str(path), fix=_FIX) from None
    return source


def _scaled(estimate: Mapping[str, Any], scale: float) -> MeasuredCell:
    """Return an estimate of a share in the unit of its column."""
    low, high = (
        None if estimate[end] is None else scale * estimate[end] for end in ("low", "high")
    )
    return MeasuredCell(scale * estimate["value"], low, high, estimate["n"])


def _trial(log: Path) -> Source:
    """Return the rows of a study on a robot. A study that is not finished is refused."""
    found = results_of(log, plan_of(log, None))
    tasks = list(found["tasks"])
    source = Source(found["study"])
    *columns, average = ROBOT_TABLE.columns
    for arm, rates in found["arms"].items():
        each = {column: rates["tasks"][task] for column, task in zip(columns, tasks)}
        named = {**each, average: rates["overall"]}
        cells = {
            column: percent_cell(row["successes"], row["n"])
            for column, row in named.items()
            if row["n"]
        }
        source.rows.append(MeasuredRow("robot", arm, source.name, cells))
    listed = "; ".join(f"{column} is {task!r}" for column, task in zip(columns, tasks))
    source.differs["robot"] = [f"other tasks and another robot: {listed}."]
    if len(tasks) > len(columns):
        source.differs["robot"].append(f"{len(tasks)} tasks; the average is over all of them.")
    return source
