"""Named protocols: how a benchmark words its question, reads the reply and scores it.

A result without the name of its protocol cannot be compared with anything. Each task lists the
presets that exist for it; `docs/how-to/measure-an-mllm.md` explains them.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from roboalign.bench.items import BenchItem
from roboalign.bench.letters import LetterRule, YesNoRule
from roboalign.bench.points import Convention, PointForm
from roboalign.bench.regions import PointRule

BenchPreset = Literal[
    "lmms-eval",
    "official",
    "flageval",
    "qwen2.5-vl",
    "qwen3-vl",
    "robobrain2",
    "trained",
]
BENCH_PRESETS: tuple[BenchPreset, ...] = get_args(BenchPreset)
Wording = Callable[[BenchItem], str]


@dataclass(frozen=True)
class Protocol:
    """One way to ask and score the items of a task."""

    source: str
    """Whose it is: a library with its version, a script, or ours."""
    wording: Wording
    letter: LetterRule = "ranked"
    yes_no: YesNoRule = "last-line"
    form: PointForm = "pairs"
    convention: Convention = "unit"
    points: PointRule = "mean"
    boxes: bool = False
    """Whether a box counts as all its pixels; otherwise it is no answer."""
    polygon: bool = False
    """Whether points are scored against the polygon of the item and not its mask."""
    threshold: int = 127
    """A mask's pixel above it belongs to the region."""

    def described(self) -> dict[str, Any]:
        """Return the fields as JSON values, without the wording: prompts are hashed by item."""
        return {key: value for key, value in asdict(self).items() if key != "wording"}


def as_written(item: BenchItem) -> str:
    """Return the question as the data set has it."""
    return item.text


def around(before: str = "", after: str = "", drop: tuple[str, ...] = ()) -> Wording:
    """Return a wording that puts fixed texts around the question, without the texts in `drop`."""

    def wording(item: BenchItem) -> str:
        text = item.text
        for part in drop:
            text = text.replace(part, "")
        return f"{before}{text.strip()}{after}"

    return wording


def note_letters(between: str = "") -> Wording:
    """Return lmms-eval's note before the question that names the letters."""

    def wording(item: BenchItem) -> str:
        letters = ", ".join(item.letters)
        note = f"Note: You only need to respond with {letters} without providing any additional information.\n"
        return f"{note}{between}{item.text}"

    return wording
