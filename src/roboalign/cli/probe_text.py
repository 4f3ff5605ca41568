"""The tables of `roboalign probe` as text."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from roboalign.report.text import points

WIDTH = 128
PAPER = {"base": 39.06, "sft": 43.23, "roboalign": 69.79}
"""Accuracy, percent, of Qwen2.5-VL-7B-Instruct and what is made of it, on 20 demonstrations of one task of LIBERO-Long;
arXiv 2603.21341, which gives no interval, number of classes, k or layer."""
BASELINES = {
    "majority": "the most frequent phase",
    "step": "steps so far: a clock",
    "time": "steps / length: a clock that knows when the episode ends",
    "pixels": "the image itself",
    "state": "the robot's state, which the labels are made from",
}


def format_probe(result: Mapping[str, Any]) -> str:
    """The JSON of `stages.probe` as tables."""
    settings = result["settings"]
    tasks = ", ".join(result["tasks"])
    lines = [
        f"{result['run']}: which of {settings['phases']} phases is a frame of {tasks} in?",
        f"{result['episodes']} demonstrations, {result['frames']} frames (one of {settings['every']}); the "
        f"{settings['k']} nearest frames of other episodes vote; tokens: {settings['pool']}. Percent, with 95% "
        "intervals that draw episodes anew.",
    ]
    if result["absent"]:
        lines.append(f"not done yet, and left out: {', '.join(result['absent'])}")
    console = Console(width=WIDTH, no_color=True, highlight=False)
    with console.capture() as capture:
        for line in lines:
            console.print(line, soft_wrap=True)
        for table in (
            _baselines(result),
            _layers(result, "accuracy", "Backbones"),
            _layers(result, "where_time_errs", "The same on the frames where steps / length errs"),
            _differences(result),
        ):
            console.print(table)
        for line in _notes(result):
            console.print(line, soft_wrap=True)
    return capture.get()


def _baselines(result: Mapping[str, Any]) -> Table:
    table = Table("without a model", "", "accuracy", "where steps / length errs")
    for name, text in BASELINES.items():
        row = result["baselines"][name]
        table.add_row(name, text, _percent(row["accuracy"]), _percent(row["where_time_errs"]))
    return table


def _layers(result: Mapping[str, Any], measure: str, title: str) -> Table:
    """A layer a row, an arm a column."""
    table = Table("layer", *result["arms"], title=title)
    for layer in next(iter(result["arms"].values())):
        mark = " (head)" if int(layer) == result["head_layer"] else ""
        table.add_row(
            layer + mark, *(_percent(arm[layer][measure]) for arm in result["arms"].values())
        )
    return table


def _differences(result: Mapping[str, Any]) -> Table:
    """A pair a row, a layer a column."""
    layers = list(next(iter(result["arms"].values())))
    table = Table(
        "after minus before, points", *(f"layer {layer}" for layer in layers), title="Same frames"
    )
    for pair in result["differences"]:
        cells = []
        for layer in layers:
            one = pair["layers"][layer]
            bounds = (
                "" if one["low"] is None else f" ({points(one['low'])} to {points(one['high'])})"
            )
            cells.append(points(one["value"]) + bounds)
        table.add_row(f"{pair['after']} − {pair['before']}", *cells)
    return table


def _notes(result: Mapping[str, Any]) -> list[str]:
    seeds = {
        arm: [one["seed"] for one in result["backbones"] if one["arm"] == arm]
        for arm in result["arms"]
    }
    told = [
        f"{arm} {', '.join(map(str, found))}" for arm, found in seeds.items() if found != [None]
    ]
    notes = [
        "The recipe chose the layer that the head reads; the best of several layers leans to the favourable side."
    ]
    if told:
        notes.append(
            f"Training seeds, averaged frame by frame; pairs by those that both have: {'; '.join(told)}."
        )
    paper = ", ".join(f"{arm} {value:.2f}" for arm, value in PAPER.items())
    return [
        *notes,
        f"The paper, 7B, one task of LIBERO-Long, 20 demonstrations, classes and layer not given: {paper}. "
        "Other classes: not comparable in level.",
    ]


def _percent(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "–"
    bounds = (
        ""
        if estimate["low"] is None
        else f" ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"
    )
    return f"{100 * estimate['value']:.1f}{bounds}"
