"""Put videos into a LeRobot v3.0 data set: whole files are copied, no frame is decoded or encoded.

An episode is the part of a file from `from_timestamp` on, so a file is copied once, whatever the
number of its episodes. If an episode of a file is left out, its frames stay in the copy, unused.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av

from roboalign.core.files import atomic_path
from roboalign.episodes.decoder import video_stream
from roboalign.episodes.formats import lerobot_layout as layout
from roboalign.episodes.video import VideoFrames


def video_facts(frames: VideoFrames, fps: float) -> dict[str, Any]:
    """Return what info.json says of a video. Raises RoboAlignError if there is none in the file."""
    with av.open(str(frames.path), metadata_errors="replace") as container:
        stream, _ = video_stream(container, frames.path)
        context = stream.codec_context
        return {
            "video.height": context.height,
            "video.width": context.width,
            "video.codec": context.name,
            "video.pix_fmt": context.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": bool(container.streams.audio),
        }


class CopiedVideos:
    """The video files of a data set that is being written, numbered by camera."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers: dict[str, dict[str, int]] = {}
        """Camera -> source file -> number of its copy."""
        self.bytes = 0
        """Bytes copied here."""

    def remember(self, placed: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over the copies that a record of an earlier call names."""
        for camera, place in placed.items():
            self.numbers.setdefault(camera, {})[place["source"]] = place["file"]

    def place(
        self, camera: str, frames: VideoFrames, start: float, root: Path | None
    ) -> dict[str, Any]:
        """Copy the file of these frames unless that was done; return where they are.

        `start` is their `even_start`, `root` the source's folder. A copy of a killed call that no
        record names is written again.
        """
        inside = root is not None and frames.path.is_relative_to(root)
        source = str(frames.path.relative_to(root) if root and inside else frames.path.absolute())
        numbers = self.numbers.setdefault(camera, {})
        if source not in numbers:
            number = len(numbers)
            with atomic_path(self.path(camera, number)) as temporary:
                shutil.copyfile(frames.path, temporary)
            self.bytes += frames.path.stat().st_size
            numbers[source] = number
        end = start + frames.length / frames.fps
        return {"source": source, "file": numbers[source], "from": start, "to": end}

    def path(self, camera: str, number: int) -> Path:
        """Return the path of a copy."""
        return self.folder / layout.VIDEO_PATH.format(
            video_key=layout.IMAGE_PREFIX + camera, **_place(number)
        )


def video_columns(placed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the columns of meta/episodes that say where an episode's videos are."""
    columns: dict[str, Any] = {}
    for camera, place in placed.items():
        at = f"videos/{layout.IMAGE_PREFIX}{camera}"
        columns |= {f"{at}/{name}": value for name, value in _place(place["file"]).items()}
        columns |= {f"{at}/from_timestamp": place["from"], f"{at}/to_timestamp": place["to"]}
    return columns


def _place(number: int) -> dict[str, int]:
    return {
        "chunk_index": number // layout.FILES_PER_CHUNK,
        "file_index": number % layout.FILES_PER_CHUNK,
    }
