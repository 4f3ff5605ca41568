"""A video stays a video when a data set is rewritten: the same bytes, and the same frame at every step."""

import itertools
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from lerobot_sets import shown, video_of, write_set
from made_videos import number_in, picture, write_video

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.formats.lerobot import read_lerobot
from roboalign.episodes.open import open_robot_data
from roboalign.episodes.rewrite import rewrite
from roboalign.episodes.video import VideoFrames

KEY = "videos/observation.images.front/chunk-000"
REAL = Path(__file__).parents[2].parent / "shared/data/lerobot_v2_picknplace"


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def with_frames(data, frames: list[VideoFrames]):
    """The same data set; the front cameras of its episodes are these."""

    def read():
        for item, own in zip(list(open_robot_data(data.path)), frames):
            yield replace(item, images={**item.images, "front": own})

    return data.through(read)


def test_each_file_is_copied_once_and_shows_the_same(tmp_path):
    source = write_set(tmp_path / "set")
    written = rewrite(open_robot_data(source), tmp_path / "out")
    assert written.videos == ("front",) and not written.faults
    before, after = read_lerobot(source), read_lerobot(tmp_path / "out")
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        assert isinstance(other.images["front"], VideoFrames)
        assert shown(other) == shown(one) == list(range(10 * number, 10 * number + len(one)))
        assert (one.frame("wrist", 1) == other.frame("wrist", 1)).all()  # a picture stays one
        copy = tmp_path / "out" / KEY / f"file-{number:03d}.mp4"
        assert copy.read_bytes() == video_of(source, number).read_bytes()
    assert written.video_bytes == sum(video_of(source, n).stat().st_size for n in range(3))
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    feature = info["features"]["observation.images.front"]
    assert feature["dtype"] == "video" and feature["info"]["video.codec"] == "h264"
    assert feature["info"]["video.fps"] == 20 and info["video_path"].startswith("videos/")


def test_episodes_of_one_file_and_parts_of_an_episode_share_its_copy(tmp_path):
    """As LeRobot v3.0 stores them; rewritten once more, it is the same again."""
    source = write_set(tmp_path / "set", (7, 12, 5))
    shared = write_video(tmp_path / "shared.mp4", range(200, 240), gop=250)
    whole = VideoFrames(shared, 0.0, 12, 20, times=0.5 + np.arange(12) / 20, span=(0.5, 1.1))
    frames = [
        VideoFrames(shared, 0.1, 7, 20, span=(0.1, 0.45)),
        whole,
        VideoFrames(shared, 1.5, 5, 20, span=(1.5, None)),
    ]
    data = with_frames(open_robot_data(source), frames)
    written = rewrite(data, tmp_path / "out")
    assert written.video_bytes == shared.stat().st_size
    rewrite(open_robot_data(tmp_path / "out"), tmp_path / "again")
    for folder in ("out", "again"):
        assert [p.name for p in (tmp_path / folder / KEY).iterdir()] == ["file-000.mp4"]
        one, two, three = read_lerobot(tmp_path / folder)
        assert shown(one) == list(range(202, 209))
        assert shown(two) == list(range(210, 222)) and shown(three) == list(range(230, 235))
    part = whole.part(3, 8)
    assert part.even_start() == pytest.approx(0.65)
    assert number_in(part.frame(0)) == 213


def uneven(path: Path, numbers: range, late: int) -> Path:
    """A video of 20 frames a second whose frame `late` and those after it come 0.6 steps late."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width = stream.height = 48
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for t, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = 50 * t + 30 * (t >= late), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_at_uneven_times_are_refused_and_can_be_pictures(tmp_path):
    """The reader pairs them with the steps in order; by LeRobot's times, others would be found."""
    source = write_set(tmp_path / "set", (7, 12))
    odd = uneven(tmp_path / "odd.mp4", range(100, 112), late=4)
    times = np.arange(12) * 0.05 + 0.03 * (np.arange(12) >= 4)
    frames = [read_lerobot(source)[0].images["front"], VideoFrames(odd, 0, 12, 20, times=times)]
    data = with_frames(open_robot_data(source), frames)
    written = rewrite(data, tmp_path / "out")
    assert written.episodes == 1 and len(written.faults) == 1
    assert "its frames are not at even times: step 4 is shown at 0.230 s, not at 0.200" in (
        written.faults[0].problem
    )
    assert "--pictures" in written.faults[0].fix
    rewrite(data, tmp_path / "pictures", pictures=True)
    assert shown(read_lerobot(tmp_path / "pictures")[1]) == list(range(100, 112))
    assert not (tmp_path / "pictures/videos").exists()


def test_a_step_without_a_frame_is_a_fault(tmp_path):
    source = write_set(tmp_path / "set", (7, 12))
    write_video(video_of(source, 1), range(10, 18))  # 8 frames for 12 steps
    written = rewrite(open_robot_data(source), tmp_path / "out")
    assert written.episodes == 1 and len(written.faults) == 1
    assert "5 of 12 steps have no frame, the first of them step 7" in written.faults[0].problem
    with pytest.raises(RoboAlignError, match="does not exist"):
        VideoFrames(tmp_path / "none.mp4", 0, 3, 20).even_start()


@pytest.mark.skipif(not REAL.is_dir(), reason="the real set is not here")
def test_the_first_real_episode_stays_as_small_and_shows_the_same(tmp_path):
    data = open_robot_data(REAL)
    written = rewrite(data.through(lambda: itertools.islice(data.read(), 1)), tmp_path / "out")
    video, table = (
        next((REAL / part).rglob(f"episode_000000.{end}")).stat().st_size
        for part, end in (("videos", "mp4"), ("data", "parquet"))
    )
    assert written.video_bytes == video
    assert bytes_of(tmp_path / "out") <= 1.1 * (video + table + bytes_of(REAL / "meta"))
    one, (other,) = next(iter(data)), read_lerobot(tmp_path / "out")
    np.testing.assert_array_equal(one.actions, other.actions)
    camera = next(iter(one.images))
    for t in (0, 1, 30, 33):
        np.testing.assert_array_equal(one.frame(camera, t), other.frame(camera, t))
