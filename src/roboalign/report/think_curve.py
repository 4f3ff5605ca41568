"""Show a think curve: one plot of success and error against tokens, seconds and latency, and a
table; and the table of the test of the reasoning."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from rich.table import Table

from roboalign.core.files import atomic_path
from roboalign.report.console import fold, grid, render
from roboalign.report.text import (
    interval,
    number_text,
    p_value,
    percent,
    points,
    signed_text,
)

ITSELF = "itself"
"""The family of the policy as it is: greedy, or one noise."""
COLORS = ("#4477aa", "#ee6677", "#228833", "#aa8800", "#66ccee", "#aa3377")
"""Told apart with color blindness too (Tol's bright palette, its yellow darkened for lines)."""
_TITLES = {
    "reasoning": "tokens of reasoning",
    "median": "median of N",
    "mg-select": "MG-Select of N",
    "likelihood": "likeliest of N",
    "medoid": "medoid of N",
    "oracle": "oracle of N",
}
_COSTS = (
    ("tokens", "tokens a decision", 1.0),
    ("seconds", "ms a decision, mean", 1000.0),
    ("p95", "ms a decision, p95", 1000.0),
)


def curve_lines(result: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the points of each line of the plot, by its title, the smallest size first.

    A choice among one answer is one drawn answer, which the oracle of size 1 is. A head's one noise,
    and a token policy's own length of reasoning, are the policy itself.
    """
    own = [one for one in result["points"] if one["family"] == ITSELF]
    drawn = [one for one in result["points"] if (one["family"], one["size"]) == ("oracle", 1)]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for family, title in _TITLES.items():
        found = [one for one in result["points"] if one["family"] == family]
        if not found:
            continue
        if family == "reasoning":
            found = [*found, *({**one, "size": result["reasoning"]} for one in own)]
        elif family == "medoid":
            found = [*own, *found]
        elif family != "oracle":
            found = [*drawn, *found]
        lines[title] = sorted(found, key=lambda one: int(one["size"]))
    return lines


def draw_curve(result: Mapping[str, Any], path: Path) -> None:
    """Write the plot as a PNG: success above, error below, one column for each cost."""
    costs = [cost for cost in _COSTS if any(one[cost[0]] > 0 for one in result["points"])]
    figure = Figure(figsize=(3.6 * len(costs), 6.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    grid_of = figure.subplots(2, len(costs), sharey="row", squeeze=False)
    for column, (key, label, factor) in enumerate(costs):
        for row, (measure, scale) in enumerate((("success", 100.0), ("l1", 1.0))):
            axes = grid_of[row][column]
            for color, (title, line) in zip(COLORS, curve_lines(result).items()):
                _draw_line(axes, title, line, color, (key, factor), (measure, scale))
            _mark_itself(axes, result, (key, factor), (measure, scale))
            _scale(axes, [one[key] * factor for one in result["points"]])
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        grid_of[1][column].set_xlabel(label)
    grid_of[0][0].set_ylabel("success, %")
    grid_of[1][0].set_ylabel("L1 on held-out frames")
    handles, titles = grid_of[0][0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower center", ncols=4, frameon=False)
    episodes = result["points"][0]["success"]["n"]
    figure.suptitle(
        f"{_policy_name(result)}: {episodes} episodes of {len(result['tasks'])} tasks, "
        f"{result['points'][0]['frames']} frames, 95% intervals",
        fontsize=10,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _scale(axes: Axes, costs: Sequence[float]) -> None:
    """Double the cost at each tick, unless all costs are alike."""
    if max(costs) > 3 * min(costs) > 0:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_line(
    axes: Axes,
    title: str,
    line: Sequence[Mapping[str, Any]],
    color: str,
    cost: tuple[str, float],
    measure: tuple[str, float],
) -> None:
    line = [one for one in line if one[measure[0]]["value"] is not None]  # all crashed
    x = [one[cost[0]] * cost[1] for one in line]
    y = [one[measure[0]]["value"] * measure[1] for one in line]
    axes.plot(x, y, "o-", color=color, label=title, markersize=4, linewidth=1.4)
    for one, at, value in zip(line, x, y):
        _bar(axes, one[measure[0]], at, measure[1], color)
        axes.annotate(
            str(one["size"]),
            (at, value),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
            color=color,
        )


def _mark_itself(
    axes: Axes, result: Mapping[str, Any], cost: tuple[str, float], measure: tuple[str, float]
) -> None:
    [own] = [one for one in result["points"] if one["family"] == ITSELF]
    if own[measure[0]]["value"] is None:
        return
    x, y = own[cost[0]] * cost[1], own[measure[0]]["value"] * measure[1]
    axes.plot([x], [y], "s", color="black", label="the policy itself", markersize=6, zorder=5)
    _bar(axes, own[measure[0]], x, measure[1], "black")


def _bar(axes: Axes, estimate: Mapping[str, Any], x: float, scale: float, color: str) -> None:
    if estimate["low"] is not None:
        bounds = [estimate["low"] * scale, estimate["high"] * scale]
        axes.plot([x, x], bounds, color=color, linewidth=0.8, alpha=0.5)


def curve_text(result: Mapping[str, Any]) -> str:
    """Format a think curve as text of 80 columns."""
    own = result["points"][0]
    lines = [
        f"{_policy_name(result)}: {own['success']['n']} episodes of {len(result['tasks'])} tasks "
        f"from unseen initial states; error and cost of single decisions at {own['frames']} "
        "held-out frames.",
        "Each row against the policy itself on the same states and frames; 95% intervals.",
    ]
    table = grid("decides by", "success", "difference", "L1", "difference", "tokens", "ms", "p95")
    for one in result["points"]:
        success, error = one.get("success_difference"), one.get("l1_difference")
        table.add_row(
            _row_title(one),
            _cell(one["success"], "percent", percent(one["success"]["value"])),
            "" if success is None else _cell(success, "points", points(success["value"])),
            _cell(one["l1"], "number", number_text(one["l1"]["value"])),
            "" if error is None else _cell(error, "signed", signed_text(error["value"])),
            f"{one['tokens']:.0f}",
            f"{1000 * one['seconds']:.0f}",
            f"{1000 * one['p95']:.0f}",
        )
    notes = [
        "oracle of N: the initial state is tried with N draws, and solved if one solves it; L1 of "
        "the best of N answers. It knows the result, so it bounds what choosing could gain."
    ]
    return "\n".join([*map(fold, lines), "", render(table), *map(fold, notes)]) + "\n"


def causal_text(result: Mapping[str, Any]) -> str:
    """Format the test of the reasoning as text of 80 columns."""
    kept = result["conditions"][0]
    lines = [
        f"{_policy_name(result)}: {kept['success']['n']} episodes of {len(result['tasks'])} tasks "
        f"from unseen initial states, {kept['frames']} held-out frames.",
        "Each condition against the kept reasoning on the same states and frames; 95% intervals.",
    ]
    return "\n".join([*map(fold, lines), "", render(_causal_table(result))]) + "\n"


def _causal_table(result: Mapping[str, Any]) -> Table:
    table = grid("reasoning", "success", "difference", "L1", "difference", "changed", "holds")
    for one in result["conditions"]:
        success, error = one.get("success_difference"), one.get("l1_difference")
        test = ""
        if success is not None:
            test = f"\n{p_value(one['p_holm'])}"
        table.add_row(
            one["condition"],
            _cell(one["success"], "percent", percent(one["success"]["value"])),
            "" if success is None else _cell(success, "points", points(success["value"])) + test,
            _cell(one["l1"], "number", number_text(one["l1"]["value"])),
            "" if error is None else _cell(error, "signed", signed_text(error["value"])),
            percent(one["changed"]),
            percent(one["holds"]),
        )
    return table


def _row_title(one: Mapping[str, Any]) -> str:
    if one["family"] == ITSELF:
        return "itself"
    if one["family"] == "reasoning":
        return f"{one['size']} tokens of reasoning"
    return _TITLES[one["family"]].replace(" N", f" {one['size']}")


def _policy_name(result: Mapping[str, Any]) -> str:
    return Path(result["policy"]).parent.name


def _cell(estimate: Mapping[str, Any], kind: str, value: str) -> str:
    """Return a value with its interval below it."""
    bounds = interval(estimate, kind)
    return f"{value}\n{bounds}" if bounds else value
