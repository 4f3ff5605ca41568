"""What LeRobot v2.0 and v2.1 have in place of v3.0: one file an episode, and meta files of one JSON record a line.

meta/info.json  meta/episodes.jsonl  meta/tasks.jsonl
data/chunk-000/episode_000000.parquet  videos/chunk-000/<key>/episode_000000.mp4
meta/modality.json      GR00T's: which cameras and which columns of words a robot of this data set uses
"""

import json
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.episodes.formats import lerobot_layout as layout
from roboalign.episodes.formats.lerobot_layout import AGAIN, Features, Record, StoredVideo, number

EPISODES, TASKS, MODALITY = "meta/episodes.jsonl", "meta/tasks.jsonl", "meta/modality.json"
LANGUAGE = "annotation.human.action.task_description"
"""GR00T's column of indices into the tasks; read where a data set has no column task_index."""


def read_records(folder: Path, info: dict[str, Any], videos: list[str]) -> list[Record]:
    """The episodes in order. `videos`: the cameras that are stored as video. Raises RoboAlignError naming the line."""
    per_chunk, where = info.get("chunks_size"), str(folder / layout.INFO)
    if not isinstance(per_chunk, int) or per_chunk < 1:
        raise RoboAlignError(
            f"chunks_size is {per_chunk!r}, expected a count", where=where, fix=AGAIN
        )
    records = []
    for line, row in enumerate(read_lines(folder / EPISODES), start=1):
        where = f"{folder / EPISODES}, line {line}"
        index, length = int(number(row, "episode_index", where)), int(number(row, "length", where))
        place = {"episode_chunk": index // per_chunk, "episode_index": index}
        paths = {
            key: layout.fill(info, "video_path", folder, video_key=key, **place) for key in videos
        }
        records.append(
            Record(
                index,
                length,
                layout.fill(info, "data_path", folder, **place),
                start=0,
                alone=True,
                videos={key: StoredVideo(path) for key, path in paths.items()},
            )
        )
    return sorted(records, key=lambda record: record.index)


def read_tasks(path: Path) -> dict[int, str]:
    """task_index -> instruction."""
    tasks = {}
    for line, row in enumerate(read_lines(path), start=1):
        if not isinstance(row.get("task_index"), int) or not isinstance(row.get("task"), str):
            raise RoboAlignError("no task_index and task", where=f"{path}, line {line}", fix=AGAIN)
        tasks[row["task_index"]] = row["task"]
    return tasks


def read_lines(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line. A line that was cut short is refused, the last one too: an episode would be lost."""
    if not path.is_file():
        raise RoboAlignError("the file does not exist", where=str(path), fix=AGAIN)
    rows = []
    for line, text in enumerate(path.read_bytes().splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise RoboAlignError(
                f"not valid JSON ({error})", where=f"{path}, line {line}", fix=AGAIN
            ) from None
        if not isinstance(row, dict):
            raise RoboAlignError(f"not a record: {row!r}", where=f"{path}, line {line}", fix=AGAIN)
        rows.append(row)
    return rows


def used_cameras(folder: Path, features: Features) -> list[str]:
    """The columns that are cameras: those that meta/modality.json names, and all where there is no such file.

    info.json may describe cameras that were never stored. Raises RoboAlignError where modality.json names one that
    info.json does not describe.
    """
    described = [key for key, feature in features.items() if feature["dtype"] in ("image", "video")]
    path = folder / MODALITY
    modality = read_json(path) if path.exists() else {}
    named = modality.get("video") if isinstance(modality, dict) else None
    if not isinstance(named, dict) or not all(isinstance(value, dict) for value in named.values()):
        return described
    used = [value.get("original_key", layout.IMAGE_PREFIX + name) for name, value in named.items()]
    unknown = [key for key in used if key not in described]
    if unknown:
        raise RoboAlignError(
            f"it names the cameras {unknown}, meta/info.json describes {described}",
            where=str(path),
            fix="correct original_key in meta/modality.json, or remove the file to read every camera",
        )
    return used
