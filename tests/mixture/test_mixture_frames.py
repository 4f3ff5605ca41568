"""Frames of videos in a mixture: their file format, and several cameras as several images."""

import io
from pathlib import Path

import numpy as np
import pytest
from lerobot_sets import write_set
from mixing_sources import settings
from PIL import Image

from roboalign.conversations.conversation import read_conversations
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.frame_file import FrameFile, encode_frame
from roboalign.episodes.open import open_robot_data
from roboalign.mixture.builder import build

TOKENS = {"fit": True, "horizon": 3, "scale": 4.0, "vocab_size": 64}


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Camera `front` is a video, `wrist` has PNG files; the second episode has no instruction."""
    return write_set(tmp_path_factory.mktemp("frames") / "robot", (7, 4, 9))


def mixed(robot: Path, out: Path, **source: object) -> list:
    one = {"name": "acts", "robot": str(robot), "count": 8, **source}
    build(settings(one, tokenizer=TOKENS, heldout={"share": 0.4}, near={"distance": 0}), out)
    return list(read_conversations(out, "train"))


@pytest.mark.parametrize("format", ["jpeg", "webp", "png"])
def test_a_videos_frames_are_stored_as_asked_and_files_as_they_are(
    robot: Path, tmp_path: Path, format: str
) -> None:
    file = {"format": format, "quality": 93}
    found = mixed(robot, tmp_path / "out", camera=["wrist", "front"], frames=file)
    episodes = {
        one.episode_id: one for one in open_robot_data(robot).read() if hasattr(one, "actions")
    }
    assert found
    for conversation in found:
        episode = episodes[conversation.episode_id]
        wrist, front = conversation.images
        assert wrist == episode.png("wrist", conversation.frame)
        with Image.open(io.BytesIO(front)) as image:
            assert image.format == format.upper()
            pixels = np.asarray(image.convert("RGB"), np.int16)
        shown = episode.frame("front", conversation.frame).astype(np.int16)
        assert pixels.shape == shown.shape
        assert np.abs(pixels - shown).mean() < 3
        if format == "png":
            assert (pixels == shown).all()


def test_the_files_of_a_video_are_smaller_by_quality() -> None:
    ramp = np.linspace(0, 255, 96, dtype=np.uint8)
    frame = np.stack(
        [np.tile(ramp, (96, 1)), np.tile(ramp[:, None], (1, 96)), np.full((96, 96), 90)], -1
    )
    frame = (
        (frame + np.random.default_rng(0).integers(0, 9, frame.shape)).clip(0, 255).astype(np.uint8)
    )
    sizes = {
        (format, quality): len(encode_frame(frame, FrameFile(format=format, quality=quality)))
        for format in ("jpeg", "webp")
        for quality in (60, 95)
    }
    for format in ("jpeg", "webp"):
        assert sizes[format, 60] < sizes[format, 95] < len(encode_frame(frame, FrameFile()))


def test_a_camera_that_is_missing_is_named(robot: Path, tmp_path: Path) -> None:
    with pytest.raises(RoboAlignError, match=r"front, wrist.*several as a list"):
        mixed(robot, tmp_path / "out")
    with pytest.raises(
        RoboAlignError, match=r"8 samples are asked and it has 0; .*lacks the camera side"
    ):
        mixed(robot, tmp_path / "other", camera=["front", "side"])
