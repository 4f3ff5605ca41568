"""Read LeRobot v3.0 data sets as `Episode`s; `LeRobotWriter` writes them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.data import lerobot_layout as layout
from roboalign.data.episode import Camera, Episode
from roboalign.data.lerobot_writer import LeRobotWriter
from roboalign.errors import RoboAlignError
from roboalign.files import read_json

__all__ = ["LeRobotWriter", "read_lerobot"]


class StoredImages(Sequence[bytes]):
    """The PNG files of one camera of one episode, read from the parquet file when first asked for."""

    def __init__(self, path: Path, column: str, start: int, length: int) -> None:
        self.path, self.column, self.start, self.length = path, column, start, length

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, t: int) -> bytes: ...
    @overload
    def __getitem__(self, t: slice) -> list[bytes]: ...
    def __getitem__(self, t: int | slice) -> bytes | list[bytes]:
        if isinstance(t, slice):
            return [self[i] for i in range(*t.indices(self.length))]
        if not -self.length <= t < self.length:
            raise IndexError(f"step {t} of an episode of {self.length} steps")
        value = self._column[t % self.length].as_py()
        if not value:
            raise RoboAlignError(f"no image at step {t}", where=f"{self.path}, column {self.column}")
        return value

    @cached_property
    def _column(self) -> pa.Array:
        """Only the row groups that hold this episode are read."""
        file = open_parquet(self.path)
        groups: list[int] = []
        first = row = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < self.start + self.length and row + rows > self.start:
                first = row if not groups else first
                groups.append(group)
            row += rows
        column = file.read_row_groups(groups, columns=[self.column]).column(0).combine_chunks()
        images = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        return images.field("bytes").slice(self.start - first, self.length)


def read_lerobot(folder: str | Path) -> list[Episode]:
    """Every episode of a LeRobot v3.0 data set; frames stay on disk until one is asked for.

    A data set written by other tools has no meta/roboalign.json: its episodes are called `<folder>/episode-<n>`, carry
    the instruction as their task, and have no nouns and no camera projection. Raises RoboAlignError naming the file and
    column where something is missing, truncated, of another shape or not finite, and where images are stored as video.
    """
    folder = Path(folder)
    info = read_json(folder / layout.INFO, fix="give the folder that holds meta/ and data/")
    check_info(info, folder)
    rows = read_rows(folder / "meta/episodes")
    tasks = read_tasks(folder / layout.TASKS)
    extras_path = folder / layout.EXTRAS
    extras = read_json(extras_path)["episodes"] if extras_path.exists() else [None] * len(rows)
    if not len(rows) == len(extras) == info["total_episodes"]:
        raise RoboAlignError(
            f"info.json counts {info['total_episodes']} episodes, meta/episodes {len(rows)}, "
            f"roboalign.json {len(extras)}",
            where=str(folder), fix="finalize the writer again, or download the data set again",
        )
    episodes, tables, file_starts = [], {}, {}
    for row, extra in zip(rows, extras):
        path = folder / info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        if path not in tables:
            tables = {path: read_columns(path, info["features"])}  # one file at a time stays in memory
            file_starts[path] = row["dataset_from_index"]
        start = row["dataset_from_index"] - file_starts[path]
        episodes.append(read_episode(folder, info, path, tables[path], start, row, extra, tasks))
    return episodes


def check_info(info: dict[str, Any], folder: Path) -> None:
    """Raise RoboAlignError where info.json is not one that this reader understands."""
    where = str(folder / layout.INFO)
    for key in ("codebase_version", "fps", "features", "data_path", "total_episodes"):
        if key not in info:
            raise RoboAlignError(f"the field {key} is missing", where=where, fix="download the data set again")
    if not info["codebase_version"].startswith("v3."):
        raise RoboAlignError(
            f"format {info['codebase_version']}, this reads {layout.VERSION}", where=where,
            fix="convert it: python -m lerobot.datasets.v30.convert_dataset_v21_to_v30",
        )
    for key in (layout.ACTION, layout.STATE):
        if key not in info["features"]:
            raise RoboAlignError(f"the feature {key} is missing", where=where)
    videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    if videos:
        raise RoboAlignError(f"{videos} are stored as video", where=where, fix="store the cameras with dtype image")


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open one parquet file; RoboAlignError where it is missing or truncated."""
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise RoboAlignError("the file does not exist", where=str(path), fix="download the data set again") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise RoboAlignError(f"not a readable parquet file ({error})", where=str(path), fix="get it again") from None


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """meta/episodes as rows in order, without the statistics."""
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise RoboAlignError("no parquet file", where=str(folder), fix="finalize the writer first")
    rows = []
    for path in paths:
        file = open_parquet(path)
        columns = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
        rows += file.read(columns=columns).to_pylist()
    return sorted(rows, key=lambda row: row["episode_index"])


def read_tasks(path: Path) -> dict[int, str]:
    """task_index -> instruction. LeRobot keeps the instruction in the index column, whatever its name."""
    table = open_parquet(path).read()
    text = next((name for name in table.column_names if name != "task_index"), None)
    if text is None or "task_index" not in table.column_names:
        raise RoboAlignError(f"columns {table.column_names}, expected task and task_index", where=str(path))
    return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist()))


def read_columns(path: Path, features: layout.Features) -> dict[str, np.ndarray]:
    """The columns of one data file that are no images, as arrays [rows, D]; wrong widths and NaN refused."""
    file = open_parquet(path)
    wanted = [key for key in (layout.ACTION, layout.STATE, layout.PRIVILEGED, "next.success") if key in features]
    for key in [*wanted, "task_index"]:
        if key not in file.schema_arrow.names:
            raise RoboAlignError(f"the column {key} is missing", where=str(path), fix="get this file again")
    try:
        table = file.read(columns=[*wanted, "task_index"])
    except (pa.ArrowInvalid, OSError) as error:
        raise RoboAlignError(f"not a readable parquet file ({error})", where=str(path), fix="get it again") from None
    columns = {}
    for key in [*wanted, "task_index"]:
        column, width = table[key].combine_chunks(), int(np.prod(features[key]["shape"]))
        flat = column if not pa.types.is_nested(column.type) else column.flatten()
        if column.null_count or len(flat) != len(column) * width:
            raise RoboAlignError(
                f"column {key} holds {len(flat)} values in {len(column)} rows, info.json says {width} a row",
                where=str(path), fix="correct the shape in meta/info.json, or get this file again",
            )
        columns[key] = flat.to_numpy(zero_copy_only=False).reshape(len(column), width)
        if columns[key].dtype.kind == "f" and not np.isfinite(columns[key]).all():
            row = int(np.argwhere(~np.isfinite(columns[key]))[0][0])
            raise RoboAlignError(f"column {key} is not finite at row {row}", where=str(path), fix="drop that episode")
    return columns


def read_episode(
    folder: Path, info: dict[str, Any], path: Path, columns: dict[str, np.ndarray], start: int, row: dict[str, Any],
    extra: dict[str, Any] | None, tasks: dict[int, str],
) -> Episode:
    """One episode from the columns of its file, rows `start` .. `start + length`."""
    length = row["length"]
    if start + length > len(columns[layout.ACTION]):
        raise RoboAlignError(
            f"episode {row['episode_index']} ends past the last row", where=str(path), fix="get this file again"
        )
    part = {key: values[start : start + length] for key, values in columns.items()}
    number = int(part["task_index"][0, 0])
    if number not in tasks:
        raise RoboAlignError(f"no task with task_index {number}", where=str(folder / layout.TASKS))
    privileged_names = tuple(info["features"].get(layout.PRIVILEGED, {}).get("names") or ())
    privileged = part.get(layout.PRIVILEGED)
    solved = np.flatnonzero(part["next.success"]) if "next.success" in part else np.zeros(0)
    extra = extra or {
        "episode_id": f"{folder.name}/episode-{row['episode_index']:06d}", "task": tasks[number], "nouns": {},
        "privileged_names": privileged_names, "cameras": {},
    }
    if privileged is not None:
        kept = [privileged_names.index(name) for name in extra["privileged_names"]]
        privileged = privileged[:, kept].astype(np.float32) if kept else None
    keys = [key for key in info["features"] if key.startswith(layout.IMAGE_PREFIX)]
    return Episode(
        episode_id=extra["episode_id"], task=extra["task"], instruction=tasks[number], fps=float(info["fps"]),
        actions=part[layout.ACTION].astype(np.float32), state=part[layout.STATE].astype(np.float32),
        images={key.removeprefix(layout.IMAGE_PREFIX): StoredImages(path, key, start, length) for key in keys},
        cameras={key.removeprefix(layout.IMAGE_PREFIX): read_camera(key, info, extra["cameras"]) for key in keys},
        privileged=privileged, privileged_names=tuple(extra["privileged_names"]),
        nouns=dict(extra["nouns"]), success_step=int(solved[0]) if len(solved) else None,
    )


def read_camera(key: str, info: dict[str, Any], projections: dict[str, Any]) -> Camera:
    """The camera of one image column; without a projection where the data set does not record one."""
    name = key.removeprefix(layout.IMAGE_PREFIX)
    height, width = info["features"][key]["shape"][:2]
    matrix = projections.get(name)
    return Camera(name, width, height, None if matrix is None else np.array(matrix, dtype=np.float64))
