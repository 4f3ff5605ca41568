"""Write demonstrations one by one as a LeRobot v3.0 data set, resumably, in bounded memory."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.actions.axes import Axes
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, write_json
from roboalign.episodes.episode import Camera, encode_png
from roboalign.episodes.formats import lerobot_layout as layout
from roboalign.episodes.formats.feature_stats import image_stats, looked_at, pool, vector_stats
from roboalign.episodes.formats.lerobot_videos import CopiedVideos, video_columns
from roboalign.episodes.formats.lerobot_written import read_written
from roboalign.episodes.video import VideoFrames


class LeRobotWriter:
    """Append episodes; an episode is completely in the data set or not at all.

    A group of `episodes_per_file` episodes becomes one parquet file, written to a temporary path
    and renamed. It holds its episodes' records, so a killed writer continues after the last
    complete file: `episode_ids` lists what exists. Only `finalize`, which writes the meta files,
    completes the data set so that it opens in LeRobot.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        fps: float,
        cameras: dict[str, tuple[int, int]],
        action_names: Sequence[str],
        state_names: Sequence[str],
        privileged_names: Sequence[str] = (),
        robot_type: str | None = None,
        action_space: ActionSpace | None = None,
        axes: Axes = ("right", "forward", "up"),
        episodes_per_file: int = 20,
        bytes_per_file: int | None = None,
        source: Mapping[str, Any] | None = None,
        videos: Mapping[str, dict[str, Any]] | None = None,
        video_root: Path | None = None,
    ) -> None:
        """Open or continue a data set.

        `cameras`: name -> (width, height) in pixels. `videos`: those of them whose frames are
        `VideoFrames`, copied as they are -> `video_facts`; `video_root` is the folder that these
        files are in. `privileged_names`: all that any episode has;
        an episode may have some of them. `action_space` and `axes` are stored and read back with
        every episode. A file is closed after `episodes_per_file` episodes, or once its pictures
        exceed `bytes_per_file`. `source` is the origin of the episodes. One-dimensional actions or
        states are refused: LeRobot stores those as scalars. Raises RoboAlignError if the folder's
        data have another source or shape.
        """
        self.folder, self.fps, self.robot_type = Path(folder), fps, robot_type
        self.cameras, self.episodes_per_file = dict(cameras), episodes_per_file
        self.bytes_per_file, self.source = bytes_per_file, source
        self.vectors = {
            layout.STATE_FEATURE: tuple(state_names),
            layout.ACTION: tuple(action_names),
        }
        if privileged_names:
            self.vectors[layout.PRIVILEGED] = tuple(privileged_names)
        for key, names in self.vectors.items():
            if len(names) < 2:
                raise RoboAlignError(
                    f"{key} needs at least 2 dimensions, not {len(names)}", where=str(folder)
                )
        self.features = layout.make_features(self.cameras, self.vectors, videos or {})
        self.videos, self.video_root = frozenset(videos or ()), video_root
        self.copied = CopiedVideos(self.folder)
        self.schema = layout.arrow_schema(self.features)
        self.action_space = None if action_space is None else action_space.model_dump(mode="json")
        self.axes = ",".join(axes)
        self.records: list[dict[str, Any]] = []
        self.pending: list[pa.Table] = []
        self.pending_bytes = self.picture_bytes = 0
        """Bytes of the pictures waiting for their file, and of all those added here."""
        self.episode_ids: set[str] = set()
        """Ids of the episodes already in the data set."""
        self.tasks: dict[str, int] = {}
        self.n_frames = self.n_files = 0
        while (path := layout.data_path(self.folder, self.n_files)).exists():
            for record in read_written(path, self._settings()):
                self._count(record)
            self.n_files += 1

    def add(
        self,
        *,
        episode_id: str,
        task: str,
        instruction: str,
        actions: np.ndarray,
        state: np.ndarray,
        frames: Mapping[str, Any],
        cameras: dict[str, Camera],
        privileged: np.ndarray | None = None,
        privileged_names: Sequence[str] = (),
        nouns: dict[str, str] | None = None,
        success_step: int | None = None,
    ) -> None:
        """Append one episode of T steps: actions [T, A], state [T, S], privileged [T, P].

        `frames` has T frames uint8 [H, W, 3] per camera, encoded one at a time: an iterator saves
        memory. A video camera has `VideoFrames`. Raises RoboAlignError naming the episode and field
        on a wrong shape or non-finite value.
        """
        where = f"episode {episode_id}"
        if episode_id in self.episode_ids:
            raise RoboAlignError(
                "this episode is already in the data set",
                where=where,
                fix="skip writer.episode_ids",
            )
        vectors = {layout.ACTION: actions, layout.STATE_FEATURE: state}
        if layout.PRIVILEGED in self.vectors:
            vectors[layout.PRIVILEGED] = self._spread(
                privileged, privileged_names, len(actions), where
            )
        vectors = {
            key: self._checked(values, key, len(actions), where) for key, values in vectors.items()
        }
        pictures: dict[str, pa.Array] = {}
        chosen, placed = {}, {}
        for name in self.cameras:
            if name not in frames or name not in cameras:
                raise RoboAlignError(f"camera {name} is missing", where=where)
            given = frames[name]
            if name in self.videos:
                placed[name], chosen[name] = self._copied(given, name, len(actions), where)
            else:
                pictures[name], chosen[name] = self._encoded(given, name, len(actions), where)
        record = {
            "episode_id": episode_id,
            "task": task,
            "instruction": instruction,
            "length": len(actions),
            "file": self.n_files,
            "nouns": dict(nouns or {}),
            "success_step": success_step,
            "privileged_names": list(privileged_names),
            **({"videos": placed} if placed else {}),
            "cameras": {name: as_list(cameras[name].projection) for name in self.cameras},
            "stats": {key: vector_stats(values) for key, values in vectors.items()}
            | {layout.IMAGE_PREFIX + name: image_stats(chosen[name]) for name in self.cameras},
        }
        self.pending.append(self._table(record, vectors, pictures))
        self._count(record)
        added = sum(array.nbytes for array in pictures.values())
        self.pending_bytes += added
        self.picture_bytes += added
        full = self.bytes_per_file is not None and self.pending_bytes >= self.bytes_per_file
        if full or len(self.pending) >= self.episodes_per_file:
            self.flush()

    def flush(self) -> None:
        """Commit the pending episodes as one data file."""
        if not self.pending:
            return
        extras = {**self._settings(), "episodes": self.records[-len(self.pending) :]}
        metadata = {**self.schema.metadata, layout.EXTRAS_KEY: json.dumps(extras).encode()}
        schema = self.schema.with_metadata(metadata)
        # PNG bytes do not compress further; dictionaries would only cost time on them.
        with (
            atomic_path(layout.data_path(self.folder, self.n_files)) as path,
            pq.ParquetWriter(path, schema, use_dictionary=False) as writer,
        ):
            for table in self.pending:
                writer.write_table(
                    table.replace_schema_metadata(metadata), row_group_size=len(table)
                )
        self.pending, self.pending_bytes = [], 0
        self.n_files += 1

    def finalize(self) -> None:
        """Commit pending episodes and write the meta files, info.json last; adding may continue."""
        self.flush()
        if not self.records:
            raise RoboAlignError(
                "no episode was added, so there is no data set to finish", where=str(self.folder)
            )
        index = pd.Index(list(self.tasks), name="task")
        tasks = pd.DataFrame({"task_index": list(self.tasks.values())}, index=index)
        self._write_table(layout.TASK_TABLE, pa.Table.from_pandas(tasks))
        self._write_table(layout.EPISODES_PATH, pa.Table.from_pylist(self._episode_rows()))
        keys = self.records[0]["stats"]
        write_json(
            self.folder / layout.STATS,
            {key: pool([r["stats"][key] for r in self.records]) for key in keys},
        )
        extras = [
            {key: value for key, value in record.items() if key != "stats"}
            for record in self.records
        ]
        write_json(
            self.folder / layout.EXTRAS,
            {
                "version": 1,
                "action_space": self.action_space,
                "axes": self.axes,
                **({} if self.source is None else {"source": dict(self.source)}),
                "episodes": extras,
            },
        )
        write_json(
            self.folder / layout.INFO,
            {
                "codebase_version": layout.VERSION,
                "robot_type": self.robot_type,
                "total_episodes": len(self.records),
                "total_frames": self.n_frames,
                "total_tasks": len(self.tasks),
                "chunks_size": layout.FILES_PER_CHUNK,
                "data_files_size_in_mb": 100,
                "video_files_size_in_mb": 200,
                "fps": self.fps,
                "splits": {"train": f"0:{len(self.records)}"},
                "data_path": layout.DATA_PATH,
                "video_path": layout.VIDEO_PATH if self.videos else None,
                "features": self.features,
            },
        )

    def _settings(self) -> dict[str, Any]:
        """Return the settings shared by all data files of one data set."""
        return {
            "fps": self.fps,
            "features": self.features,
            "action_space": self.action_space,
            "axes": self.axes,
            **({} if self.source is None else {"source": dict(self.source)}),
        }

    def _count(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.episode_ids.add(record["episode_id"])
        self.copied.remember(record.get("videos", {}))
        self.tasks.setdefault(record["instruction"], len(self.tasks))
        self.n_frames += record["length"]

    def _episode_rows(self) -> list[dict[str, Any]]:
        rows, start = [], 0
        for number, record in enumerate(self.records):
            flat = {
                f"stats/{key}/{name}": value
                for key, stats in record["stats"].items()
                for name, value in stats.items()
            }
            rows.append(
                {
                    "episode_index": number,
                    "tasks": [record["instruction"]],
                    "length": record["length"],
                    "data/chunk_index": record["file"] // layout.FILES_PER_CHUNK,
                    "data/file_index": record["file"] % layout.FILES_PER_CHUNK,
                    "dataset_from_index": start,
                    "dataset_to_index": start + record["length"],
                    "meta/episodes/chunk_index": 0,
                    "meta/episodes/file_index": 0,
                    **video_columns(record.get("videos", {})),
                    **flat,
                }
            )
            start += record["length"]
        return rows

    def _table(
        self, record: dict[str, Any], vectors: dict[str, np.ndarray], pictures: dict[str, pa.Array]
    ) -> pa.Table:
        """Return the rows of one episode, in the order of the schema."""
        steps = np.arange(record["length"])
        solved = record["success_step"] is not None
        columns: dict[str, Any] = {
            "timestamp": steps / self.fps,
            "frame_index": steps,
            "episode_index": np.full(len(steps), len(self.records)),
            "index": steps + self.n_frames,
            "task_index": np.full(
                len(steps), self.tasks.get(record["instruction"], len(self.tasks))
            ),
            "next.success": steps >= record["success_step"]
            if solved
            else np.zeros(len(steps), bool),
            "next.done": steps == len(steps) - 1,
        }
        for name in pictures:
            columns[layout.IMAGE_PREFIX + name] = pictures[name]
        for key, values in vectors.items():
            columns[key] = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
        arrays = [
            pa.array(columns[field.name], type=field.type)
            if not isinstance(columns[field.name], pa.Array)
            else columns[field.name]
            for field in self.schema
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _spread(
        self, values: np.ndarray | None, names: Sequence[str], length: int, where: str
    ) -> np.ndarray:
        """Copy the episode's privileged columns into those of the data set; missing ones are 0."""
        known = self.vectors[layout.PRIVILEGED]
        width = 0 if values is None else values.shape[-1]
        if width != len(names) or not set(names) <= set(known):
            raise RoboAlignError(
                f"privileged state has {width} columns named {list(names)}; the data set knows {list(known)}",
                where=where,
                fix="pass every name as privileged_names to LeRobotWriter",
            )
        spread = np.zeros((length, len(known)), np.float32)
        if values is not None:
            if len(values) != length:
                raise RoboAlignError(
                    f"privileged has {len(values)} steps, actions have {length}", where=where
                )
            spread[:, [known.index(name) for name in names]] = values
        return spread

    def _checked(self, values: np.ndarray, key: str, length: int, where: str) -> np.ndarray:
        values = np.asarray(values, np.float32)
        expected = (length, len(self.vectors[key]))
        if values.shape != expected or not length:
            raise RoboAlignError(
                f"{key} has shape {values.shape}, expected {expected}", where=where
            )
        if not np.isfinite(values).all():
            step, dimension = np.argwhere(~np.isfinite(values))[0]
            raise RoboAlignError(
                f"{key} is not finite at step {step}, dimension {self.vectors[key][dimension]}",
                where=where,
                fix="drop this episode or repair its source",
            )
        return values

    def _copied(
        self, frames: Any, name: str, length: int, where: str
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Return where the video of one camera is, and the frames used for its statistics."""
        if not isinstance(frames, VideoFrames) or len(frames) != length:
            raise RoboAlignError(
                f"camera {name} is no video of {length} frames, as the data set's are",
                where=where,
                fix="store all frames as pictures (--pictures)",
            )
        start = frames.even_start()
        chosen = np.stack([frames.frame(t) for t in looked_at(length)])
        return self.copied.place(name, frames, start, self.video_root), chosen

    def _encoded(
        self, frames: Iterable[np.ndarray], name: str, length: int, where: str
    ) -> tuple[pa.Array, np.ndarray]:
        """Return the frames of one camera as a column, and those used for its statistics."""
        width, height = self.cameras[name]
        given = len(frames) if isinstance(frames, Sized) else length
        if given != length:
            raise RoboAlignError(f"frames of {name} are {given}, expected {length}", where=where)
        steps, chosen = set(looked_at(length)), []

        def rows() -> Iterator[dict[str, Any]]:
            t = -1
            for t, frame in enumerate(frames):
                if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
                    raise RoboAlignError(
                        f"frames of {name} are {frame.dtype} {frame.shape} at step {t}, expected "
                        f"{length} times uint8 {(height, width, 3)}",
                        where=where,
                    )
                if t in steps:
                    chosen.append(frame)
                yield {"bytes": encode_png(frame), "path": f"frame-{t:06d}.png"}
            if t + 1 != length:
                raise RoboAlignError(
                    f"frames of {name} are {t + 1}, expected {length}", where=where
                )

        # With a size, pyarrow takes one row after another, without a list of all files in addition.
        column = pa.array(rows(), type=layout.ARROW_IMAGE, size=length)
        return column, np.stack(chosen)

    def _write_table(self, name: str, table: pa.Table) -> None:
        with atomic_path(self.folder / name) as path:
            pq.write_table(table, path)


def as_list(matrix: np.ndarray | None) -> list[list[float]] | None:
    """Return a matrix in JSON form."""
    return None if matrix is None else np.asarray(matrix, np.float64).tolist()
