"""Read LeRobot v2.0 and v2.1: one file per episode, and meta files of one JSON record per line.

meta/info.json  meta/episodes.jsonl  meta/tasks.jsonl data/chunk-000/episode_000000.parquet
videos/chunk-000/<key>/episode_000000.mp4
"""

import codecs
import json
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_readable
from roboalign.episodes.formats import lerobot_layout as layout
from roboalign.episodes.formats.lerobot_layout import (
    FETCH_DATA_SET_AGAIN,
    EpisodeRows,
    StoredVideo,
    whole,
)

EPISODE_LINES, TASK_LINES = "meta/episodes.jsonl", "meta/tasks.jsonl"


def read_episode_lines(folder: Path, info: dict[str, Any], videos: list[str]) -> list[EpisodeRows]:
    """Return the episodes in order. `videos`: the cameras that are stored as video. Raises
    RoboAlignError naming the line."""
    per_chunk, where = info.get("chunks_size"), str(folder / layout.INFO)
    if type(per_chunk) is not int or per_chunk < 1:
        raise RoboAlignError(
            f"chunks_size is {per_chunk!r}, expected a count", where=where, fix=FETCH_DATA_SET_AGAIN
        )
    records = []
    for line, row in enumerate(read_lines(folder / EPISODE_LINES), start=1):
        where = f"{folder / EPISODE_LINES}, line {line}"
        index, length = whole(row, "episode_index", where), whole(row, "length", where)
        place = {"episode_chunk": index // per_chunk, "episode_index": index}
        paths = {
            key: layout.fill(info, "video_path", folder, video_key=key, **place) for key in videos
        }
        records.append(
            EpisodeRows(
                index,
                length,
                layout.fill(info, "data_path", folder, **place),
                start=0,
                alone=True,
                videos={key: StoredVideo(path) for key, path in paths.items()},
            )
        )
    return sorted(records, key=lambda record: record.index)


def read_task_lines(path: Path) -> dict[int, str]:
    """Return task_index -> instruction."""
    tasks: dict[int, str] = {}
    for line, row in enumerate(read_lines(path), start=1):
        if not isinstance(row.get("task_index"), int) or not isinstance(row.get("task"), str):
            raise RoboAlignError(
                "no task_index and task", where=f"{path}, line {line}", fix=FETCH_DATA_SET_AGAIN
            )
        if tasks.setdefault(row["task_index"], row["task"]) != row["task"]:
            raise RoboAlignError(
                f"task_index {row['task_index']} has two texts",
                where=f"{path}, line {line}",
                fix=FETCH_DATA_SET_AGAIN,
            )
    return tasks


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return one JSON object per line. A truncated line is refused, even the last: an episode would
    be lost."""
    check_readable(path, fix=FETCH_DATA_SET_AGAIN)
    rows = []
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise RoboAlignError(
                f"not valid JSON ({error})", where=f"{path}, line {line}", fix=FETCH_DATA_SET_AGAIN
            ) from None
        if not isinstance(row, dict):
            raise RoboAlignError(
                f"not a record: {row!r}", where=f"{path}, line {line}", fix=FETCH_DATA_SET_AGAIN
            )
        rows.append(row)
    return rows
