"""Draw small plots as inline SVG whose colors are the page's CSS variables, so that they follow
light and dark."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from roboalign.report.text import interval, value

# Drawn in these colors, then replaced by CSS variables.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
LINES = ("#040401", "#040402", "#040403", "#040404", "#040405", "#040406", "#040407", "#040408")
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--rule",
    **{c: f"--line-{i}" for i, c in enumerate(LINES, start=1)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "roboalign",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
}

_Points = Sequence[tuple[float, float]]


def line_plot(title: str, lines: Mapping[str, _Points], *, x_label: str = "step") -> str:
    """Draw one small plot of several (x, y) series, with a legend if there is more than one. NaN
    leaves a gap.

    A series of more than 40 points is drawn faintly with its running mean on top.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 2.1), layout="constrained")
        axes = figure.add_subplot()
        for index, (label, points) in enumerate(lines.items()):
            _draw(axes, label, points, LINES[index % len(LINES)])
        axes.set_title(title, fontsize=9.5, loc="left", color=INK)
        axes.set_xlabel(x_label, fontsize=8)
        axes.tick_params(length=0, labelsize=8)
        axes.margins(x=0.02)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=7.5, handlelength=1.2, labelcolor=INK)
        return _svg(
            figure,
            f"{title}: " + "; ".join(_describe(label, points) for label, points in lines.items()),
        )


def trace_plot(
    title: str,
    lines: Mapping[str, Sequence[float]],
    *,
    rate: float,
    starts: Sequence[int],
    unit: str = "",
) -> str:
    """Draw one dimension over time: a value per step for each line, and a dot on the last line at
    each of the steps `starts`.

    `rate` is steps per second; 0 puts steps on the axis.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 1.7), layout="constrained")
        axes = figure.add_subplot()
        for index, (label, values) in enumerate(lines.items()):
            x = [t / rate if rate else t for t in range(len(values))]
            axes.plot(x, values, color=LINES[index], linewidth=1.3, label=label)
        dots = [t for t in starts if t < len(values)]
        axes.plot(
            [x[t] for t in dots],
            [values[t] for t in dots],
            "o",
            color=LINES[len(lines) - 1],
            markersize=2.5,
        )
        axes.set_title(f"{title}, {unit}" if unit else title, fontsize=9, loc="left", color=INK)
        axes.set_xlabel("seconds" if rate else "step", fontsize=8)
        axes.tick_params(length=0, labelsize=8)
        axes.margins(x=0.02)
        axes.legend(frameon=False, fontsize=7.5, handlelength=1.2, labelcolor=INK)
        points = {label: list(enumerate(values)) for label, values in lines.items()}
        described = "; ".join(_describe(label, line) for label, line in points.items())
        return _svg(figure, f"{title}: {described}")


def interval_plot(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]], *, kind: str) -> str:
    """Draw a point with its 95% interval per row, first row on top; `kind` is percent, number,
    points or signed.

    For a difference (points, signed), a line marks zero.
    """
    factor = 100.0 if kind in ("percent", "points") else 1.0
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 0.75 + 0.3 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for index, (_, estimate) in enumerate(rows):
            if estimate["value"] is None:
                continue
            colour = LINES[index % len(LINES)] if kind in ("percent", "number") else LINES[0]
            if estimate["low"] is not None:
                bounds = [factor * estimate["low"], factor * estimate["high"]]
                axes.plot(
                    bounds, [index, index], color=colour, linewidth=2.2, solid_capstyle="round"
                )
            axes.plot([factor * estimate["value"]], [index], "o", color=colour, markersize=5.5)
        if kind in ("points", "signed"):
            axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.tick_params(length=0, labelsize=8.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_title(title, fontsize=9.5, loc="left", color=INK)
        described = "; ".join(
            f"{label} {value(e, kind)} ({interval(e, kind) or 'no interval'})" for label, e in rows
        )
        return _svg(figure, f"{title}: {described}")


def _draw(axes: Axes, label: str, points: _Points, colour: str) -> None:
    x, y = [p[0] for p in points], [p[1] for p in points]
    if len(points) <= 40:
        axes.plot(
            x, y, color=colour, linewidth=1.5, label=label, marker="o" if len(points) == 1 else None
        )
        return
    window = max(3, len(points) // 20)
    smooth = [_mean(y[max(0, i - window) : i + window + 1]) for i in range(len(y))]
    axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(x, smooth, color=colour, linewidth=1.6, label=label)


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else math.nan


def _describe(label: str, points: _Points) -> str:
    return f"{label} from {points[0][1]:.3g} to {points[-1][1]:.3g} in {len(points)} points"


def _svg(figure: Figure, description: str) -> str:
    """Return the figure as an `<svg>` element for inlining, with a description for screen
    readers."""
    buffer = io.StringIO()
    figure.set_facecolor("none")
    for axes in figure.axes:
        axes.set_facecolor("none")
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    # The page's own font and stroke rules apply; ids are kept only if clip paths and markers refer
    # to them.
    text = re.sub(r"<style.*?</style>| font-family: [^;]*;", "", text, flags=re.DOTALL)
    text = re.sub(r' id="(?![pmC][0-9a-f]+")[^"]*"', "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    box = text.split('viewBox="', 1)[1].split('"', 1)[0]
    return (
        f'<svg role="img" aria-label="{escape(description)}" viewBox="{box}">'
        + text.split(">", 1)[1]
    )
