"""Robot-R1 Bench (arXiv 2506.00070): open questions about a robot's next moves, scored by a judge.

Its 215 questions are not public: the user gives the file. A row has `id`, `question`, `answer` (the
reference), `image` or `images`, and where it has them `category`.
"""

from roboalign.bench.items import BenchItem
from roboalign.bench.presets import Protocol, as_written
from roboalign.bench.rows import BenchRow
from roboalign.bench.tasks.base import BenchTask


def _item(row: BenchRow) -> BenchItem:
    several = row.values.get("images") is not None
    return BenchItem(
        id=row.text("id"),
        kind="judged",
        images=row.pictures("images") if several else (row.picture("image"),),
        text=row.text("question").strip(),
        answer=row.text("answer").strip(),
        group=str(row.values.get("category") or ""),
    )


ROBOT_R1 = BenchTask(
    name="robot_r1",
    title="Robot-R1 Bench",
    repository="",
    files=("*.parquet", "*.jsonl", "*.json"),
    columns=("id", "question", "answer"),
    item=_item,
    presets={
        "official": Protocol("the file's question; the judge's prompt is ours", as_written),
        "trained": Protocol("the file's question; the judge's prompt is ours", as_written),
    },
    headline="mean of 0 to 3",
)
