"""Format the tables of `roboalign probe` as text."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from roboalign.report.console import fold, grid, render
from roboalign.report.text import points

ARMS_A_TABLE = 6
LAYERS_A_TABLE = 3
"""Number of layer columns that fit into 80 columns of text."""
_PAPER = {"base": 39.06, "sft": 43.23, "roboalign": 69.79}
"""Accuracy, in percent, of Qwen2.5-VL-7B-Instruct and the models made from it, on 20 demonstrations
of one task of LIBERO-Long; arXiv 2603.21341, which gives no interval, number of classes, k or
layer."""
BASELINES = {
    "majority": "the most frequent phase",
    "step": "steps so far: a clock",
    "time": "steps / length: a clock that knows when the episode ends",
    "pixels": "the image itself",
    "state": "the robot's state, which the labels are made from",
}


def format_probe(result: Mapping[str, Any]) -> str:
    """Format the results of `roboalign probe` as tables of 80 columns."""
    settings = result["settings"]
    tasks = ", ".join(result["tasks"])
    lines = [
        f"{result['run']}: which of {settings['phases']} phases is a frame of {tasks} in?",
        f"{result['episodes']} demonstrations, {result['frames']} frames (one of {settings['every']}); the "
        f"{settings['k']} nearest frames of other episodes vote; tokens: {settings['pool']}. Percent, with 95% "
        "intervals that draw episodes with replacement.",
    ]
    if result["absent"]:
        lines.append(f"not done yet, and left out: {', '.join(result['absent'])}")
    tables = (
        _baselines(result),
        *_layers(result, "accuracy", "Backbones"),
        *_layers(result, "where_time_errs", "The same on the frames where steps / length errs"),
        _differences(result),
    )
    return (
        "\n".join([*map(fold, lines), "", *map(render, tables), *map(fold, _notes(result))]) + "\n"
    )


def _baselines(result: Mapping[str, Any]) -> Table:
    table = grid("without a model", "", "accuracy", "where steps /\nlength errs")
    for name, text in BASELINES.items():
        row = result["baselines"][name]
        table.add_row(name, text, _percent(row["accuracy"]), _percent(row["where_time_errs"]))
    return table


def _layers(result: Mapping[str, Any], measure: str, title: str) -> Iterator[Table]:
    """Yield tables with one layer per row and one arm per column."""
    arms = result["arms"]
    names = list(arms)
    for first in range(0, len(names), ARMS_A_TABLE):
        part = names[first : first + ARMS_A_TABLE]
        table = grid("layer", *part, title=title)
        for layer in next(iter(arms.values())):
            mark = " (head)" if int(layer) == result["head_layer"] else ""
            table.add_row(layer + mark, *(_percent(arms[arm][layer][measure]) for arm in part))
        yield table


def _differences(result: Mapping[str, Any]) -> Table:
    """Tabulate one pair per row and one layer per column: every layer if there are few, else the
    head's."""
    layers = shown_layers(result)
    table = grid("after minus before, points", *(f"layer {layer}" for layer in layers))
    for pair in result["differences"]:
        cells = []
        for layer in layers:
            found = pair["layers"][layer]
            bounds = (
                ""
                if found["low"] is None
                else f"\n{points(found['low'])} to {points(found['high'])}"
            )
            cells.append(points(found["value"]) + bounds)
        table.add_row(f"{pair['after']} − {pair['before']}", *cells)
    return table


def shown_layers(result: Mapping[str, Any]) -> list[str]:
    """Return the layers whose differences are printed; the file has those of all."""
    layers = list(next(iter(result["arms"].values())))
    if len(layers) > LAYERS_A_TABLE and str(result["head_layer"]) in layers:
        return [str(result["head_layer"])]
    return layers[:LAYERS_A_TABLE]


def _notes(result: Mapping[str, Any]) -> list[str]:
    seeds = {
        arm: [one["seed"] for one in result["backbones"] if one["arm"] == arm]
        for arm in result["arms"]
    }
    told = [
        f"{arm} {', '.join(map(str, found))}" for arm, found in seeds.items() if found != [None]
    ]
    notes = []
    if len(next(iter(result["arms"].values()))) > len(shown_layers(result)):
        notes.append("Differences at the other layers are in the file.")
    notes.append(
        "The recipe chose the layer that the head reads; the best of several layers leans to the favorable side."
    )
    if told:
        notes.append(
            f"Training seeds, averaged frame by frame; pairs by those that both have: {'; '.join(told)}."
        )
    paper = ", ".join(f"{arm} {value:.2f}" for arm, value in _PAPER.items())
    return [
        *notes,
        f"The paper, 7B, one task of LIBERO-Long, 20 demonstrations, classes and layer not given: {paper}. "
        "Other classes: not comparable in level.",
    ]


def _percent(estimate: Mapping[str, Any]) -> str:
    """Format the share in percent, with its interval below it."""
    if estimate["value"] is None:
        return "–"
    share = f"{100 * estimate['value']:.1f}"
    if estimate["low"] is None:
        return share
    return f"{share}\n{100 * estimate['low']:.1f}–{100 * estimate['high']:.1f}"
