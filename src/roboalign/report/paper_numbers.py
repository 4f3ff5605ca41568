"""List the paper's own numbers by arm: Kim et al., "RoboAlign", arXiv 2603.21341, 2026-03-22.

All use Qwen2.5-VL-7B-Instruct as the backbone. The paper gives no intervals.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SOURCE = "arXiv 2603.21341"
MODEL = "Qwen2.5-VL-7B-Instruct"


@dataclass(frozen=True)
class Metric:
    """One column of a table of the paper."""

    title: str
    benchmark: str
    """The benchmark's name in a recipe, if it has one."""
    unit: Literal["percent", "tasks"]
    """`percent`: 0 to 100. `tasks`: how many of five in a row, 0 to 5."""
    trials: str
    values: Mapping[str, float]
    """Arm -> its number, without arms that the paper does not have in this column."""


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper."""

    title: str
    columns: tuple[str, ...]
    trials: str
    rows: Mapping[str, tuple[float | None, ...]]
    """Arm -> its numbers by column, None where the paper has none."""
    fill: str
    """What fills it with measured numbers: a source of `roboalign table`."""
    benchmark: str = ""
    """The benchmark's name, if it is measured by episodes."""
    digits: tuple[int, ...] | None = None
    """Decimal places by column; None: one everywhere."""


LIBERO_TABLE = PaperTable(
    "LIBERO, success in %",
    ("Spatial", "Object", "Goal", "Long", "Avg"),
    "500 episodes a suite",
    {
        "base": (95.2, 95.0, 42.4, 63.2, 73.9),
        "language-sft": (91.0, 94.4, 67.8, 65.0, 79.6),
        "action-sft": (89.8, 95.8, 82.8, 57.6, 81.5),
        "sft": (92.8, 97.4, 59.0, 65.6, 78.7),
        "roboalign": (93.8, 96.0, 87.2, 70.0, 86.8),
    },
    "a run whose recipe has `benchmark: libero_object` or another suite",
    benchmark="libero",
)
CALVIN_TABLE = PaperTable(
    "CALVIN ABC to D, tasks in a row: share of chains in %, and their mean number",
    ("1", "2", "3", "4", "5", "mean"),
    "1000 chains of five tasks",
    {
        "base": (77.8, 55.0, 38.6, 26.6, 18.1, 2.16),
        "language-sft": (87.4, 62.2, 41.9, 25.2, 15.3, 2.32),
        "action-sft": (66.1, 34.7, 15.3, 7.1, 3.2, 1.26),
        "sft": (74.6, 49.6, 31.5, 21.2, 12.2, 1.89),
        "roboalign": (87.6, 67.2, 47.1, 32.8, 22.2, 2.57),
    },
    "a run whose recipe has `benchmark: calvin`",
    benchmark="calvin",
    digits=(1, 1, 1, 1, 1, 2),
)
TARGETS_TABLE = PaperTable(
    "What is aligned to: LIBERO, success in %",
    ("Long", "Avg"),
    "500 episodes a suite",
    {
        "sft": (65.6, 78.7),
        "ecot": (None, 67.7),
        "language-rl": (58.2, 83.6),
        "trajectory-rl": (64.6, 85.1),
        "roboalign": (70.0, 86.8),
    },
    "a run on LIBERO with the arms ecot, language-rl and trajectory-rl",
    benchmark="libero",
)
ROBOT_TABLE = PaperTable(
    "A real robot (Franka Research 3), success in %; a measured row has its own tasks",
    ("task 1", "task 2", "task 3", "task 4", "Avg"),
    "24 episodes a task",
    {
        "base": (16.7, 70.8, 20.8, 20.8, 32.3),
        "sft": (None, None, None, None, 55.2),
        "roboalign": (87.5, 58.3, 70.8, 50.0, 66.7),
    },
    "the log of a `roboalign trial`",
)
PROBE_TABLE = PaperTable(
    "Probe: robot states found by the nearest neighbors of hidden states, in %",
    ("accuracy",),
    "20 demonstrations of one LIBERO-Long task",
    {"base": (39.06,), "sft": (43.23,), "roboalign": (69.79,)},
    "the file of `roboalign probe`",
    digits=(2,),
)
MLLM_TABLE = PaperTable(
    "MLLM benchmarks, in %; Robot-R1 Bench: a judge's mean of 0 to 3",
    ("MMStar", "Robo-\nSpatial", "Where2-\nPlace", "BLINK\ndepth", "Robot-R1"),
    "all items",
    {
        "base": (None, None, None, None, 1.02),
        "roboalign": (62.80, 50.86, 54.49, 87.9, 1.38),
    },
    "the folder of `roboalign bench`",
    digits=(2, 2, 2, 1, 2),
)
PAPER_TABLES: dict[str, PaperTable] = {
    "libero": LIBERO_TABLE,
    "calvin": CALVIN_TABLE,
    "robot": ROBOT_TABLE,
    "targets": TARGETS_TABLE,
    "probe": PROBE_TABLE,
    "mllm": MLLM_TABLE,
}
"""The paper's tables, in the order in which they are printed."""


def _column(table: PaperTable, number: int) -> dict[str, float]:
    return {arm: value for arm, row in table.rows.items() if (value := row[number]) is not None}


def _target_column(suite: str) -> dict[str, float]:
    """Return the arms that the paper has in its table of targets alone."""
    names = [name.lower() for name in TARGETS_TABLE.columns]
    return _column(TARGETS_TABLE, names.index(suite)) if suite in names else {}


METRICS: dict[str, Metric] = {
    **{
        f"libero-{suite}": Metric(
            "LIBERO, average of the four suites"
            if suite == "avg"
            else f"LIBERO-{suite.capitalize()}",
            "libero",
            "percent",
            LIBERO_TABLE.trials,
            _column(LIBERO_TABLE, number) | _target_column(suite),
        )
        for number, suite in enumerate(map(str.lower, LIBERO_TABLE.columns))
    },
    **{
        f"calvin-{column}": Metric(
            "CALVIN ABC to D, mean number of tasks in a row"
            if column == "mean"
            else f"CALVIN ABC to D, {column} task{'s' * (column != '1')} in a row",
            "calvin",
            "tasks" if column == "mean" else "percent",
            CALVIN_TABLE.trials,
            _column(CALVIN_TABLE, number),
        )
        for number, column in enumerate(CALVIN_TABLE.columns)
    },
    "real-avg": Metric(
        "Franka Research 3, average of four pick-and-place tasks",
        "real robot",
        "percent",
        ROBOT_TABLE.trials,
        _column(ROBOT_TABLE, -1),
    ),
}
"""The columns, by the name that users pass."""
