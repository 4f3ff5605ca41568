"""Format what `roboalign eval` prints at its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roboalign.evaluate.success import success_table
from roboalign.harness.score import Measurement
from roboalign.harness.settings import ClientConfig
from roboalign.report.console import fold, grid, render
from roboalign.report.progress_text import format_progress


def format_scores(
    measured: Measurement,
    client: ClientConfig,
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
) -> str:
    """Format success by task with Wilson's 95% intervals, crashes apart, and the protocol below."""
    rates = success_table({"server": rows}, [])["arms"]["server"]
    table = grid("task", "success", "95% interval", "crashes")
    for task, row in rates["tasks"].items():
        name = task.rpartition("/")[2].replace("_", " ")
        table.add_row(name, *_cells(row))
    table.add_row("all tasks", *_cells(rates["overall"]))
    lines = [render(table).rstrip(), ""]
    if chains := format_progress({"server": rates.get("progress")}):
        lines += [chains, ""]
    lines.append(_protocol(measured, client))
    crashed = [row for row in rows if row["crash"] is not None]
    if crashed:
        first = crashed[0]
        lines.append(
            f"{len(crashed)} crashes, counted neither as success nor as failure, the first: "
            f"{first['task']} seed {first['seed']}: {first['crash']}"
        )
    lines.append(f"records: {folder}")
    return fold("\n".join(lines))


def _protocol(measured: Measurement, client: ClientConfig) -> str:
    spec, rollout = measured.spec, measured.rollout
    line = spec.protocol_line(measured.settings, spec.cameras(measured.settings))
    return (
        f"{spec.title} {spec.name}, preset {client.preset}, {measured.episodes} episodes per task, at most "
        f"{rollout.max_steps} steps, {rollout.replan_every} actions of each chunk; {line}"
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    crashes = str(row["crashes"]) if row["crashes"] else ""
    if not row["n"]:
        return "none finished", "", crashes
    rate = f"{row['successes']}/{row['n']} = {100 * row['rate']:.1f}%"
    return rate, f"{100 * row['low']:.1f} to {100 * row['high']:.1f}%", crashes
