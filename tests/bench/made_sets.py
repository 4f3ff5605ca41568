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


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


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


def blink(folder: Path) -> None:
    """Which of two marked points is nearer; answers (A), (B), (A), ..."""
    rows = []
    for number in range(COUNT):
        question = "Two points are circled on the image. Which point is closer to the camera?"
        choices = ["A is closer", "B is closer"]
        options = "".join(f"({letter}) {choice}\n" for letter, choice in zip("AB", choices))
        rows.append(
            {
                "idx": f"val_Relative_Depth_{number + 1}",
                "sub_task": "Relative_Depth",
                "prompt": f"{question}\nSelect from the following options.\n{options}",
                "question": question,
                **{
                    f"image_{i}": file_of(picture(number), "JPEG") if i == 1 else None
                    for i in range(1, 5)
                },
                "choices": choices,
                "answer": f"({'AB'[number % 2]})",
                "explanation": "",
            }
        )
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = ["idx", "sub_task", "prompt", "question", "answer", "explanation"]
    fields = [(name, pa.string()) for name in texts] + [("choices", pa.list_(pa.string()))]
    fields += [(f"image_{i}", image) for i in range(1, 5)]
    path = folder / "Relative_Depth" / "val-00000-of-00001.parquet"
    write(path, rows, pa.schema(fields))


def robospatial(folder: Path) -> None:
    """Three splits; the polygon is the square."""
    number = 0
    for split, count in (("compatibility", 2), ("configuration", 3), ("context", 3)):
        rows = []
        for _ in range(count):
            row = {
                "img": file_of(picture(number)),
                "depth_image": file_of(mask(0)),
                "category": split,
                "mask": None,
            }
            if split == "context":
                left, top, right, bottom = square(number)
                corners = [
                    (left, top),
                    (right + 1, top),
                    (right + 1, bottom + 1),
                    (left, bottom + 1),
                ]
                row["question"] = (
                    "Pinpoint several points within the vacant space in the square. Your answer should be "
                    "formatted as a list of tuples, i.e. [(x1, y1), ...], where each tuple contains the x and y "
                    "coordinates of a point satisfying the conditions above. The coordinates should be between 0 "
                    "and 1, indicating the normalized pixel locations of the points."
                )
                row["answer"] = str([(x / WIDTH, y / HEIGHT) for x, y in corners])
                row["mask"] = file_of(mask(number))
            else:
                row["question"] = "Can the cup be placed in the square? Answer yes or no."
                row["answer"] = ("yes", "no")[number % 2]
            rows.append(row)
            number += 1
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        fields = [(name, image) for name in ("img", "depth_image", "mask")]
        fields += [(name, pa.string()) for name in ("question", "answer", "category")]
        write(folder / "data" / f"{split}-00000-of-00001.parquet", rows, pa.schema(fields))


def erqa(folder: Path) -> None:
    """One or two images, options in the question; answers A, B, C, D, ..."""
    rows = [
        {
            "question_id": f"ERQA_{number}",
            "question": "What color is the square? Choices: A. Red. B. Green. C. Blue. D. Yellow. "
            "Please answer directly with only the letter of the correct option and nothing else.",
            "question_type": ("Action Reasoning", "Pointing")[number % 2],
            "images": [file_of(picture(number), "JPEG")] * (1 + number % 2),
            "visual_indices": [0] * (1 + number % 2),
            "answer": "ABCD"[number % 4],
        }
        for number in range(COUNT)
    ]
    write(folder / "data" / "test-00000-of-00001.parquet", rows)


def embspatial(folder: Path) -> None:
    """The answer is the number of an option."""
    rows = [
        {
            "question_id": f"mp3d_{number}",
            "question": "What color does the square have?",
            "question_type": "multiple-choice",
            "answer_options": list(COLORS),
            "answer": number % 4,
            "relation": ("left", "close")[number % 2],
            "data_source": ("mp3d", "scannet")[number % 2],
            "image": file_of(picture(number), "JPEG"),
        }
        for number in range(COUNT)
    ]
    write(folder / "data" / "test-00000-of-00001.parquet", rows)


def cv_bench(folder: Path) -> None:
    """Two files, of 2D and 3D."""
    for kind, numbers in (("2D", range(4)), ("3D", range(4, 8))):
        rows = []
        for number in numbers:
            choices = list(COLORS[: 2 if kind == "3D" else 4])
            options = " ".join(f"({letter}) {choice}" for letter, choice in zip("ABCD", choices))
            question = "What color does the square have?"
            rows.append(
                {
                    "idx": number,
                    "type": kind,
                    "task": "Depth" if kind == "3D" else "Count",
                    "image": file_of(picture(number)),
                    "question": question,
                    "choices": choices,
                    "answer": f"({'ABCD'[number % len(choices)]})",
                    "prompt": f"{question} Select from the following choices.\n{options}",
                    "source": "Omni3D" if kind == "3D" else ("ADE20K", "COCO")[number % 2],
                }
            )
        write(folder / f"test_{kind.lower()}.parquet", rows)


def sat(folder: Path) -> None:
    """Two images, two answers."""
    rows = [
        {
            "image_bytes": [file_of(picture(number)), file_of(picture(number + 1))],
            "question": "How did the camera move between the two images?",
            "answers": ["It moved left", "It moved right"],
            "question_type": "ego_movement",
            "correct_answer_idx": number % 2,
        }
        for number in range(COUNT - 1)
    ] + [
        {
            "image_bytes": [file_of(picture(0))],
            "question": "Is the square red?",
            "answers": ["yes", "no", "unclear"],
            "question_type": "other",
            "correct_answer_idx": 0,
        }
    ]
    write(folder / "data" / "test-00000-of-00001.parquet", rows)


def refspatial(folder: Path) -> None:
    """Three splits with ids that start at 0 in each."""
    number = 0
    for split, count in (("location", 3), ("placement", 3), ("unseen", 2)):
        rows = []
        for place in range(count):
            rows.append(
                {
                    "id": place,
                    "object": "the colored square",
                    "prompt": "Please point out the colored square.",
                    "suffix": "Your answer should be formatted as a list of tuples, i.e. [(x1, y1)].",
                    "image": file_of(picture(number)),
                    "mask": file_of(mask(number)),
                    "step": 1,
                }
            )
            number += 1
        write(folder / "data" / f"{split}-00000-of-00001.parquet", rows)


SETS: dict[str, Callable[[Path], None]] = {
    "mmstar": mmstar,
    "blink_relative_depth": blink,
    "robospatial": robospatial,
    "where2place": where2place,
    "erqa": erqa,
    "embspatial": embspatial,
    "cv_bench": cv_bench,
    "sat": sat,
    "refspatial": refspatial,
}


def write_sets(root: Path, *names: str) -> Path:
    """Write the sets of these tasks, or of all, one folder each."""
    for name in names or SETS:
        SETS[name](root / name)
    return root
