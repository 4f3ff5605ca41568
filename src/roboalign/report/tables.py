"""Build the tables of the page from the run's numbers; None if the run has nothing to show in a
table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from roboalign.core.progress import format_seconds
from roboalign.report.summary import ArmSummary, RunSummary
from roboalign.report.text import NOT_RUN, count_text, interval, p_value, percent, side, value


@dataclass(frozen=True)
class Cell:
    """One cell: its text, small lines below it, and better, worse or open if it is a judged
    difference."""

    text: str
    small: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A caption, the column heads (the first one is for the row heads), and rows of a head and its
    cells."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, list[Cell]]]


# Column, its path in an arm's metrics, unit.
ARM_COLUMNS = (
    ("VQA, direct", ("vqa", "direct", "accuracy"), "percent"),
    ("VQA, reasoned", ("vqa", "think", "accuracy"), "percent"),
    ("Prefix, direct", ("actions", "direct", "prefix"), "number"),
    ("Prefix, reasoned", ("actions", "think", "prefix"), "number"),
    ("of well-formed", ("actions", "think", "prefix_well_formed"), "number"),
    ("Format", ("actions", "think", "format"), "percent"),
    ("Wrong length", ("actions", "think", "wrong_length"), "percent"),
    ("Decode failed", ("actions", "think", "decode_failure"), "percent"),
    ("L1, direct", ("actions", "direct", "l1_all"), "number"),
    ("L1, reasoned", ("actions", "think", "l1_all"), "number"),
)
VISITED_COLUMNS = ("Prefix, direct", "Prefix, reasoned", "L1, direct", "L1, reasoned")
DIFFERENCES = (
    ("VQA, direct", "vqa_direct", "points", False),
    ("VQA, reasoned", "vqa_think", "points", False),
    ("Prefix, direct", "prefix_direct", "signed", False),
    ("Prefix, reasoned", "prefix_think", "signed", False),
    ("Prefix, both well-formed", "prefix_formed", "signed", False),
    ("Format, reasoned", "format_think", "points", False),
    ("Chunks, direct", "chunks_direct", "points", False),
    ("Chunks, reasoned", "chunks_think", "points", False),
    ("L1, direct", "l1_direct", "signed", True),
    ("L1, reasoned", "l1_think", "signed", True),
    ("L1, both well-formed", "l1_formed", "signed", True),
)


def lookup(metrics: Mapping[str, Any] | None, path: Iterable[str]) -> Any:
    """Return the value at `path`, or None if any step is missing or None."""
    for step in path:
        if metrics is None:
            return None
        metrics = metrics.get(step)
    return metrics


def arms_table(run: RunSummary) -> Table | None:
    """Build the main table: one arm per row, and below them the baselines that need no model."""
    if not run.arms:
        return None
    rows = [(arm.title, [_success_cell(run, arm.name), *_mllm_cells(arm)]) for arm in run.arms]
    measured = [arm.mllm for arm in run.arms if arm.mllm]
    if measured:
        rows += _baseline_rows(measured[0])
    caption = "Every number with its 95% interval and n. L1 counts an undecodable answer as the mean action."
    return Table(caption, ("Backbone", "Success", *(column for column, _, _ in ARM_COLUMNS)), rows)


def _mllm_cells(arm: ArmSummary) -> list[Cell]:
    return [estimate_cell(lookup(arm.mllm, path), kind) for _, path, kind in ARM_COLUMNS]


def _baseline_rows(metrics: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    """Return rows for guessing, the language prior, the mean action and zero action, in the columns
    they are baselines for."""
    names = (
        "guessing",
        "prior of the question type",
        "prior of the question text",
        "mean action",
        "zero action",
    )
    rows = {name: [Cell("")] * (len(ARM_COLUMNS) + 1) for name in names}
    for column, mode in ((1, "direct"), (2, "think")):
        vqa = lookup(metrics, ("vqa", mode))
        if vqa:
            rows["guessing"][column] = Cell(percent(vqa["chance"]))
            rows["prior of the question type"][column] = estimate_cell(vqa["prior"], "percent")
            rows["prior of the question text"][column] = estimate_cell(vqa["text_prior"], "percent")
    for column in (9, 10):
        rows["mean action"][column] = estimate_cell(
            metrics["baselines"]["mean_action_l1"], "number"
        )
        rows["zero action"][column] = estimate_cell(metrics["baselines"]["zero_l1"], "number")
    return [(name, cells) for name, cells in rows.items() if any(cell.text for cell in cells)]


def _success_cell(run: RunSummary, arm: str) -> Cell:
    row = lookup(run.success, ("arms", arm, "overall"))
    return success_cell(row) if row else Cell(NOT_RUN)


def success_cell(row: Mapping[str, Any]) -> Cell:
    """Return rate, count and Wilson interval; crashed episodes are mentioned."""
    if not row["n"]:
        return Cell("–", f"{row['crashes']} crashed")
    crashed = f", {row['crashes']} crashed" if row["crashes"] else ""
    small = (
        f"{100 * row['low']:.1f}–{100 * row['high']:.1f}\n{row['successes']}/{row['n']}{crashed}"
    )
    return Cell(percent(row["rate"]), small)


def estimate_cell(estimate: Mapping[str, Any] | None, kind: str) -> Cell:
    """Return value, interval and n; "not run" for None."""
    if estimate is None:
        return Cell(NOT_RUN)
    bounds = interval(estimate, kind)
    return Cell(value(estimate, kind), f"{bounds}\nn = {count_text(estimate['n'])}".lstrip())


def difference_cell(
    estimate: Mapping[str, Any] | None, kind: str, *, lower_is_better: bool = False
) -> Cell:
    """Return a judged difference: better or worse only if the whole interval is on that side of
    zero."""
    cell = estimate_cell(estimate, kind)
    return (
        cell
        if estimate is None
        else Cell(cell.text, cell.small, side(estimate, lower_is_better=lower_is_better))
    )


def token_differences_table(run: RunSummary) -> Table | None:
    """Tabulate paired differences of the MLLMs on the same held-out samples."""
    caption = (
        "Same held-out samples, after minus before; intervals over episodes. VQA, format and chunks in "
        "percentage points; for L1, lower is better."
    )
    return _differences_table(run, run.mllm_pairs, DIFFERENCES, caption)


def visited_differences_table(run: RunSummary) -> Table | None:
    """Tabulate paired differences of the MLLMs' actions on the same visited states."""
    shown = [row for row in DIFFERENCES if not row[1].startswith("vqa")]
    caption = (
        "The same visited states, after minus before; intervals over episodes. Format and chunks in "
        "percentage points; for L1, lower is better."
    )
    return _differences_table(run, run.visited_pairs, shown, caption)


def _differences_table(
    run: RunSummary,
    pairs: Sequence[Mapping[str, Any]],
    shown: Sequence[tuple[str, str, str, bool]],
    caption: str,
) -> Table | None:
    if not pairs:
        return None
    rows = []
    for pair in pairs:
        cells = [
            difference_cell(pair.get(key), kind, lower_is_better=lower)
            for _, key, kind, lower in shown
        ]
        rows.append((f"{run.title(pair['before'])} → {run.title(pair['after'])}", cells))
    return Table(caption, ("Backbones", *(name for name, _, _, _ in shown)), rows)


def success_differences_table(run: RunSummary) -> Table | None:
    """Tabulate paired differences of success on the same (task, seed)."""
    if not run.success or not run.success["pairs"]:
        return None
    rows = []
    for pair in run.success["pairs"]:
        cells = [
            replace(estimate_cell(pair["difference"], "points"), mark=success_mark(pair)),
            Cell(interval(pair["difference_by_task"] or {"low": None}, "points") or "–"),
            Cell(f"{pair['only_before']} / {pair['only_after']}", f"of {pair['n']} pairs"),
            Cell(p_value(pair["p"]), f"Holm: {p_value(pair['p_holm'])}"),
        ]
        rows.append((f"{run.title(pair['before'])} → {run.title(pair['after'])}", cells))
    columns = (
        "Policies",
        "Difference, points",
        "Interval over tasks",
        "Only before / only after",
        "McNemar, exact",
    )
    caption = "Same task and initial state, after minus before. Holm corrects p for the number of pairs in this table."
    return Table(caption, columns, rows)


def success_mark(pair: Mapping[str, Any]) -> str:
    """Return better or worse if McNemar's exact p is below 0.05, else open."""
    if pair["p"] >= 0.05:
        return "open"
    return "better" if pair["difference"]["value"] > 0 else "worse"


def task_table(run: RunSummary) -> Table | None:
    """Tabulate the success of every arm on every task, and per training seed if there are
    several."""
    if not run.success:
        return None
    arms = run.success["arms"]
    tasks = sorted({task for arm in arms.values() for task in arm["tasks"]})
    rows = [(task, [_row_cell(arm["tasks"].get(task)) for arm in arms.values()]) for task in tasks]
    seeds = sorted({seed for arm in arms.values() for seed in arm["run_seeds"]}, key=int)
    if len(seeds) > 1:
        rows += [
            (
                f"all, training seed {seed}",
                [_row_cell(arm["run_seeds"].get(seed)) for arm in arms.values()],
            )
            for seed in seeds
        ]
    rows.append(("all", [_row_cell(arm["overall"]) for arm in arms.values()]))
    columns = ("Task", *(run.title(name) for name in arms))
    return Table("Success, Wilson 95% interval in percent, successes / episodes.", columns, rows)


def _row_cell(row: Mapping[str, Any] | None) -> Cell:
    return success_cell(row) if row else Cell(NOT_RUN)


def vqa_table(run: RunSummary, mode: str) -> Table | None:
    """Tabulate accuracy by question type of every measured arm, next to guessing and the language
    prior."""
    arms = [arm for arm in run.arms if lookup(arm.mllm, ("vqa", mode))]
    if not arms:
        return None
    by_type = [lookup(arm.mllm, ("vqa", mode, "by_type")) for arm in arms]
    rows = []
    for kind in sorted({kind for types in by_type for kind in types}):
        first = next(types[kind] for types in by_type if kind in types)
        baselines = [Cell(percent(first["chance"])), Cell(percent(first["prior"]["value"]))]
        cells = [estimate_cell(lookup(types, (kind, "accuracy")), "percent") for types in by_type]
        rows.append((kind.replace("_", " "), [*baselines, *cells]))
    shuffled = [lookup(arm.mllm, ("image_shuffle",)) for arm in arms] if mode == "direct" else []
    for title, key in (("all, own image", "unshuffled"), ("all, another image", "accuracy")):
        if any(shuffled):
            prior = next(s["prior"]["value"] for s in shuffled if s)
            cells = [estimate_cell(lookup(s, (key,)), "percent") for s in shuffled]
            rows.append((title, [Cell(""), Cell(percent(prior)), *cells]))
    columns = ("Question type", "Guessing", "Language prior", *(arm.title for arm in arms))
    words = {"direct": "answered directly", "think": "answered after reasoning"}
    return Table(f"Accuracy on held-out frames, {words[mode]}.", columns, rows)


def reasoning_table(run: RunSummary) -> Table | None:
    """Show whether reasoning appears, and whether the action depends on it."""
    arms = [arm for arm in run.arms if lookup(arm.mllm, ("actions", "think"))]
    if not arms:
        return None
    rows = []
    for arm in arms:
        causal = lookup(arm.mllm, ("reasoning",)) or {}
        cells = [estimate_cell(lookup(arm.mllm, ("actions", "think", "reasoned")), "percent")]
        cells += [
            estimate_cell(causal.get(key), "number") for key in ("kept", "emptied", "swapped")
        ]
        cells += [
            difference_cell(causal.get(key), "signed")
            for key in ("emptied_minus_kept", "swapped_minus_kept")
        ]
        gain = lookup(arm.mllm, ("think_minus_direct",)) or {}
        cells += [
            difference_cell(gain.get("prefix"), "signed"),
            difference_cell(gain.get("l1"), "signed", lower_is_better=True),
        ]
        rows.append((arm.title, cells))
    conditions = ("Own reasoning", "Emptied", "Another's", "Emptied − own", "Another's − own")
    columns = (
        "Backbone",
        "Reasons when asked",
        *conditions,
        "Reasoned − direct, prefix",
        "the same, L1",
    )
    caption = (
        "Prefix accuracy after a forced reasoning, on the samples where the model reasoned; then answers that "
        "reason first against direct ones, over all frames."
    )
    return Table(caption, columns, rows)


def visited_table(run: RunSummary) -> Table | None:
    """Set each arm's actions on visited states beside those on frames of demonstrations."""
    if not run.visited:
        return None
    shown = [column for column in ARM_COLUMNS if column[0] in VISITED_COLUMNS]
    heads, rows = [], []
    for name, _, _ in shown:
        heads += [f"{name}: demonstrations", "visited"]
    for arm in run.visited:
        cells = []
        for _, path, kind in shown:
            for one in (run.arm(arm.name), arm):
                cells.append(estimate_cell(lookup(one.mllm if one else None, path), kind))
        rows.append((arm.title, cells))
    caption = (
        "Actions on held-out frames of demonstrations, and on states that the SFT model's own policy "
        "reaches in other episodes, against the scripted expert's chunk from there."
    )
    return Table(caption, ("Backbone", *heads), rows)


def counts_table(manifest: Mapping[str, Any] | None) -> Table | None:
    """Tabulate the mixture's turns by kind and mode in each split."""
    if not manifest:
        return None
    counts = manifest["counts"]
    names = {
        group: sorted({name for split in counts.values() for name in split[group]})
        for group in ("kind", "mode")
    }
    rows = []
    for split, numbers in counts.items():
        cells = [Cell(count_text(numbers[total])) for total in ("conversations", "turns")]
        cells += [
            Cell(count_text(numbers[group].get(name, 0)))
            for group in names
            for name in names[group]
        ]
        rows.append((split, cells))
    columns = (
        "Split",
        "conversations",
        "turns",
        *names["kind"],
        *(f"asked {name}" for name in names["mode"]),
    )
    caption = (
        "Samples (turns) of the mixture; held-out ones come from episodes that training never saw."
    )
    return Table(caption, columns, rows)


def ledger_table(run: RunSummary) -> Table | None:
    """Tabulate what each stage cost, and the total of everything that can be added."""
    if not run.ledger:
        return None
    scalars = [
        {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        for row in run.ledger
    ]
    names = [
        name for name in dict.fromkeys(name for row in scalars for name in row) if name != "seconds"
    ]
    rows = [
        (str(row["stage"]), _cost_cells(values, names)) for row, values in zip(run.ledger, scalars)
    ]
    seconds = sum(values.get("seconds", 0) for values in scalars)
    rows.append(("all stages", [Cell(format_seconds(seconds)), *([Cell("")] * len(names))]))
    columns = ("Stage", "Time", *(name.replace("_", " ") for name in names))
    return Table(
        "Wall-clock time (stages may run side by side) and what was counted.", columns, rows
    )


def _cost_cells(values: Mapping[str, Any], names: list[str]) -> list[Cell]:
    time = Cell(format_seconds(values["seconds"])) if "seconds" in values else Cell("–")
    return [
        time,
        *(Cell(count_text(values[name])) if name in values else Cell("") for name in names),
    ]
