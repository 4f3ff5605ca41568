"""Small sound LeRobot v2 data sets: write them, and change one thing in them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made_videos import number_in, write_video

from roboalign.episodes.episode import Episode, encode_png

LENGTHS = (7, 12, 5)
DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
FRONT, WRIST = "observation.images.front", "observation.images.wrist"


def camera(dtype: str) -> dict:
    return {"dtype": dtype, "shape": [48, 48, 3], "names": ["height", "width", "channel"]}


def vector(width: int) -> dict:
    return {"dtype": "float32", "shape": [width], "names": None}


FEATURES = {
    FRONT: camera("video"),
    WRIST: camera("image"),
    "observation.state": vector(3),
    "action": vector(2),
    "action.base": vector(4),
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}


def actions_of(index: int, length: int) -> np.ndarray:
    return np.arange(length * 2).reshape(length, 2) + 100.0 * index


def columns_of(index: int, length: int, features: dict) -> dict:
    rows = {
        "observation.state": np.full((length, 3), index),
        "action": actions_of(index, length),
        "action.base": np.zeros((length, 4)),
    }
    numbers = {
        "task_index": np.full(length, index % 2),
        "timestamp": np.arange(length) / 20 + 0.05,
        "episode_index": np.full(length, index),
    }
    columns = {
        key: pa.array(value.tolist(), pa.list_(pa.float64()))
        for key, value in rows.items()
        if key in features
    }
    columns |= {key: pa.array(value) for key, value in numbers.items()}
    if WRIST in features:
        image = encode_png(np.full((48, 48, 3), index, np.uint8))
        columns[WRIST] = pa.array([{"bytes": image, "path": None}] * length)
    return columns


def write_json_lines(path: Path, rows: list[dict], end: str = "") -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows) + end)


def write_set(
    folder: Path, lengths=LENGTHS, *, features=FEATURES, version="v2.1", per_chunk=2, video=True
) -> Path:
    (folder / "meta").mkdir(parents=True)
    info = {
        "codebase_version": version,
        "fps": 20,
        "chunks_size": per_chunk,
        "total_episodes": len(lengths),
        "data_path": DATA,
        "video_path": VIDEO,
        "features": features,
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    write_json_lines(
        folder / "meta/tasks.jsonl",
        [{"task_index": 0, "task": "open it"}, {"task_index": 1, "task": ""}],
    )
    write_json_lines(
        folder / "meta/episodes.jsonl",
        [{"episode_index": i, "length": n} for i, n in enumerate(lengths)],
    )
    for index, length in enumerate(lengths):
        place = {"episode_chunk": index // per_chunk, "episode_index": index}
        path = folder / DATA.format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns_of(index, length, features)), path)
        if video and FRONT in features:
            write_video(
                folder / VIDEO.format(video_key=FRONT, **place),
                range(10 * index, 10 * index + length),
            )
    return folder


def edit_info(folder: Path, **changes) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_data(folder: Path, key: str, column, episode: int = 1) -> None:
    path = folder / DATA.format(episode_chunk=episode // 2, episode_index=episode)
    table = pq.read_table(path)
    if column is None:
        table = table.drop_columns([key])
    else:
        table = table.set_column(table.column_names.index(key), key, pa.array(column))
    pq.write_table(table, path)


def data_of(folder: Path, episode: int) -> Path:
    return folder / DATA.format(episode_chunk=episode // 2, episode_index=episode)


def video_of(folder: Path, episode: int) -> Path:
    return folder / VIDEO.format(video_key=FRONT, episode_chunk=episode // 2, episode_index=episode)


def shown(episode: Episode) -> list[int]:
    return [number_in(episode.frame("front", t)) for t in range(len(episode))]
