"""Read the meta files of a LeRobot data set: episodes, tasks, and our writer's additions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_source, read_json
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats import lerobot_layout as layout
from roboalign.episodes.formats import lerobot_v2
from roboalign.episodes.formats.lerobot_columns import TASK_INDEX, Columns, find_columns
from roboalign.episodes.formats.lerobot_layout import EpisodeRows, StoredVideo, number_in, whole
from roboalign.episodes.formats.lerobot_rows import open_parquet, read_parquet

_FOLDER = "give the folder that holds meta/ and data/"


@dataclass(frozen=True)
class LerobotSource:
    """The meta files of one data set. `extras` is what only our writer records: one entry per
    record, None if absent."""

    folder: Path
    info: dict[str, Any]
    columns: Columns
    records: list[EpisodeRows]
    tasks: dict[int, str]
    extras: list[dict[str, Any] | None]


def open_source(
    folder: Path,
    *,
    action: str | Sequence[str] | None = None,
    state: str | Sequence[str] | None = None,
    instruction: str | None = None,
    links: bool = False,
) -> LerobotSource:
    """Read the meta files. Raises RoboAlignError naming the file and field if they are broken or
    inconsistent."""
    info = _read_info(folder, links)
    features = info["features"]
    columns = find_columns(
        folder, features, action=action, state=state, instruction=instruction, links=links
    )
    for key in (*columns.action, *columns.state, columns.instruction, *columns.cameras):
        layout.check_feature(features, key, str(folder / layout.INFO))
    videos = [key for key in columns.cameras if features[key]["dtype"] == "video"]
    second = info["codebase_version"].startswith("v2.")
    tasks_path = folder / (lerobot_v2.TASK_LINES if second else layout.TASK_TABLE)
    for path in (tasks_path, folder / lerobot_v2.EPISODE_LINES, folder / layout.EXTRAS):
        check_source(path, folder, links=links)
    if second:
        records = lerobot_v2.read_episode_lines(folder, info, videos)
        tasks = lerobot_v2.read_task_lines(tasks_path)
    else:
        records = _read_records(folder, info, videos, links)
        tasks = read_tasks(tasks_path)
    for path in {path for one in records for path in one.paths()}:
        check_source(path, folder, links=links)
    extras = read_extras(folder / layout.EXTRAS, len(records))
    check_counts(folder, info, records, extras)
    return LerobotSource(folder, info, columns, records, tasks, extras)


def _read_info(folder: Path, links: bool = False) -> dict[str, Any]:
    """Read meta/info.json. Raises RoboAlignError if this reader does not understand it."""
    check_source(folder / layout.INFO, folder, links=links)
    info = read_json(folder / layout.INFO, fix=_FOLDER)
    layout.check_info(info, folder)
    return info


def check_counts(
    folder: Path,
    info: dict[str, Any],
    records: list[EpisodeRows],
    extras: list[dict[str, Any] | None],
) -> None:
    """Raise RoboAlignError if the meta files count different episodes, or one twice."""
    second = info["codebase_version"].startswith("v2.")
    name = lerobot_v2.EPISODE_LINES if second else "meta/episodes"
    if len(records) != info["total_episodes"]:
        raise RoboAlignError(
            f"it lists {len(records)} episodes, total_episodes in {layout.INFO} is "
            f"{info['total_episodes']}",
            where=str(folder / name),
            fix=f"correct total_episodes, or get {name} again",
        )
    if len(extras) != len(records):
        raise RoboAlignError(
            f"it lists {len(extras)} episodes, {name} {len(records)}",
            where=str(folder / layout.EXTRAS),
            fix="finalize the writer again",
        )
    indices = [record.index for record in records]
    if len(set(indices)) != len(indices):
        twice = next(index for index in indices if indices.count(index) > 1)
        raise RoboAlignError(
            f"it lists episode {twice} twice",
            where=str(folder / name),
            fix=layout.FETCH_DATA_SET_AGAIN,
        )


def _read_records(
    folder: Path, info: dict[str, Any], videos: list[str], links: bool
) -> list[EpisodeRows]:
    """Return meta/episodes of v3.0 in order. `videos`: the cameras that are stored as video."""
    where = str(folder / "meta/episodes")
    paths = sorted(
        path
        for path in (folder / "meta/episodes").glob("*/*.parquet")
        if not path.name.startswith(".")  # such as those that macOS leaves on other file systems
    )
    if not paths:
        raise RoboAlignError("no parquet file", where=where, fix="finalize the writer first")
    rows = []
    for path in paths:
        check_source(path, folder, links=links)
        names = [
            name for name in open_parquet(path).schema_arrow.names if not name.startswith("stats/")
        ]
        rows += read_parquet(path, names).to_pylist()
    rows.sort(key=lambda row: number_in(row, "episode_index", where))
    records: list[EpisodeRows] = []
    starts: dict[Path, int] = {}
    for row in rows:
        at = {name: whole(row, f"data/{name}", where) for name in ("chunk_index", "file_index")}
        path = layout.fill(info, "data_path", folder, **at)
        start = whole(row, "dataset_from_index", where)
        starts[path] = min(start, starts.get(path, start))
        records.append(
            EpisodeRows(
                int(row["episode_index"]),
                whole(row, "length", where),
                path,
                start - starts[path],
                alone=False,
                videos={key: stored_video(folder, info, row, key, where) for key in videos},
            )
        )
    return records


def stored_video(
    folder: Path, info: dict[str, Any], row: dict[str, Any], key: str, where: str
) -> StoredVideo:
    """Return where v3.0 stores one camera of one episode: a part of a file with several."""
    at = {name: whole(row, f"videos/{key}/{name}", where) for name in ("chunk_index", "file_index")}
    path = layout.fill(info, "video_path", folder, video_key=key, **at)
    start, end = (
        number_in(row, f"videos/{key}/{name}", where) for name in ("from_timestamp", "to_timestamp")
    )
    return StoredVideo(path, start, end)


def read_tasks(path: Path) -> dict[int, str]:
    """Return task_index -> instruction.

    The instruction is the index of the pandas table, whatever its name. Without pandas' description
    it is the column `task`, or the only text column. Raises RoboAlignError if it cannot be
    identified, or is not text.
    """
    table = read_parquet(path)
    names = [name for name in table.column_names if name != TASK_INDEX]
    texts = [name for name in names if is_text(table.schema.field(name).type)]
    known = [name for name in (*pandas_index(table), "__index_level_0__", "task") if name in texts]
    text = known[0] if known else texts[0] if len(texts) == 1 else None
    if text is None or TASK_INDEX not in table.column_names:
        raise RoboAlignError(
            f"its columns are {', '.join(table.column_names)}; expected {TASK_INDEX} and the "
            "instruction as the index or as task",
            where=str(path),
            fix="name the column of the instruction task",
        )
    return dict(zip(table[TASK_INDEX].to_pylist(), table[text].to_pylist()))


def pandas_index(table: pa.Table) -> list[str]:
    """Return the columns that pandas stored as the index of the table."""
    try:
        stored = json.loads((table.schema.metadata or {})[b"pandas"])["index_columns"]
    except (KeyError, ValueError, TypeError):
        return []
    return [name for name in stored if isinstance(name, str)] if isinstance(stored, list) else []


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column contains text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def read_extras(path: Path, count: int) -> list[dict[str, Any] | None]:
    """Return what our writer records for each episode. It is `count` times None if another tool
    wrote the data set."""
    if not path.exists():
        return [None] * count
    extras = read_json(path)
    episodes = extras.get("episodes") if isinstance(extras, dict) else None
    needed = {
        "episode_id": str,
        "task": str,
        "nouns": dict,
        "privileged_names": list,
        "cameras": dict,
    }
    for place, episode in enumerate(episodes if isinstance(episodes, list) else [None]):
        for key, kind in needed.items():
            if not isinstance(episode, dict) or not isinstance(episode.get(key), kind):
                problem = f"{key} of episode {place} is missing or not a {kind.__name__}"
                raise RoboAlignError(problem, where=str(path), fix="finalize the writer again")
    shared = {
        "action_space": extras.get("action_space"),
        "axes": extras.get("axes", ",".join(Episode.axes)),
    }
    return [{**episode, **shared} for episode in episodes]  # type: ignore[union-attr]
