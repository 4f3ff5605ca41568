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


_LIBERO = ("spatial", "object", "goal", "long", "avg")
_CALVIN = ("1", "2", "3", "4", "5", "mean")
_LIBERO_ROWS: dict[str, tuple[float | None, ...]] = {
    "base": (95.2, 95.0, 42.4, 63.2, 73.9),
    "language-sft": (91.0, 94.4, 67.8, 65.0, 79.6),
    "action-sft": (89.8, 95.8, 82.8, 57.6, 81.5),
    "sft": (92.8, 97.4, 59.0, 65.6, 78.7),
    "ecot": (None, None, None, None, 67.7),
    "language-rl": (None, None, None, 58.2, 83.6),
    "trajectory-rl": (None, None, None, 64.6, 85.1),
    "roboalign": (93.8, 96.0, 87.2, 70.0, 86.8),
}
_CALVIN_ROWS: dict[str, tuple[float | None, ...]] = {
    "base": (77.8, 55.0, 38.6, 26.6, 18.1, 2.16),
    "language-sft": (87.4, 62.2, 41.9, 25.2, 15.3, 2.32),
    "action-sft": (66.1, 34.7, 15.3, 7.1, 3.2, 1.26),
    "sft": (74.6, 49.6, 31.5, 21.2, 12.2, 1.89),
    "roboalign": (87.6, 67.2, 47.1, 32.8, 22.2, 2.57),
}


def _column(rows: Mapping[str, tuple[float | None, ...]], number: int) -> dict[str, float]:
    return {arm: value for arm, row in rows.items() if (value := row[number]) is not None}


METRICS: dict[str, Metric] = {
    **{
        f"libero-{suite}": Metric(
            "LIBERO, average of the four suites"
            if suite == "avg"
            else f"LIBERO-{suite.capitalize()}",
            "libero",
            "percent",
            "500 episodes a suite",
            _column(_LIBERO_ROWS, number),
        )
        for number, suite in enumerate(_LIBERO)
    },
    **{
        f"calvin-{column}": Metric(
            "CALVIN ABC to D, mean number of tasks in a row"
            if column == "mean"
            else f"CALVIN ABC to D, {column} task{'s' * (column != '1')} in a row",
            "calvin",
            "tasks" if column == "mean" else "percent",
            "1000 chains of five tasks",
            _column(_CALVIN_ROWS, number),
        )
        for number, column in enumerate(_CALVIN)
    },
    "real-avg": Metric(
        "Franka Research 3, average of four pick-and-place tasks",
        "real robot",
        "percent",
        "24 episodes a task",
        {"base": 32.3, "sft": 55.2, "roboalign": 66.7},
    ),
}
"""The columns, by the name that users pass."""
