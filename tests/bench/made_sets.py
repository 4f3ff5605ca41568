"""Made-up sets of 8 items a task, in the column layout in which each benchmark is published.

Every image is a gray plane with a colored square; where a region is asked, it is the square's.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 96, 64
COLORS = ("red", "green", "blue", "yellow")
COUNT = 8


def square(number: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (all inside) of the square in image `number`: 24 x 16 pixels."""
    left, top = 24 * (number % 4), 16 * (number // 4)
    return left, top, left + 23, top + 15


def file_of(image: Image.Image, kind: str = "PNG") -> dict[str, Any]:
    """An image as `datasets` stores it."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return {"bytes": buffer.getvalue(), "path": None}


def picture(number: int) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), (120, 120, 120))
    ImageDraw.Draw(image).rectangle(square(number), fill=COLORS[number % 4])
    return image


def mask(number: int) -> Image.Image:
    image = Image.new("L", (WIDTH, HEIGHT), 0)
    ImageDraw.Draw(image).rectangle(square(number), fill=255)
    return image


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def mmstar(folder: Path) -> None:
    """Answers A, B, C, D, A, B, C, D."""
    rows = []
    for number in range(COUNT):
        listed = ", ".join(f"{letter}: {color}" for letter, color in zip("ABCD", COLORS))
        category = ("coarse perception", "math")[number % 2]
        rows.append(
            {
                "index": number,
                "question": f"Which color does the square have?\nOptions: {listed}",
                "image": file_of(picture(number), "JPEG"),
                "answer": "ABCD"[number % 4],
                "category": category,
                "l2_category": ("image emotion", "geometry", "image emotion", "statistics")[
                    number % 4
                ],
                "meta_info": {"source": "made up", "split": "val", "image_path": f"{number}.jpg"},
            }
        )
    write(folder / "mmstar.parquet", rows)


def where2place(folder: Path) -> None:
    """FlagEval's layout."""
    rows = [
        {
            "question_id": f"{number:02d}",
            "question": "Please point out the free space inside the colored square.",
            "question_type": ("seen", "unseen")[number % 2],
            "image": file_of(picture(number), "JPEG"),
            "mask": file_of(mask(number)),
        }
        for number in range(COUNT)
    ]
    write(folder / "data" / "test-00000-of-00001.parquet", rows)


SETS: dict[str, Callable[[Path], None]] = {"mmstar": mmstar, "where2place": where2place}


def write_sets(root: Path, *names: str) -> Path:
    """Write the sets of these tasks, or of all, one folder each."""
    for name in names or SETS:
        SETS[name](root / name)
    return root
