"""The files, columns and feature descriptions of a LeRobot v3.0 data set with images inside its parquet files.

    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet ..        one row a step, one row group an episode
    meta/roboalign.json                       ours, which LeRobot ignores: id, nouns, cameras of each episode

Facts from the v3.0 reader of lerobot 0.4.4, which opens what we write (tests/data/test_data_lerobot_peer.py).
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

VERSION = "v3.0"
FILES_PER_CHUNK = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
INFO, STATS, TASKS, EXTRAS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/roboalign.json"

IMAGE_PREFIX = "observation.images."
STATE, PRIVILEGED, ACTION = "observation.state", "observation.environment_state", "action"
INDEX_COLUMNS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
                 "task_index": "int64"}
ARROW_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
EXTRAS_KEY = b"roboalign"
"""Key in a data file's schema metadata: the records of the episodes in it, committed by the same rename."""

Features = dict[str, dict[str, Any]]


def data_path(folder: Path, number: int) -> Path:
    """Path of the data file with this running number."""
    return folder / DATA_PATH.format(chunk_index=number // FILES_PER_CHUNK, file_index=number % FILES_PER_CHUNK)


def make_features(cameras: dict[str, tuple[int, int]], vectors: dict[str, tuple[str, ...]]) -> Features:
    """`features` of info.json. `cameras`: name -> (width, height); `vectors`: column -> names of its dimensions."""
    features: Features = {}
    for camera, (width, height) in cameras.items():
        shape, names = [height, width, 3], ["height", "width", "channels"]
        features[IMAGE_PREFIX + camera] = {"dtype": "image", "shape": shape, "names": names}
    for key, dimensions in vectors.items():
        if len(dimensions) > 1:
            features[key] = {"dtype": "float32", "shape": [len(dimensions)], "names": list(dimensions)}
    for key in ("next.success", "next.done"):
        features[key] = {"dtype": "bool", "shape": [1], "names": None}
    for key, dtype in INDEX_COLUMNS.items():
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def arrow_schema(features: Features) -> pa.Schema:
    """The schema of a data file, with the metadata by which `datasets` knows the image columns."""
    fields: list[pa.Field] = []
    described: dict[str, Any] = {}
    for key, feature in features.items():
        dtype, shape = feature["dtype"], feature["shape"]
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
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})
