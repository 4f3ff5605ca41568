"""Read LeRobot v2.0, v2.1 and v3.0 data sets as `Episode`s; `LeRobotWriter` writes v3.0."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from roboalign.actions.axes import parse_axes
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.episodes.episode import Camera, Episode, LazyFrames
from roboalign.episodes.formats import lerobot_layout as layout
from roboalign.episodes.formats import lerobot_v2
from roboalign.episodes.formats.lerobot_layout import Record, StoredVideo, number
from roboalign.episodes.formats.lerobot_writer import LeRobotWriter
from roboalign.episodes.formats.video import VideoFrames
from roboalign.episodes.robot_data import Fault

__all__ = ["LeRobotWriter", "iterate_lerobot", "lerobot_names", "read_lerobot"]

BROKEN = (pa.ArrowException, OSError, ValueError)
"""What reading a truncated or damaged parquet file raises."""
Columns = dict[str, np.ndarray]


class StoredImages(LazyFrames):
    """The PNG files of one camera of one episode, read from the parquet file when first asked for."""

    def __init__(self, path: Path, column: str, start: int, length: int) -> None:
        self.path, self.column, self.start, self.length = path, column, start, length

    def file(self, t: int) -> bytes:
        """The stored file. Raises RoboAlignError where there is none."""
        value = self._column[t].as_py()
        if not value:
            raise RoboAlignError(
                f"no image at step {t}", where=f"{self.path}, column {self.column}"
            )
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
        try:
            column = file.read_row_groups(groups, columns=[self.column]).column(0).combine_chunks()
        except BROKEN as error:
            raise unreadable(self.path, error) from None
        images = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
            images = images.field("bytes")
        if not pa.types.is_binary(images.type) and not pa.types.is_large_binary(images.type):
            raise RoboAlignError(
                f"{images.type}, expected images", where=f"{self.path}, column {self.column}"
            )
        return images.slice(self.start - first, self.length)


@dataclass(frozen=True)
class Source:
    """The meta files of one data set. `extras`: what only our writer records, one entry a record, None where absent."""

    folder: Path
    info: dict[str, Any]
    records: list[Record]
    tasks: dict[int, str]
    cameras: list[str]
    extras: list[dict[str, Any] | None]

    @property
    def task_key(self) -> str:
        """The column of indices into the tasks."""
        features = self.info["features"]
        return (
            lerobot_v2.LANGUAGE
            if "task_index" not in features and lerobot_v2.LANGUAGE in features
            else "task_index"
        )


def read_lerobot(folder: str | Path) -> list[Episode]:
    """Every episode of a LeRobot data set; frames stay on disk until one is asked for.

    As `iterate_lerobot`, but raises RoboAlignError naming the file and column at the first broken episode.
    """
    episodes = []
    for item in iterate_lerobot(folder):
        if isinstance(item, Fault):
            raise RoboAlignError(item.problem, where=item.where, fix=item.fix)
        episodes.append(item)
    return episodes


def iterate_lerobot(folder: str | Path) -> Iterator[Episode | Fault]:
    """The episodes of a LeRobot data set v2.0, v2.1 or v3.0, one data file at a time in memory.

    `action` and `observation.state` are read; without a state it is [T, 0]. Step t of a video is the frame at
    t / fps seconds of the episode, as LeRobot defines it, whatever the column timestamp says. No video is opened before
    a frame is asked for. An episode whose instruction changes carries its first. A data set written by other tools has
    no meta/roboalign.json: its episodes are called `<folder>/episode-<n>`, carry the instruction as their task, and
    have no nouns and no camera projection.

    An episode is a Fault where its data or video file is missing, its data truncated, of another width or length than
    the meta files say, or not finite. Raises RoboAlignError where the meta files themselves are.
    """
    return read_source(open_source(Path(folder)))


def lerobot_names(folder: str | Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a LeRobot data set calls the dimensions of its actions and of its state; () where it does not.

    Raises RoboAlignError where meta/info.json is broken.
    """
    info = read_json(Path(folder) / layout.INFO, fix="give the folder that holds meta/ and data/")
    layout.check_info(info, Path(folder))
    features = info["features"]
    state = layout.dimension_names(features[layout.STATE]) if layout.STATE in features else ()
    return layout.dimension_names(features[layout.ACTION]), state


def read_source(source: Source) -> Iterator[Episode | Fault]:
    """The episodes that the meta files name, in order."""
    path: Path | None = None
    columns: Columns | RoboAlignError = {}
    for record, extra in zip(source.records, source.extras):
        if record.path != path:
            path, columns = record.path, {}  # the last file goes before the next is read
            try:
                columns = read_columns(path, source)
            except RoboAlignError as error:
                columns = error
        yield read_item(source, record, columns, extra)


def read_item(
    source: Source, record: Record, columns: Columns | RoboAlignError, extra: dict[str, Any] | None
) -> Episode | Fault:
    """One episode; a Fault where it, or the file that it lies in, is broken."""
    try:
        if isinstance(columns, RoboAlignError):
            raise columns
        return read_episode(source, record, columns, extra)
    except RoboAlignError as error:
        return Fault(error.where, f"{error.problem} (episode {record.index})", error.fix)


def open_source(folder: Path) -> Source:
    """Read the meta files. Raises RoboAlignError naming the file and field where they are broken or disagree."""
    info = read_json(folder / layout.INFO, fix="give the folder that holds meta/ and data/")
    layout.check_info(info, folder)
    cameras = lerobot_v2.used_cameras(folder, info["features"])
    videos = [key for key in cameras if info["features"][key]["dtype"] == "video"]
    if info["codebase_version"].startswith("v2."):
        records = lerobot_v2.read_records(folder, info, videos)
        tasks = lerobot_v2.read_tasks(folder / lerobot_v2.TASKS)
    else:
        records = read_records(folder, info, videos)
        tasks = read_tasks(folder / layout.TASKS)
    extras = read_extras(folder / layout.EXTRAS, len(records))
    if not len(records) == len(extras) == info["total_episodes"]:
        raise RoboAlignError(
            f"info.json counts {info['total_episodes']} episodes, meta/episodes {len(records)}, "
            f"roboalign.json {len(extras)}",
            where=str(folder),
            fix="finalize the writer again, or download the data set again",
        )
    indices = [record.index for record in records]
    if len(set(indices)) != len(indices):
        raise RoboAlignError(
            "meta/episodes lists an episode twice", where=str(folder), fix=layout.AGAIN
        )
    return Source(folder, info, records, tasks, cameras, extras)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open one parquet file; RoboAlignError where it is missing or truncated."""
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise RoboAlignError(
            "the file does not exist", where=str(path), fix="download the data set again"
        ) from None
    except BROKEN as error:
        raise unreadable(path, error) from None


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Some or all columns of one parquet file; RoboAlignError where it is missing, truncated or lacks one."""
    file = open_parquet(path)
    for key in columns or ():
        if key not in file.schema_arrow.names:
            raise RoboAlignError(
                f"the column {key} is missing", where=str(path), fix="get this file again"
            )
    try:
        return file.read(columns=columns)
    except BROKEN as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> RoboAlignError:
    """What the user sees of an error of the parquet library."""
    return RoboAlignError(
        f"not a readable parquet file ({error})", where=str(path), fix="get it again"
    )


def read_records(folder: Path, info: dict[str, Any], videos: list[str]) -> list[Record]:
    """meta/episodes of v3.0 in order. `videos`: the cameras that are stored as video."""
    where = str(folder / "meta/episodes")
    paths = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise RoboAlignError("no parquet file", where=where, fix="finalize the writer first")
    rows = []
    for path in paths:
        names = [
            name for name in open_parquet(path).schema_arrow.names if not name.startswith("stats/")
        ]
        rows += read_table(path, names).to_pylist()
    rows.sort(key=lambda row: number(row, "episode_index", where))
    records: list[Record] = []
    starts: dict[Path, int] = {}
    for row in rows:
        at = {
            name: int(number(row, f"data/{name}", where)) for name in ("chunk_index", "file_index")
        }
        path = layout.fill(info, "data_path", folder, **at)
        start = int(number(row, "dataset_from_index", where))
        starts[path] = min(start, starts.get(path, start))
        records.append(
            Record(
                int(row["episode_index"]),
                int(number(row, "length", where)),
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
    """Where v3.0 keeps one camera of one episode: a part of a file that holds several."""
    at = {
        name: int(number(row, f"videos/{key}/{name}", where))
        for name in ("chunk_index", "file_index")
    }
    path = layout.fill(info, "video_path", folder, video_key=key, **at)
    start, end = (
        number(row, f"videos/{key}/{name}", where) for name in ("from_timestamp", "to_timestamp")
    )
    return StoredVideo(path, start, end)


def read_tasks(path: Path) -> dict[int, str]:
    """task_index -> instruction. LeRobot keeps the instruction in the index column, whatever its name."""
    table = read_table(path)
    text = next((name for name in table.column_names if name != "task_index"), None)
    if text is None or "task_index" not in table.column_names:
        raise RoboAlignError(
            f"columns {table.column_names}, expected task and task_index", where=str(path)
        )
    return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist()))


def read_extras(path: Path, count: int) -> list[dict[str, Any] | None]:
    """What our writer records of each episode; `count` times None where another tool wrote the data set."""
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


def stored_space(extra: dict[str, Any], where: str) -> ActionSpace | None:
    """What the writer was told that the actions mean. Raises RoboAlignError where that is no action space."""
    stored = extra.get("action_space")
    try:
        return None if stored is None else ActionSpace.model_validate(stored)
    except ValidationError as error:
        problem = f"action_space: {error.errors()[0]['msg']}"
        raise RoboAlignError(problem, where=where, fix="finalize the writer again") from None


def read_columns(path: Path, source: Source) -> Columns:
    """The columns of one data file that are no images, as arrays [rows, D]; another width or missing values refused."""
    features = source.info["features"]
    known = (layout.ACTION, layout.STATE, layout.PRIVILEGED, "next.success", "episode_index")
    wanted = [*(key for key in known if key in features), source.task_key]
    table = read_table(path, wanted)
    stored = open_parquet(path).schema_arrow.names
    for key in source.cameras:
        if features[key]["dtype"] == "image" and key not in stored:
            raise RoboAlignError(
                f"the column {key} is missing", where=str(path), fix="get this file again"
            )
    return {
        key: as_array(table[key], features.get(key, {"shape": [1]})["shape"], key, path)
        for key in wanted
    }


def as_array(column: pa.ChunkedArray, shape: list[int], name: str, path: Path) -> np.ndarray:
    """A column of numbers, or of lists of them, as [rows, product of `shape`]; NaN stands for a number left out."""
    rows, width = len(column), int(np.prod(shape))
    values = column.combine_chunks()
    values = pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) else values
    even, nulls = True, values.null_count
    while pa.types.is_nested(values.type) and not pa.types.is_struct(values.type):
        lengths = pc.list_value_length(values)
        even, values = even and len(pc.unique(lengths)) <= 1, values.flatten()
    if nulls or not even or len(values) != rows * width:
        uneven = "" if even else " of different widths"
        raise RoboAlignError(
            f"column {name} holds {len(values)} values in {rows} rows{uneven}, info.json says {width} a row",
            where=str(path),
            fix="correct the shape in meta/info.json, or get this file again",
        )
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise RoboAlignError(
            f"column {name} holds {kind}, expected numbers", where=str(path), fix="get it again"
        )
    return values.to_numpy(zero_copy_only=False).reshape(rows, width)


def read_episode(
    source: Source, record: Record, columns: Columns, extra: dict[str, Any] | None
) -> Episode:
    """One episode from the columns of its file. Raises RoboAlignError naming file and column where it is broken."""
    check_rows(record, columns)
    info, features = source.info, source.info["features"]
    part = {
        key: values[record.start : record.start + record.length] for key, values in columns.items()
    }
    vectors = {
        key: finite(part[key], key, record)
        for key in (layout.ACTION, layout.STATE, layout.PRIVILEGED)
        if key in part
    }
    instruction = source.tasks.get(part[source.task_key][0, 0])
    if not isinstance(instruction, str):
        problem = f"no task with {source.task_key} {part[source.task_key][0, 0]}"
        raise RoboAlignError(problem, where=str(source.folder / "meta"), fix=layout.AGAIN)
    names = features.get(layout.PRIVILEGED, {}).get("names")
    names = (
        tuple(names)
        if isinstance(names, list) and len(names) == columns[layout.PRIVILEGED].shape[1]
        else ()
    )
    extra = extra or {
        "episode_id": f"{source.folder.absolute().name}/episode-{record.index:06d}",
        "task": instruction,
        "nouns": {},
        "privileged_names": names,
        "cameras": {},
    }
    if not all(name in names for name in extra["privileged_names"]):
        problem = f"{layout.PRIVILEGED} has names {list(names)}, {layout.EXTRAS} {extra['privileged_names']}"
        raise RoboAlignError(
            problem, where=str(source.folder / layout.INFO), fix="finalize the writer again"
        )
    kept = [names.index(name) for name in extra["privileged_names"]]
    solved = np.flatnonzero(part["next.success"]) if "next.success" in part else np.zeros(0)
    cameras = {key: read_camera(key, features[key], extra["cameras"]) for key in source.cameras}
    images = {
        camera.name: stored_images(source, record, key, camera) for key, camera in cameras.items()
    }
    return Episode(
        episode_id=extra["episode_id"],
        task=extra["task"],
        instruction=instruction,
        fps=float(info["fps"]),
        actions=vectors[layout.ACTION],
        state=vectors.get(layout.STATE, np.zeros((record.length, 0), np.float32)),
        images=images,
        cameras={camera.name: camera for camera in cameras.values()},
        privileged=vectors[layout.PRIVILEGED][:, kept] if kept else None,
        privileged_names=tuple(extra["privileged_names"]),
        nouns=dict(extra["nouns"]),
        success_step=int(solved[0]) if len(solved) else None,
        action_space=stored_space(extra, str(source.folder / layout.EXTRAS)),
        axes=parse_axes(str(extra["axes"])) if "axes" in extra else Episode.axes,
    )


def check_rows(record: Record, columns: Columns) -> None:
    """Raise RoboAlignError where the file does not hold this episode's rows."""
    rows, end = len(columns[layout.ACTION]), record.start + record.length
    problem = ""
    if not record.length:
        problem = "no steps"
    elif record.alone and rows != end:
        problem = f"{rows} rows, {lerobot_v2.EPISODES} says {end}"
    elif end > rows:
        problem = f"{rows} rows, the episode ends at {end}"
    elif not record.alone and "episode_index" in columns:
        found = np.unique(columns["episode_index"][record.start : end])
        if found.tolist() != [record.index]:
            problem = f"column episode_index holds {found[:3].tolist()} where meta/episodes has {record.index}"
    if problem:
        raise RoboAlignError(
            problem, where=str(record.path), fix="get this file again, or correct the meta files"
        )


def finite(values: np.ndarray, key: str, record: Record) -> np.ndarray:
    """A copy as float32 [T, D], which does not keep the whole file's column; NaN and infinity are refused."""
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        problem = f"column {key} is not finite at row {record.start + int(wrong[0][0])}"
        raise RoboAlignError(problem, where=str(record.path), fix="drop that episode")
    return values


def stored_images(source: Source, record: Record, key: str, camera: Camera) -> Sequence[bytes]:
    """The frames of one camera, in the data file or in a video, which must exist but is not opened."""
    video = record.videos.get(key)
    if video is None:
        return StoredImages(record.path, key, record.start, record.length)
    fps = float(source.info["fps"])
    if not video.path.is_file():
        raise RoboAlignError(
            "the file does not exist", where=str(video.path), fix="download the data set again"
        )
    # The end is that of the last frame, by some tools its beginning.
    if video.end is not None and (video.end - video.start) * fps < record.length - 1.5:
        problem = f"{record.length} steps at {fps:g} fps, but meta/episodes gives {video.start:g} to {video.end:g} s"
        raise RoboAlignError(problem, where=str(video.path), fix=layout.AGAIN)
    return VideoFrames(
        video.path, video.start, record.length, fps, size=(camera.width, camera.height)
    )


def read_camera(key: str, feature: dict[str, Any], projections: dict[str, Any]) -> Camera:
    """The camera of one image column; without a projection where the data set does not record one."""
    name, shape = key.removeprefix(layout.IMAGE_PREFIX), feature["shape"]
    height, width = shape[1:] if shape[0] in (1, 3) and shape[2] not in (1, 3) else shape[:2]
    if projections.get(name) is None:
        return Camera(name, width, height)
    try:
        return Camera(
            name, width, height, np.array(projections[name], dtype=np.float64).reshape(3, 4)
        )
    except (ValueError, TypeError) as error:
        problem = f"the projection of camera {name} is no 3x4 matrix ({error})"
        raise RoboAlignError(
            problem, where=layout.EXTRAS, fix="finalize the writer again"
        ) from None
