"""Write episodes as somebody else's LeRobot v3.0 video data set: the layout and codec of lerobot 0.6.1, no file of this
package, and names of one's own."""

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.episodes.episode import Episode

CODEC, CRF, KEY_FRAMES = "libsvtav1", 30, 2
"""lerobot's defaults."""


def write_plain(
    folder: Path,
    episodes: Sequence[Episode],
    *,
    cameras: Mapping[str, str],
    state_names: Sequence[str],
    state_order: Sequence[int],
    action_names: Sequence[str],
    crf: int = CRF,
) -> None:
    """Write one data file, and one video a camera with all episodes in a row.

    `cameras`: our name -> theirs. State column i of theirs is column `state_order[i]` of ours.
    """
    fps = episodes[0].fps
    sizes = {theirs: episodes[0].frame(ours, 0).shape for ours, theirs in cameras.items()}
    tasks = list(dict.fromkeys(one.instruction for one in episodes))
    videos = {
        theirs: _write_video(folder, theirs, [(one, ours) for one in episodes], fps, crf)
        for ours, theirs in cameras.items()
    }
    rows: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {}
    start = 0
    for number, one in enumerate(episodes):
        steps = np.arange(len(one))
        part = {
            "observation.state": one.state[:, list(state_order)].astype(np.float32).tolist(),
            "action": one.actions.astype(np.float32).tolist(),
            "timestamp": (steps / fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(len(one), number),
            "index": start + steps,
            "task_index": np.full(len(one), tasks.index(one.instruction)),
        }
        for key, values in part.items():
            columns.setdefault(key, []).extend(values)
        places = {}
        for key, starts in videos.items():
            places |= {
                f"videos/observation.images.{key}/chunk_index": 0,
                f"videos/observation.images.{key}/file_index": 0,
                f"videos/observation.images.{key}/from_timestamp": starts[number],
                f"videos/observation.images.{key}/to_timestamp": starts[number] + len(one) / fps,
            }
        rows.append(
            {
                "episode_index": number,
                "tasks": [one.instruction],
                "length": len(one),
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": start,
                "dataset_to_index": start + len(one),
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **places,
            }
        )
        start += len(one)
    _write_parquet(folder / "data/chunk-000/file-000.parquet", pa.table(columns))
    _write_parquet(folder / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    index = pd.Index(tasks, name="task")
    table = pd.DataFrame({"task_index": range(len(tasks))}, index=index)
    _write_parquet(folder / "meta/tasks.parquet", pa.Table.from_pandas(table))
    features: dict[str, Any] = {
        f"observation.images.{name}": {
            "dtype": "video",
            "shape": list(size),
            "names": ["height", "width", "channels"],
            "info": {"video.codec": "av1", "video.pix_fmt": "yuv420p", "video.fps": fps},
        }
        for name, size in sizes.items()
    }
    for key, names in (("observation.state", state_names), ("action", action_names)):
        features[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        dtype = "float32" if key == "timestamp" else "int64"
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    info = {
        "codebase_version": "v3.0",
        "robot_type": "somebody's",
        "total_episodes": len(episodes),
        "total_frames": start,
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }
    (folder / "meta/info.json").write_text(json.dumps(info, indent=2))


def _write_video(
    folder: Path, name: str, parts: Sequence[tuple[Episode, str]], fps: float, crf: int
) -> list[float]:
    """Write the frames of all episodes as one video; return where each begins, in seconds."""
    path = folder / f"videos/observation.images.{name}/chunk-000/file-000.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    starts, count = [], 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODEC, rate=Fraction(fps).limit_denominator(1000))
        stream.options = {"g": str(KEY_FRAMES), "crf": str(crf), "preset": "12"}
        stream.pix_fmt = "yuv420p"
        height, width = parts[0][0].frame(parts[0][1], 0).shape[:2]
        stream.width, stream.height = width, height
        for episode, camera in parts:
            starts.append(count / fps)
            for t in range(len(episode)):
                picture = av.VideoFrame.from_ndarray(episode.frame(camera, t), format="rgb24")
                picture.pts = count
                container.mux(stream.encode(picture))
                count += 1
        container.mux(stream.encode(None))
    return starts


def _write_parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
