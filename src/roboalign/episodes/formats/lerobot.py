"""Read LeRobot v2.0, v2.1 and v3.0 data sets as `Episode`s; `LeRobotWriter` writes v3.0."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from roboalign.actions.axes import parse_axes
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_readable
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Camera, Episode, content_id, part_id
from roboalign.episodes.formats import lerobot_layout as layout
from roboalign.episodes.formats.lerobot_columns import TASK_INDEX, camera_name, names_of
from roboalign.episodes.formats.lerobot_layout import EpisodeRows
from roboalign.episodes.formats.lerobot_meta import LerobotSource, open_source
from roboalign.episodes.formats.lerobot_rows import (
    Arrays,
    StoredImages,
    read_arrays,
    rows_of,
    times_of,
)
from roboalign.episodes.formats.lerobot_writer import LeRobotWriter
from roboalign.episodes.robot_data import About
from roboalign.episodes.video import VideoFrames

__all__ = ["LeRobotWriter", "about_lerobot", "iterate_lerobot", "read_lerobot"]

SUCCESS = "next.success"


def read_lerobot(folder: str | Path) -> list[Episode]:
    """Return every episode of a LeRobot data set; frames stay on disk until requested.

    Like `iterate_lerobot`, but the first broken episode raises RoboAlignError naming the file and
    column.
    """
    episodes = []
    for item in iterate_lerobot(folder):
        if isinstance(item, Fault):
            raise RoboAlignError(item.problem, where=item.where, fix=item.fix)
        episodes.append(item)
    return episodes


def iterate_lerobot(
    folder: str | Path,
    *,
    action: str | Sequence[str] | None = None,
    state: str | Sequence[str] | None = None,
    instruction: str | None = None,
    links: bool = False,
) -> Iterator[Episode | Fault]:
    """Yield the episodes of a LeRobot data set v2.0, v2.1 or v3.0; one data file is in memory.

    `action` and `state` name the columns to read; several are joined. The defaults are those that
    meta/modality.json names, else `action` and `observation.state`. `state=[]` reads none: it is
    [T, 0]. `instruction` names a column of text or of indices into the tasks; the default is the
    annotation of meta/modality.json, else `task_index`. `links` allows files outside of the folder.

    Rows are in the order of `frame_index`. The picture of a step is the one at its `timestamp` in
    the video (counted from `from_timestamp` in v3.0), as LeRobot defines it. If the video's times
    start elsewhere and it has as many frames as there are steps, they are paired in order. No video
    is opened before a frame is requested. An episode is split at each change of its instruction;
    the parts are named `<id>/steps-<first>-<last>`. Depth cameras are left out. A data set written
    by other tools has no meta/roboalign.json: its episodes are named `<folder>/episode-<n>-<digest
    of the actions>`, use the instruction as their task, and have no nouns and no camera projection.

    An episode is a Fault if its data or video file is missing, if its data are truncated, not
    finite, or of another width or length than the meta files say, or if rows are missing or
    duplicated. Raises RoboAlignError if the meta files themselves have such errors, and if a column
    that nobody named may be meant.
    """
    return read_source(
        open_source(Path(folder), action=action, state=state, instruction=instruction, links=links)
    )


def about_lerobot(folder: str | Path, **options: Any) -> About:
    """Return what a LeRobot data set says about itself. Raises RoboAlignError if its meta files are
    broken."""
    source = open_source(Path(folder), **options)
    names = [
        names_of(
            source.folder,
            source.info["features"],
            source.columns,
            kind,
            links=bool(options.get("links")),
        )
        for kind in ("action", "state")
    ]
    return About(names[0], names[1], notes=source.columns.notes, episodes=len(source.records))


def read_source(source: LerobotSource) -> Iterator[Episode | Fault]:
    """Yield the episodes that the meta files name, in order."""
    path: Path | None = None
    arrays: Arrays | RoboAlignError = {}
    for record, extra in zip(source.records, source.extras):
        if record.path != path:
            path, arrays = record.path, {}  # free the last file before reading the next
            try:
                arrays = read_file(path, source)
            except RoboAlignError as error:
                arrays = error
        yield from read_items(source, record, arrays, extra)


def read_file(path: Path, source: LerobotSource) -> Arrays:
    """Read the columns of one data file that are not images."""
    features, columns = source.info["features"], source.columns
    extra = [key for key in (layout.PRIVILEGED, SUCCESS) if key in features]
    for key in extra:
        layout.check_feature(features, key, str(source.folder / layout.INFO))
    needed = [*columns.action, *columns.state, columns.instruction, *extra]
    images = [key for key in columns.cameras if features[key]["dtype"] == "image"]
    return read_arrays(path, features, list(dict.fromkeys(needed)), images)


def read_items(
    source: LerobotSource,
    record: EpisodeRows,
    arrays: Arrays | RoboAlignError,
    extra: dict[str, Any] | None,
) -> list[Episode] | list[Fault]:
    """Return one episode, split at changes of its instruction, or a Fault if it is broken."""
    try:
        if isinstance(arrays, RoboAlignError):
            raise arrays
        return _read_episode(source, record, arrays, extra)
    except RoboAlignError as error:
        return [Fault(error.where, f"{error.problem} (episode {record.index})", error.fix)]


def _read_episode(
    source: LerobotSource, record: EpisodeRows, arrays: Arrays, extra: dict[str, Any] | None
) -> list[Episode]:
    """Return one episode, split at changes of its instruction. Raises RoboAlignError naming the
    file and column."""
    rows = rows_of(record, arrays)
    fps = float(source.info["fps"])
    times = times_of(rows, arrays, fps, record.path)
    actions = joined(source.columns.action, arrays, rows, record.path)
    instructions = instructions_of(source, record, arrays, rows)
    names = privileged_names(source.info["features"])
    extra = extra or {
        "episode_id": content_id(
            f"{source.folder.absolute().name}/episode-{record.index:06d}", actions
        ),
        "task": instructions[0],
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
    cameras = {
        key: read_camera(key, source.info["features"][key], extra["cameras"])
        for key in source.columns.cameras
    }
    solved = np.flatnonzero(arrays[SUCCESS][rows]) if SUCCESS in arrays else np.zeros(0, int)
    episode = Episode(
        episode_id=extra["episode_id"],
        task=extra["task"],
        instruction=instructions[0],
        fps=fps,
        actions=actions,
        state=joined(source.columns.state, arrays, rows, record.path),
        images={
            camera.name: stored_images(source, record, key, camera, rows, times)
            for key, camera in cameras.items()
        },
        cameras={camera.name: camera for camera in cameras.values()},
        privileged=joined((layout.PRIVILEGED,), arrays, rows, record.path)[:, kept]
        if kept
        else None,
        privileged_names=tuple(extra["privileged_names"]),
        nouns=dict(extra["nouns"]),
        success_step=int(solved[0]) if len(solved) else None,
        action_space=stored_space(extra, str(source.folder / layout.EXTRAS)),
        axes=parse_axes(str(extra["axes"])) if "axes" in extra else Episode.axes,
    )
    starts = [t for t, text in enumerate(instructions) if t == 0 or text != instructions[t - 1]]
    if len(starts) == 1:
        return [episode]
    ends = [*starts[1:], len(episode)]
    return [
        part_of(episode, first, end, instructions[first], solved)
        for first, end in zip(starts, ends)
    ]


def part_of(
    episode: Episode, first: int, end: int, instruction: str, solved: np.ndarray
) -> Episode:
    """Return steps `first` to `end` - 1 as an episode with its own instruction. `solved` contains
    the steps that count as success."""
    own = solved[(solved >= first) & (solved < end)]
    return replace(
        episode,
        episode_id=part_id(episode.episode_id, first, end),
        task=instruction,
        instruction=instruction,
        actions=episode.actions[first:end].copy(),
        state=episode.state[first:end].copy(),
        images={
            name: frames.part(first, end)
            for name, frames in episode.images.items()
            if isinstance(frames, StoredImages | VideoFrames)
        },
        privileged=None if episode.privileged is None else episode.privileged[first:end].copy(),
        success_step=int(own[0]) - first if len(own) else None,
    )


def instructions_of(
    source: LerobotSource, record: EpisodeRows, arrays: Arrays, rows: np.ndarray
) -> list[str]:
    """Return the instruction of each step; RoboAlignError if one is neither text nor a task."""
    key = source.columns.instruction
    values = arrays[key][rows, 0]
    if arrays[key].dtype == object:
        wrong = [t for t, value in enumerate(values) if not isinstance(value, str)]
        if wrong:
            raise RoboAlignError(
                f"column {key} holds no text at step {wrong[0]}",
                where=str(record.path),
                fix="drop that episode",
            )
        return list(values)
    for value in np.unique(values):
        if not isinstance(source.tasks.get(value), str):
            tasks = "meta/tasks.jsonl" if record.alone else layout.TASK_TABLE
            raise RoboAlignError(
                f"no task with {TASK_INDEX} {value}, which column {key} of {record.path} holds",
                where=str(source.folder / tasks),
                fix=layout.FETCH_DATA_SET_AGAIN,
            )
    return [source.tasks[value] for value in values]


def privileged_names(features: layout.Features) -> tuple[str, ...]:
    """Return the names of the dimensions of the simulator's state, if info.json has them all."""
    feature = features.get(layout.PRIVILEGED)
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, list) and feature and feature.get("shape") == [len(names)]:
        return tuple(names)
    return ()


def joined(keys: tuple[str, ...], arrays: Arrays, rows: np.ndarray, path: Path) -> np.ndarray:
    """Return a float32 [T, D] copy, so the file's columns can be freed; refuse NaN and infinity."""
    parts = [np.zeros((len(rows), 0), np.float32)]
    for key in keys:
        with np.errstate(over="ignore", invalid="ignore"):
            values = arrays[key][rows].astype(np.float32)
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            problem = f"column {key} is not finite at row {int(rows[wrong[0][0]])}"
            raise RoboAlignError(problem, where=str(path), fix="drop that episode")
        parts.append(values)
    return parts[1] if len(parts) == 2 else np.concatenate(parts, axis=1)


def stored_images(
    source: LerobotSource,
    record: EpisodeRows,
    key: str,
    camera: Camera,
    rows: np.ndarray,
    times: np.ndarray,
) -> Sequence[bytes]:
    """Return one camera's frames, from the data file or a video that must exist, unopened."""
    video = record.videos.get(key)
    size = (camera.width, camera.height)
    if video is None:
        return StoredImages(record.path, key, rows, size)
    fps = float(source.info["fps"])
    check_readable(video.path, fix="download the data set again")
    # The end is that of the last frame; some tools record the beginning of that frame instead.
    if video.end is not None and video.end < video.start + times[-1] - times[0] - 0.5 / fps:
        problem = f"{record.length} steps at {fps:g} fps, but meta/episodes gives {video.start:g} to {video.end:g} s"
        raise RoboAlignError(problem, where=str(video.path), fix=layout.FETCH_DATA_SET_AGAIN)
    return VideoFrames(
        video.path,
        video.start,
        record.length,
        fps,
        size=size,
        times=video.start + times,
        span=(video.start, video.end),
    )


def stored_space(extra: dict[str, Any], where: str) -> ActionSpace | None:
    """Return the action space that the writer recorded. Raises RoboAlignError if it is not an
    action space."""
    stored = extra.get("action_space")
    try:
        return None if stored is None else ActionSpace.model_validate(stored)
    except ValidationError as error:
        problem = f"action_space: {error.errors()[0]['msg']}"
        raise RoboAlignError(problem, where=where, fix="finalize the writer again") from None


def read_camera(key: str, feature: dict[str, Any], projections: dict[str, Any]) -> Camera:
    """Return the camera of one image column; the projection is None if not recorded."""
    name, shape = camera_name(key), feature["shape"]
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
