"""Format what `roboalign bench` prints."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from roboalign.report.console import fold, grid, render
from roboalign.report.text import number_text, p_value, percent, points

_CONTROL = {
    "asked": "",
    "blank": "gray image",
    "text": "no image",
    "shuffled": "options shuffled",
}


def format_bench(result: Mapping[str, Any], folder: Path) -> str:
    """Format a table of each task, the paired differences, and the protocol."""
    lines: list[str] = []
    for name, task in result["tasks"].items():
        lines += [_table(name, task).rstrip(), *map(pair_line, task["pairs"]), *_remarks(task)]
        protocol = result["protocols"][name]
        lines += [f"protocol {result['settings']['preset']}: {protocol['source']}", ""]
    settings = result["settings"]
    lines.append(
        f"{settings['mode']} replies of at most {settings['max_new_tokens']} tokens, greedy; "
        f"intervals are 95% over items; records: {folder}"
    )
    return fold("\n".join(lines))


def _table(name: str, task: Mapping[str, Any]) -> str:
    table = grid(name, "score", "95%", "unreadable", "cut", "items")
    for model, controls in task["models"].items():
        for control, row in controls.items():
            if not row["score"]["n"]:
                continue
            title = model if control == "asked" else f"  {_CONTROL[control]}"
            table.add_row(title, *_cells(row))
            groups = row["groups"] if control == "asked" else {}
            for group, estimate in groups.items() if len(groups) > 1 else ():
                table.add_row(f"  {group}", *_score(estimate), "", "", str(estimate["n"]))
    return render(table)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        *_score(row["score"]),
        str(row["unreadable"]),
        str(row["cut"]),
        str(row["score"]["n"]),
    )


def _score(estimate: Mapping[str, Any]) -> tuple[str, str]:
    if estimate["low"] is None:
        return percent(estimate["value"]), ""
    low, high = percent(estimate["low"]), percent(estimate["high"])
    return percent(estimate["value"]), f"{low.rstrip('%')} to {high}"


def pair_line(pair: Mapping[str, Any]) -> str:
    """Format the difference of two models on the same items, with its interval and test."""
    line = f"{pair['after']} minus {pair['before']}, same {pair['n']} items: "
    line += f"{points(pair['value'])} points"
    if pair["low"] is not None:
        line += f" ({points(pair['low'])} to {points(pair['high'])})"
    if "only_after" in pair:
        line += (
            f"; right by {pair['after']} alone {pair['only_after']}, by {pair['before']} alone "
            f"{pair['only_before']}"
        )
    if pair["p"] is not None:
        line += f", {p_value(pair['p'])}"
    return line


def _control_line(control: str, pair: Mapping[str, Any]) -> str:
    line = f"{_CONTROL[control]} minus as asked {points(pair['value'])} points"
    if pair["low"] is None:
        return line
    return f"{line} ({points(pair['low'])} to {points(pair['high'])})"


def _remarks(task: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the numbers do not say: chance, points outside, replies without an answer."""
    models = task["models"]
    row = next(iter(models.values()))["asked"]
    if row["chance"] is not None:
        yield f"a uniform guess scores {percent(row['chance'])}"
    for model, controls in models.items():
        row = controls["asked"]
        if "headline" in row:
            name, value = row["headline"]["name"], row["headline"]["value"]
            graded = name == "mean of 0 to 3"
            yield f"{model}: {name} {number_text(value, 2) if graded else percent(value)}"
        if row["points"]:
            yield f"{model}: {row['outside']} of {row['points']} points outside of the image"
        for control in ("blank", "text"):
            if control in controls:
                yield f"{model}: {_control_line(control, controls[control]['minus_asked'])}"
        for reason, count in row["reasons"].items():
            yield f"{model}: {count} unreadable: {reason}"
    for control, other in next(iter(models.values())).items():
        if other["not_asked"]:
            yield f"{other['not_asked']} items have no form with {_CONTROL[control]}"
