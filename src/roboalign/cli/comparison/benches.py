"""`roboalign compare` with two folders of `roboalign bench`: the same items, pair by pair."""

import json
from pathlib import Path
from typing import Any

from roboalign.bench.measure import MODEL_FILE, TASK_FILE, ModelState, ReplyState
from roboalign.bench.summary import pair_records
from roboalign.cli.bench_text import pair_line
from roboalign.cli.comparison.sides import differing, leaves, refuse_differences
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.core.state import read_records, read_state
from roboalign.report.console import fold


def is_benched(folder: Path) -> bool:
    """Return whether `roboalign bench` wrote the folder, or the folder of a model in it."""
    return bool(_models_in(folder))


def compare_benches(folders: list[str], *, as_json: bool = False) -> str:
    """Compare two models on every task that both were asked, as text or JSON.

    Raises RoboAlignError unless their protocols, items and wordings are the same.
    """
    if len(folders) != 2 or Path(folders[0]).resolve() == Path(folders[1]).resolve():
        raise RoboAlignError(
            "a comparison of benchmarks has two models",
            where="compare",
            fix="give two folders of `roboalign bench`, each of one model: before, then after",
        )
    before, after = (_model_of(Path(folder)) for folder in folders)
    tasks = [name for name in _tasks_in(before) if name in _tasks_in(after)]
    if not tasks:
        raise RoboAlignError(
            f"they share no task: {', '.join(_tasks_in(before))} and {', '.join(_tasks_in(after))}",
            where=f"{before} and {after}",
            fix="measure both on the same tasks",
        )
    names = (str(before), str(after))
    result: dict[str, Any] = {"before": names[0], "after": names[1], "tasks": {}}
    for task in tasks:
        _refuse_other_protocols(before / task, after / task)
        first, second = (
            read_records(model / task / "asked.jsonl", ReplyState) for model in (before, after)
        )
        for model, records in ((before, first), (after, second)):
            _refuse_unfinished(model / task, records)
        result["tasks"][task] = pair_records(first, second, names=("before", "after"), task=task)
    result["settings_differ_in"] = _other_settings(before, after)
    return json.dumps(result, indent=2) if as_json else _format(result)


def _models_in(folder: Path) -> list[Path]:
    if (folder / MODEL_FILE).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{MODEL_FILE}"))


def _tasks_in(model: Path) -> list[str]:
    return sorted(path.parent.name for path in model.glob(f"*/{TASK_FILE}"))


def _model_of(folder: Path) -> Path:
    found = _models_in(folder)
    if len(found) == 1:
        return found[0]
    problem = f"it has {len(found)} models" if found else "nothing of `roboalign bench` is here"
    raise RoboAlignError(
        problem,
        where=str(folder),
        fix=f"give one of {', '.join(map(str, found))}" if found else "give the --out of a bench",
    )


def _refuse_other_protocols(before: Path, after: Path) -> None:
    a, b = (dict(leaves(read_json(path / TASK_FILE))) for path in (before, after))
    refuse_differences(
        a,
        b,
        where=f"{before} and {after}",
        fix="measure both on the same data with the same --preset and --limit",
    )


def _refuse_unfinished(folder: Path, records: list[dict[str, Any]]) -> None:
    """Refuse the replies of a command that was killed: two may have the same first items."""
    asked = read_json(folder / TASK_FILE)["items"]
    if len(records) != asked:
        raise RoboAlignError(
            f"{len(records)} of {asked} items are answered",
            where=str(folder),
            fix="repeat the command that measures it; it continues",
        )


def _other_settings(before: Path, after: Path) -> list[dict[str, Any]]:
    """Return the settings and versions in which the two differ: they may move single replies."""
    a, b = (
        {
            key: value
            for key, value in leaves(read_state(path / MODEL_FILE, ModelState))
            if key.startswith(("settings.", "versions."))
        }
        for path in (before, after)
    )
    return differing(a, b)


def _format(result: dict[str, Any]) -> str:
    lines = [f"before: {result['before']}", f"after:  {result['after']}", ""]
    lines += [f"{task}: {pair_line(pair)}" for task, pair in result["tasks"].items()]
    for row in result["settings_differ_in"]:
        lines.append(f"caution: {row['key']} {row['before']} before, {row['after']} after")
    return fold("\n".join(lines)) + "\n"
