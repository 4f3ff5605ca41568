"""Where2Place (Yuan et al. 2024, RoboPoint, arXiv 2406.10721): 100 images, points in free space."""

from pathlib import Path

from roboalign.bench.items import BenchItem
from roboalign.bench.presets import Protocol, around
from roboalign.bench.rows import BenchRow
from roboalign.bench.tasks.base import LMMS, BenchTask
from roboalign.bench.tasks.pointing import (
    FLAGEVAL,
    MODEL_POINTS,
    ONLY_TUPLES,
    THOUSAND_JSON,
    UNIT_TUPLES,
)


def _item(row: BenchRow) -> BenchItem:
    """Return the item of a row of FlagEval's parquet, or of RoboPoint's point_questions.jsonl."""
    if "text" not in row.values:
        return BenchItem(
            id=row.text("question_id"),
            kind="point",
            images=(row.picture("image"),),
            text=row.text("question").strip(),
            group=row.text("question_type"),
            mask=row.picture("mask"),
        )
    name = row.text("image")
    values = {"image": f"images/{name}", "mask": f"masks/{Path(name).stem}.jpg"}
    files = BenchRow(values, row.file, row.number)
    return BenchItem(
        id=row.text("question_id"),
        kind="point",
        images=(files.picture("image"),),
        text=row.text("text").removesuffix(UNIT_TUPLES).strip(),
        group=str(row.values.get("category") or ""),
        mask=files.picture("mask"),
    )


WHERE2PLACE = BenchTask(
    name="where2place",
    title="Where2Place",
    repository="FlagEval/Where2Place",
    files=("test-*.parquet", "point_questions.jsonl"),
    columns=("question_id", "image"),
    item=_item,
    presets={
        "lmms-eval": Protocol(
            f"{LMMS}, where2place",
            around(after=f" {UNIT_TUPLES} {ONLY_TUPLES}"),
            form="tuples",
        ),
        "official": Protocol(
            "RoboPoint 9d54aac, summarize_vqa.py",
            around(after=f" {UNIT_TUPLES}"),
            form="tuples",
            convention="unit-or-pixels",
            boxes=True,
        ),
        "flageval": FLAGEVAL,
        "qwen3-vl": Protocol(
            f"{LMMS}, where2place_json",
            around(after=f" {THOUSAND_JSON}"),
            convention="unit-or-thousand",
        ),
        **MODEL_POINTS,
    },
)
