"""Define the LeRobot v3.0 layout that we write: files, columns and features, images in parquet.

    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet ..        one row a step, one row group an episode
    meta/roboalign.json                       ours, which LeRobot ignores: id, nouns, cameras of each episode

Facts from the v3.0 reader of lerobot 0.4.4, which opens what we write
(tests/episodes/test_lerobot_peer.py).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.pictures import MAX_PIXELS

VERSION = "v3.0"
FILES_PER_CHUNK = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
INFO, STATS, TASK_TABLE, EXTRAS = (
    "meta/info.json",
    "meta/stats.json",
    "meta/tasks.parquet",
    "meta/roboalign.json",
)

IMAGE_PREFIX = "observation.images."
STATE_FEATURE, PRIVILEGED, ACTION = "observation.state", "observation.environment_state", "action"
INDEX_COLUMNS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
ARROW_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
EXTRAS_KEY = b"roboalign"
"""Metadata key of a data file's schema for its episodes' records, committed by the same rename."""

Features = dict[str, dict[str, Any]]
FETCH_DATA_SET_AGAIN = "download the data set again"


@dataclass(frozen=True)
class StoredVideo:
    """Location of one camera's frames of one episode, in seconds; `end` is None if not recorded."""

    path: Path
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class EpisodeRows:
    """Location of an episode in any version: rows `start` .. `start + length` of a parquet file."""

    index: int
    length: int
    path: Path
    start: int
    videos: dict[str, StoredVideo]
    alone: bool
    """Whether the file contains only this episode."""

    def paths(self) -> list[Path]:
        """Return every file that contains a part of the episode."""
        return [self.path, *(video.path for video in self.videos.values())]


def data_path(folder: Path, number: int) -> Path:
    """Return the path of the data file with this running number."""
    return folder / DATA_PATH.format(
        chunk_index=number // FILES_PER_CHUNK, file_index=number % FILES_PER_CHUNK
    )


def make_features(
    cameras: dict[str, tuple[int, int]],
    vectors: dict[str, tuple[str, ...]],
    videos: Mapping[str, dict[str, Any]],
) -> Features:
    """Return `features` of info.json. `cameras`: name -> (width, height); `vectors`: column ->
    names of its dimensions; `videos`: camera that is stored as video -> LeRobot's facts of it."""
    features: Features = {}
    for camera, (width, height) in cameras.items():
        shape, names = [height, width, 3], ["height", "width", "channels"]
        feature: dict[str, Any] = {"dtype": "image", "shape": shape, "names": names}
        if camera in videos:
            feature |= {"dtype": "video", "info": dict(videos[camera])}
        features[IMAGE_PREFIX + camera] = feature
    for key, dimensions in vectors.items():
        if len(dimensions) > 1:
            features[key] = {
                "dtype": "float32",
                "shape": [len(dimensions)],
                "names": list(dimensions),
            }
    for key in ("next.success", "next.done"):
        features[key] = {"dtype": "bool", "shape": [1], "names": None}
    for key, dtype in INDEX_COLUMNS.items():
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def arrow_schema(features: Features) -> pa.Schema:
    """Return the schema of a data file; its metadata marks image columns for `datasets`."""
    fields: list[pa.Field] = []
    described: dict[str, Any] = {}
    for key, feature in features.items():
        dtype, shape = feature["dtype"], feature["shape"]
        if dtype == "video":
            continue
        if dtype == "image":
            fields.append(pa.field(key, ARROW_IMAGE))
            described[key] = {"_type": "Image"}
        elif shape == [1]:
            fields.append(pa.field(key, pa.type_for_alias(dtype)))
            described[key] = {"dtype": dtype, "_type": "Value"}
        else:
            fields.append(pa.field(key, pa.list_(pa.type_for_alias(dtype), shape[0])))
            value = {"dtype": dtype, "_type": "Value"}
            described[key] = {"feature": value, "length": shape[0], "_type": "Sequence"}
    return pa.schema(
        fields, metadata={"huggingface": json.dumps({"info": {"features": described}})}
    )


def check_info(info: Any, folder: Path) -> None:
    """Raise RoboAlignError if info.json is not one that this reader understands."""
    where = str(folder / INFO)
    for key in ("codebase_version", "fps", "features", "data_path", "total_episodes"):
        if not isinstance(info, dict) or key not in info:
            raise RoboAlignError(
                f"the field {key} is missing", where=where, fix=FETCH_DATA_SET_AGAIN
            )
    version, fps, features = str(info["codebase_version"]), info["fps"], info["features"]
    if not version.startswith(("v2.", "v3.")):
        raise RoboAlignError(
            f"LeRobot format {version}, this reads v2.0, v2.1 and v3.0",
            where=where,
            fix="convert it to v3.0 with LeRobot's own conversion script",
        )
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise RoboAlignError(
            f"fps is {fps!r}, expected frames a second", where=where, fix=FETCH_DATA_SET_AGAIN
        )
    if not isinstance(features, dict) or not features:
        raise RoboAlignError("features describes nothing", where=where, fix=FETCH_DATA_SET_AGAIN)


def check_feature(features: Features, key: str, where: str) -> None:
    """Raise RoboAlignError if a feature to read has no type, or an impossible shape."""
    feature = features[key]
    shape, dtype = (
        (feature.get("shape"), feature.get("dtype")) if isinstance(feature, dict) else (None, None)
    )
    if (
        not isinstance(dtype, str)
        or not isinstance(shape, list)
        or not all(type(size) is int and 0 < size <= MAX_PIXELS for size in shape)
    ):
        raise RoboAlignError(
            f"the feature {key} has no dtype and shape", where=where, fix=FETCH_DATA_SET_AGAIN
        )
    if dtype in ("image", "video"):
        if len(shape) != 3:
            raise RoboAlignError(
                f"the camera {key} has shape {shape}, expected [H, W, 3]", where=where
            )
        if math.prod(shape) > 4 * MAX_PIXELS:
            raise RoboAlignError(
                f"the camera {key} has shape {shape}, more than {MAX_PIXELS:,} pixels",
                where=where,
                fix="correct the shape",
            )


def dimension_names(feature: dict[str, Any]) -> tuple[str, ...]:
    """Return info.json's names of the dimensions of a vector; () if it does not name each.

    Names are a list or, in older data sets, lists by kind: {"motors": ["shoulder", ...]}.
    Teleoperation writes them with their places: {"delta_x": 0, ...}.
    """
    stated = feature.get("names")
    names: list[Any] = stated if isinstance(stated, list) else []
    if isinstance(stated, dict) and sorted(map(str, stated.values())) == sorted(
        map(str, range(len(stated)))
    ):
        names = sorted(stated, key=lambda name: int(stated[name]))
    elif isinstance(stated, dict):
        names = [name for part in stated.values() if isinstance(part, list) for name in part]
    named = all(isinstance(name, str) and name for name in names)
    return tuple(names) if named and feature.get("shape") == [len(names)] else ()


def fill(info: dict[str, Any], key: str, folder: Path, **values: int | str) -> Path:
    """Return the path from a template of info.json. Raises RoboAlignError if the template is
    missing or wrong."""
    template = info.get(key)
    try:
        return folder / template.format(**values)  # type: ignore[union-attr]
    except (AttributeError, LookupError, ValueError) as error:
        problem = f"{key} is {template!r}, which does not name a file ({error})"
        raise RoboAlignError(problem, where=str(folder / INFO), fix=FETCH_DATA_SET_AGAIN) from None


def number_in(row: dict[str, Any], key: str, where: str) -> float:
    """Return a number of a record of the meta files. Raises RoboAlignError if it is missing, not a
    number, or negative."""
    value = row.get(key)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value < 0
    ):
        problem = (
            f"{key} of episode {row.get('episode_index')} is {value!r}, expected a number from 0 on"
        )
        raise RoboAlignError(problem, where=where, fix=FETCH_DATA_SET_AGAIN)
    return value


def whole(row: dict[str, Any], key: str, where: str) -> int:
    """Return a whole number of a record of the meta files. Raises RoboAlignError if it is anything
    else, such as 6.5."""
    value = number_in(row, key, where)
    if value != int(value):
        problem = (
            f"{key} of episode {row.get('episode_index')} is {value!r}, expected a whole number"
        )
        raise RoboAlignError(problem, where=where, fix=FETCH_DATA_SET_AGAIN)
    return int(value)
