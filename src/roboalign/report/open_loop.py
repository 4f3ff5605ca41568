"""Show an open-loop comparison (`evaluate.open_loop`): in the page of a run, on a page of its own,
and on a terminal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from roboalign.core.files import write_text
from roboalign.evaluate.statistics import paired_difference
from roboalign.report.console import fold, grid, render
from roboalign.report.plots import line_plot, trace_plot
from roboalign.report.tables import Cell, Table
from roboalign.report.text import number_text, percent

TITLES = {"policy": "policy", "mean": "mean action", "hold": "last action held"}
MOST_PANELS = 12
"""Dimensions of an episode that are drawn: those that move most, and the gripper."""


@dataclass(frozen=True)
class ReplayView:
    """What a page shows of one comparison."""

    caveat: str
    verdict: str
    sentences: list[str]
    plots: list[Markup]
    traces: list[tuple[str, list[Markup]]]
    """Of each shown episode: its title and a plot per dimension."""
    dimensions: Table


def replay_view(found: Mapping[str, Any]) -> ReplayView:
    """Return what a page shows of one comparison."""
    steps = {
        TITLES[method]: list(enumerate(values, start=1))
        for method, values in found["by_step"].items()
    }
    plots = [Markup(line_plot("Error, share of the spread", steps, x_label="step of the chunk"))]
    return ReplayView(
        found["caveat"],
        verdict_of(found),
        sentences_of(found),
        plots,
        [_traces(found, trace) for trace in found["traces"]],
        dimensions_table(found),
    )


def verdict_of(found: Mapping[str, Any]) -> str:
    """Return in one sentence how the policy compares with the two baselines that see no image.

    It is closer or farther where the paired difference over episodes says so with its whole 95%
    interval. One episode has no interval, and the sentence says that it is one.
    """
    overall = found["overall"]
    policy = overall["policy"]
    bounds = (
        f" (95% interval {number_text(policy['low'])} to {number_text(policy['high'])})"
        if policy["low"] is not None
        else ""
    )
    rows = found["by_episode"]
    sides: dict[str, list[str]] = {}
    for method in ("mean", "hold"):
        gap = paired_difference([one[method] for one in rows], [one["policy"] for one in rows])
        low, high = (gap.low, gap.high) if len(rows) > 1 else (gap.value, gap.value)
        if low is None or high is None or low <= 0 <= high:
            side = "not distinguishable from the"
        else:
            side = f"{'closer' if high < 0 else 'farther'} than the"
        sides.setdefault(side, []).append(TITLES[method])
    judged = " and ".join(f"{side} {' and the '.join(of)}" for side, of in sides.items())
    alone = " In a single episode, chance decides much of this." if len(rows) == 1 else ""
    others = (
        f"{number_text(overall['mean']['value'])} for the {TITLES['mean']} and "
        f"{number_text(overall['hold']['value'])} with the {TITLES['hold']}"
    )
    return (
        f"Judged by its distance to the recorded actions, the policy is {judged}, which see no "
        f"image: its mean error is {number_text(policy['value'])} of a dimension's standard "
        f"deviation{bounds}, {others}.{alone}"
    )


def sentences_of(found: Mapping[str, Any]) -> list[str]:
    """Return what was compared, the gripper's agreement and the latency, one sentence each."""
    which = ("held-out " if found.get("held_out") else "") + (
        "episode" if found["episodes"] == 1 else "episodes"
    )
    rate = f" at {found['fps']:g} a second" if found["fps"] else ""
    said = [
        f"{found['episodes']} {which}, {found['steps']:,} steps{rate}; a chunk of "
        f"{found['horizon']} actions every {found['horizon']} steps, laid end to end."
    ]
    if found.get("held_out") is False:
        said.append("The policy was trained on these very episodes: expect it to look too good.")
    if found.get("held_out") is None:
        said.append("Whether the policy was trained on these episodes is not known.")
    still = [row["name"] for row in found["dimensions"] if not row["moves"]]
    if still:
        said.append(
            f"{len(still)} dimensions hardly move in the data and count in no mean: {', '.join(still)}."
        )
    latency = found["latency_ms"]
    said.append(_gripper_sentence(found["gripper"]))
    said.append(
        f"A call of the policy took {latency['median']:.1f} ms (median of {latency['calls']}; 95% "
        f"within {latency['p95']:.1f} ms)."
    )
    return said


def _gripper_sentence(gripper: Mapping[str, Any] | None) -> str:
    if gripper is None:
        return "The action space names no gripper, so none was compared."
    text = (
        f"The gripper is on the recorded side in {percent(gripper['agreement'])} of the steps (never "
        f"switching: {percent(gripper['constant'])}); of {gripper['switches']} recorded switches "
        f"{gripper['missed']} were missed within a chunk's length, and {gripper['extra']} are extra"
    )
    if gripper["lag_steps"] is None:
        return text + "."
    late = "late" if gripper["lag_steps"] >= 0 else "early"
    return text + (
        f"; the others come {abs(gripper['lag_steps']):g} steps ({abs(gripper['lag_seconds']):.2f} s) "
        f"{late} at the median, {gripper['lag_worst_steps']} at worst."
    )


def dimensions_table(found: Mapping[str, Any]) -> Table:
    """Return one row per dimension that moves: errors in its unit, and as a share of its spread."""
    rows = []
    for row in (one for one in found["dimensions"] if one["moves"]):
        error, spread = row["error"], row["spread"]
        cells = [Cell(row["unit"] or "–"), Cell(f"{spread:.4g}")]
        cells += [Cell(f"{error[method]:.4g}") for method in TITLES]
        shares = [error[method] / spread for method in TITLES]
        mark = "better" if shares[0] < min(shares[1:]) else "worse"
        cells += [Cell(number_text(shares[0], 2), mark=mark)]
        cells += [Cell(number_text(share, 2)) for share in shares[1:]]
        rows.append((row["name"], cells))
    columns = ("dimension", "unit", "spread", *(f"error, {t}" for t in TITLES.values()))
    columns += tuple(f"share, {t}" for t in TITLES.values())
    caption = (
        "Mean absolute error by dimension, raw units; the spread is the standard deviation of the "
        "recorded actions, and a share is an error divided by it."
    )
    return Table(caption, columns, rows)


def replays_table(replays: Mapping[str, Mapping[str, Any]], title: Callable[[str], str]) -> Table:
    """Return one row per arm: its error as a share of the spread, then the baselines."""
    rows = []
    for arm, found in replays.items():
        rows.append((title(arm), [_share(found["overall"]["policy"]), *_arm_cells(found)]))
    first = next(iter(replays.values()))
    for method in ("mean", "hold"):
        rows.append((TITLES[method], [_share(first["overall"][method]), Cell("–"), Cell("–")]))
    return Table(
        "Open loop on held-out episodes: mean absolute error as a share of each dimension's standard "
        "deviation, with its 95% interval over episodes (lower is better). Not a success rate.",
        ("", "error", "gripper agrees", "ms per call"),
        rows,
    )


def _share(estimate: Mapping[str, Any]) -> Cell:
    bounds = (
        f"{number_text(estimate['low'])}–{number_text(estimate['high'])}"
        if estimate["low"] is not None
        else ""
    )
    return Cell(number_text(estimate["value"]), bounds)


def _arm_cells(found: Mapping[str, Any]) -> list[Cell]:
    gripper = found["gripper"]
    return [
        Cell(percent(gripper["agreement"]) if gripper else "no gripper"),
        Cell(f"{found['latency_ms']['median']:.1f}"),
    ]


def _traces(found: Mapping[str, Any], trace: Mapping[str, Any]) -> tuple[str, list[Markup]]:
    """Draw the dimensions of one episode that move most in the data, and the gripper."""
    rows = found["dimensions"]
    reach = {d: _range([step[d] for step in trace["recorded"]]) for d in range(len(rows))}
    moving = sorted(
        (d for d in reach if rows[d]["moves"]), key=lambda d: -reach[d] / rows[d]["spread"]
    )
    gripper = [d for d in moving if rows[d]["name"] == "gripper"]
    chosen = sorted({*moving[: MOST_PANELS - len(gripper)], *gripper})
    starts = range(0, len(trace["predicted"]), found["horizon"])
    plots = [
        Markup(
            trace_plot(
                rows[d]["name"],
                {
                    "recorded": [step[d] for step in trace["recorded"]],
                    "predicted": [step[d] for step in trace["predicted"]],
                },
                rate=found["fps"],
                starts=starts,
                unit=rows[d]["unit"],
            )
        )
        for d in chosen
    ]
    return f"{trace['instruction']} ({trace['episode']})", plots


def _range(values: list[float]) -> float:
    return max(values) - min(values)


def write_replay_page(
    found: Mapping[str, Any], out: str | Path, *, title: str, facts: Mapping[str, str]
) -> None:
    """Write the comparison as one HTML file with everything in it."""
    environment = Environment(
        loader=PackageLoader("roboalign", "report"),
        autoescape=select_autoescape(["html", "html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("replay_page.html.j2").render(
        title=title,
        facts=facts,
        view=replay_view(found),
        css=Markup(environment.get_template("report.css").render()),
    )
    write_text(out, page)


def replay_text(found: Mapping[str, Any]) -> str:
    """Return the comparison for a terminal of 80 columns."""
    table = grid("dimension", "unit", "spread", *TITLES.values())
    for row in found["dimensions"]:
        if row["moves"]:
            shares = (row["error"][method] / row["spread"] for method in TITLES)
            cells = (f"{share:.2f}" for share in shares)
            table.add_row(row["name"], row["unit"] or "-", f"{row['spread']:.4g}", *cells)
    lines = [verdict_of(found), *sentences_of(found)]
    note = "Mean absolute error by dimension, as a share of the spread (standard deviation)."
    return "\n".join([*map(fold, lines), "", render(table), note, fold(found["caveat"])]) + "\n"
