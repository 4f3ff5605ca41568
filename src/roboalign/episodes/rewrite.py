"""Write any robot data as a LeRobot v3.0 data set; convert its actions only on request."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.actions.spaces import ActionSpace, convert
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_output, locked
from roboalign.core.outcomes import Fault
from roboalign.core.progress import Progress
from roboalign.episodes.episode import Episode, begins_recording
from roboalign.episodes.formats import lerobot_layout as layout
from roboalign.episodes.formats.lerobot_videos import video_facts
from roboalign.episodes.formats.lerobot_writer import LeRobotWriter
from roboalign.episodes.robot_data import RobotData
from roboalign.episodes.video import VideoFrames

FILE_BYTES = 100_000_000
"""A data file is closed once its pictures exceed this many bytes."""
COMPLETE = "check that it is complete"


@dataclass(frozen=True)
class Rewritten:
    """The result: episodes now in the data set, those among them written before, those left out."""

    episodes: int
    already_there: int
    faults: list[Fault]
    videos: tuple[str, ...]
    """Cameras that are stored as video."""
    video_bytes: int
    """Bytes of the video files copied by this call."""


def rewrite(
    data: RobotData,
    folder: str | Path,
    *,
    target: ActionSpace | None = None,
    pictures: bool = False,
) -> Rewritten:
    """Write the episodes of `data` to `folder`; a killed call continues after the last whole file.

    A camera that is a video stays one: its files are copied, unless `pictures` stores each frame as
    PNG. Other frames are stored as PNG.

    With `target` the actions are first converted to that space (`actions.spaces.convert`, without
    poses: units, gripper code and form of rotation). The first episode determines the cameras and
    dimensions; an episode with others, or with a broken frame, is a fault. Memory holds the
    pictures of one file (`FILE_BYTES`) and one episode.

    Raises RoboAlignError before any work if the folder cannot be written, is the source, or has
    other files. It is also raised if the folder has another source's episodes, if no episode can be
    read or written, if `data.strict` and there is a fault, or if `target` is given and the data's
    own space is unknown or cannot be converted.
    """
    folder = Path(folder)
    check_output(
        folder, sources=[data.path] if data.path else [], marks=[str(layout.data_path(Path(), 0))]
    )
    with locked(folder):
        for part in ("data", "videos"):
            for left in (folder / part).rglob(".*.partial"):
                left.unlink()
        return _write_all(data, folder, target, pictures)


def _write_all(
    data: RobotData, folder: Path, target: ActionSpace | None, pictures: bool
) -> Rewritten:
    """Do the work of `rewrite`, in a folder locked for this call."""
    writer: LeRobotWriter | None = None
    earlier, there, faults = 0, 0, []
    with Progress(f"rewrite {data.name}", total=data.expected) as progress:
        for episode in data:
            actions = in_space(episode, target)
            if writer is None:
                writer = start_writer(folder, data, episode, actions, target, pictures)
                earlier = len(writer.records)
            there += episode.episode_id in writer.episode_ids
            if episode.episode_id not in writer.episode_ids:
                try:
                    write_episode(writer, episode, actions)
                except RoboAlignError as error:
                    if data.strict:
                        raise
                    faults.append(Fault(error.where, error.problem, error.fix))
            progress.advance(
                begins_recording(episode.episode_id), note=size_of(writer, earlier, data.expected)
            )
    faults = [*data.faults, *faults]
    if writer is None or not writer.records:
        if not faults:
            raise RoboAlignError("it holds no episode", where=data.name, fix=COMPLETE)
        raise RoboAlignError(
            f"no episode could be {'read' if writer is None else 'written'}, {len(faults)} were left out; "
            f"the first: {faults[0].where}: {faults[0].problem}",
            where=data.name,
            fix=faults[0].fix or COMPLETE,
        )
    writer.finalize()
    return Rewritten(
        len(writer.episode_ids), there, faults, tuple(sorted(writer.videos)), writer.copied.bytes
    )


def size_of(writer: LeRobotWriter, earlier: int, expected: int | None) -> str:
    """Return the size of the pictures, now and in total.

    As PNG, a recording is about 40 times as large as its video.
    """
    added = len(writer.records) - earlier
    if not added or not writer.picture_bytes:
        return ""
    size = writer.picture_bytes / 1e9
    whole = f" of about {size / added * expected:.2f}" if expected else ""
    return f"{size:.2f}{whole} GB of pictures"


def in_space(episode: Episode, target: ActionSpace | None) -> np.ndarray:
    """Return the episode's actions, converted if a target is given."""
    if target is None:
        return episode.actions
    if episode.action_space is None:
        raise RoboAlignError(
            "what its actions mean is not known, so they cannot be converted",
            where=f"episode {episode.episode_id}",
            fix="name the action space of the data set",
        )
    return convert(episode.actions, episode.action_space, target)


def start_writer(
    folder: str | Path,
    data: RobotData,
    first: Episode,
    actions: np.ndarray,
    target: ActionSpace | None,
    pictures: bool = False,
) -> LeRobotWriter:
    """Return a writer for episodes like the first one; unnamed dimensions are numbered."""
    videos = {
        name: video_facts(frames, first.fps)
        for name, frames in first.images.items()
        if isinstance(frames, VideoFrames) and not pictures
    }
    space, width = target or first.action_space, first.state.shape[1]
    names = (
        space.names
        if space
        else data.action_names or tuple(f"action_{i}" for i in range(actions.shape[1]))
    )
    return LeRobotWriter(
        folder,
        fps=first.fps,
        cameras={name: (c.width, c.height) for name, c in first.cameras.items()},
        action_names=names,
        state_names=data.state_names or tuple(f"state_{i}" for i in range(width)),
        privileged_names=first.privileged_names,
        action_space=space,
        axes=first.axes,
        bytes_per_file=FILE_BYTES,
        videos=videos,
        video_root=data.path and Path(data.path),
        source={
            "name": data.name,
            "format": data.format,
            "options": json.loads(json.dumps(data.options, default=str)),
            "first_episode": first.episode_id,
        },
    )


def frames_of(episode: Episode, camera: str) -> Iterator[np.ndarray]:
    """Yield the frames of one camera, each decoded on request."""
    for t in range(len(episode)):
        yield episode.frame(camera, t)


def write_episode(writer: LeRobotWriter, episode: Episode, actions: np.ndarray) -> None:
    """Add one episode; a video is copied, other frames are decoded one at a time."""
    if episode.fps != writer.fps:
        raise RoboAlignError(
            f"{episode.fps} steps a second, the data set has {writer.fps}",
            where=f"episode {episode.episode_id}",
            fix="write it to a data set of its own",
        )
    frames: dict[str, Any] = {
        name: episode.images[name] if name in writer.videos else frames_of(episode, name)
        for name in writer.cameras
        if name in episode.images
    }
    writer.add(
        episode_id=episode.episode_id,
        task=episode.task,
        instruction=episode.instruction,
        actions=actions,
        state=episode.state,
        frames=frames,
        cameras=episode.cameras,
        privileged=episode.privileged,
        privileged_names=episode.privileged_names,
        nouns=episode.nouns,
        success_step=episode.success_step,
    )
