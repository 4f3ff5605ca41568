"""Stage `collect`: demonstrations of the alignment tasks and the downstream tasks, as two LeRobot
v3.0 data sets."""

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import append_jsonl, read_jsonl, write_json, write_text
from roboalign.core.machine import cores
from roboalign.core.progress import say
from roboalign.episodes.episode import Camera
from roboalign.episodes.formats.lerobot_writer import LeRobotWriter
from roboalign.run.benchmark import action_space_of, alignment_benchmark, demonstrated_benchmark
from roboalign.run.demos import DemosPart, OwnDemonstrations
from roboalign.run.recipe import Recipe
from roboalign.run.stage import Context
from roboalign.sim.base import DemonstratedBenchmark
from roboalign.sim.collect import CollectConfig, Collected, EpisodeRecord
from roboalign.sim.collect import collect as collect_episodes


def collect_stage(context: Context) -> dict[str, Any]:
    """Write align/ (unless a mixture is given), downstream/ and experts.json (per task: attempts,
    solved, ...).

    Of a part that the user recorded, write PART.json instead: what was read, and the split.
    """
    own = own_parts(context.recipe)
    totals = {"recorded": sum(_read_own(context, part) for part in own)} if own else {}
    return {**totals, **_collect_experts(context, own)}


def own_parts(recipe: Recipe) -> list[DemosPart]:
    """Return the parts whose demonstrations are the user's own; a given mixture aligns by itself."""
    parts: tuple[DemosPart, ...] = (
        ("align", "downstream") if recipe.mixture is None else ("downstream",)
    )
    return [part for part in parts if recipe.demos.of(part)]


def _read_own(context: Context, part: DemosPart) -> int:
    """Read a part's data sets, say what they are, and record it; return the number of episodes."""
    mix = context.recipe.mix
    read = OwnDemonstrations(context.recipe.demos, part, mix.heldout_episode_share, mix.seed)
    if not read.held_out:
        raise RoboAlignError(
            "no episode is held out, and nothing could be measured",
            where="mix.heldout_episode_share",
            fix="set it above 0, and record two episodes or more",
        )
    for sentence in (line for one in read.sets for line in one.sentences()):
        say(sentence)
    write_json(context.folder / f"{part}.json", read.record())
    return len(read.episodes)


def _collect_experts(context: Context, own: Sequence[DemosPart]) -> dict[str, Any]:
    """Collect the demonstrations of the parts that are not the user's own."""
    config = context.recipe.collect
    table: dict[str, dict[str, int]] = {}
    if "downstream" not in own:  # first, because its simulator may be missing
        downstream = demonstrated_benchmark(context.recipe)
    align_tasks: Sequence[str] = ()
    if context.recipe.mixture is None and "align" not in own:
        align_tasks = config.align_names()
    n_align = len(align_tasks) * config.align.episodes_per_task
    n_downstream = len(config.downstream_names()) * config.downstream.episodes_per_task
    n_downstream *= "downstream" not in own
    if align_tasks:
        table |= _collect_set(
            context.folder / "align",
            align_tasks,
            alignment_benchmark(context.recipe),
            config.align,
            counted_after=n_downstream,
        )
    if "downstream" not in own:
        table |= _collect_set(
            context.folder / "downstream",
            config.downstream_names(),
            downstream,
            config.downstream,
            counted_before=n_align,
        )
    if not table:
        return {}
    write_json(context.folder / "experts.json", table)
    totals = {
        key: sum(row[key] for row in table.values())
        for key in ("attempts", "solved", "crashed", "frames")
    }
    return {"tasks": len(table), **totals}


def _collect_set(
    folder: Path,
    tasks: Sequence[str],
    benchmark: DemonstratedBenchmark,
    settings: CollectConfig,
    counted_before: int = 0,
    counted_after: int = 0,
) -> dict[str, dict[str, int]]:
    """Collect one data set. Keep what an earlier, killed call wrote; its failed attempts are in
    attempts.jsonl.

    `counted_before` and `counted_after`: wanted episodes of the other set, for one progress bar
    over both.
    """
    writer = LeRobotWriter(
        folder,
        fps=benchmark.fps,
        robot_type=benchmark.robot_type,
        action_names=benchmark.action_names,
        state_names=benchmark.state_names,
        privileged_names=benchmark.privileged_names(tasks),
        episodes_per_file=10,
        action_space=action_space_of(benchmark),
        axes=benchmark.axes,
        cameras=dict.fromkeys(benchmark.cameras, (benchmark.image_size, benchmark.image_size)),
    )
    log = folder / "attempts.jsonl"
    existing = set(writer.episode_ids)
    try:
        for outcome in collect_episodes(
            tasks,
            benchmark,
            settings,
            workers=cores(),
            existing=existing,
            counted_before=counted_before,
            counted_after=counted_after,
        ):
            append_jsonl(log, _log_row(outcome))
            if outcome.record is not None:
                _add(writer, outcome.record)
    except BrokenProcessPool:
        raise RoboAlignError(
            "a collecting process was killed (out of memory?)",
            where=str(folder),
            fix="run the same command again: it continues after the last episode",
        ) from None
    writer.finalize()
    rows = _settled(tasks, read_jsonl(log))
    write_text(log, "".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / "names.json", _names(tasks, rows))
    return _table(tasks, rows)


def _names(tasks: Sequence[str], rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Count for each task of an expert what its episodes are named, and why others were left out."""
    found = {}
    for task in tasks:
        of_task = [row for row in rows if row["task"] == task]
        named = Counter(row.get("named") or task for row in of_task if row["episode_id"])
        reasons = Counter(reason for row in of_task for reason in row["reasons"])
        found[task] = {"named": dict(named), "left_out": dict(reasons)}
    return found


def _add(writer: LeRobotWriter, record: EpisodeRecord) -> None:
    cameras = {
        name: Camera(name, c.width, c.height, c.projection) for name, c in record.cameras.items()
    }
    writer.add(
        episode_id=record.episode_id,
        task=record.task,
        instruction=record.instruction,
        actions=record.actions,
        state=record.state,
        frames=record.frames,
        cameras=cameras,
        privileged=record.privileged,
        privileged_names=record.privileged_names,
        nouns=dict(record.nouns),
        success_step=record.success_step,
    )


def _log_row(outcome: Collected) -> dict[str, Any]:
    record = outcome.record
    first = outcome.failures[0].seed if outcome.failures else record.seed if record else None
    return {
        "task": outcome.task,
        "first_seed": first,
        "episode_id": record.episode_id if record else None,
        "named": record.task if record else None,
        "frames": len(record.actions) if record else 0,
        "unsolved": sum(not failure.crashed for failure in outcome.failures),
        "crashed": sum(failure.crashed for failure in outcome.failures),
        "reasons": [failure.reason for failure in outcome.failures],
    }


def _settled(tasks: Sequence[str], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per wanted episode, in order of task and first seed, as in a collection that
    was never killed.

    An episode that was tried again after a kill has two rows; the later one counts.
    """
    latest = {(tasks.index(row["task"]), row["first_seed"]): row for row in rows}
    return [latest[key] for key in sorted(latest)]


def _table(tasks: Sequence[str], rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    table = {
        task: dict.fromkeys(("attempts", "solved", "unsolved", "crashed", "frames"), 0)
        for task in tasks
    }
    for row in rows:
        entry, solved = table[row["task"]], int(row["episode_id"] is not None)
        entry["solved"] += solved
        entry["frames"] += row["frames"]
        entry["unsolved"] += row["unsolved"]
        entry["crashed"] += row["crashed"]
        entry["attempts"] += solved + row["unsolved"] + row["crashed"]
    empty = [task for task, row in table.items() if not row["solved"]]
    if empty:
        raise RoboAlignError(
            f"no demonstration succeeded for {', '.join(empty)}",
            where="collect",
            fix="lower collect.align.noise, or leave the task out of the recipe",
        )
    return table
