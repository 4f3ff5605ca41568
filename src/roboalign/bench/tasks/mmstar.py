"""MMStar (Chen et al. 2024, arXiv 2403.20330): 1500 questions with four options that need the image."""

from roboalign.bench.items import BenchItem
from roboalign.bench.presets import Protocol, around, as_written
from roboalign.bench.rows import BenchRow
from roboalign.bench.tasks.base import LMMS, BenchTask, options_in

_LETTERS = "ABCD"
_DROPPED = (" Please answer yes or no.",)


def _item(row: BenchRow) -> BenchItem:
    text = row.text("question").strip()
    start = text.rfind("Options:")
    spans = options_in(text[max(start, 0) :], _LETTERS, r"(?<!\w){}:\s*")
    by = max(start, 0)
    return BenchItem(
        id=row.text("index"),
        kind="letter",
        images=(row.picture("image"),),
        text=text,
        answer=row.letter("answer", _LETTERS),
        options=tuple((first + by, last + by) for first, last in spans),
        letters=_LETTERS,
        group=row.text("category"),
        subgroup=row.text("l2_category"),
    )


_ANSWER = "\nAnswer with the option's letter from the given choices directly"
_LMMS = Protocol(f"{LMMS}, mmstar", around(after=_ANSWER, drop=_DROPPED))
_QWEN = Protocol(
    f"{LMMS}, mmstar_qwen",
    around("Question: ", "Answer with the option letter only.", drop=_DROPPED),
)
MMSTAR = BenchTask(
    name="mmstar",
    title="MMStar",
    repository="Lin-Chen/MMStar",
    files=("*.parquet",),
    columns=("index", "question", "image", "answer", "category", "l2_category"),
    item=_item,
    presets={
        "lmms-eval": _LMMS,
        "qwen2.5-vl": _LMMS,
        "qwen3-vl": _QWEN,
        "robobrain2": _LMMS,
        "trained": Protocol("this package", as_written),
    },
    headline="mean of the categories",
)
