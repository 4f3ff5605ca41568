"""Rewriting a data set as LeRobot v3: checked before any work, resumable, exact, and one frame at a time."""

import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import numpy as np
import pytest
from lerobot_sets import (
    actions_of,
    change_data,
    shown,
    video_of,
    write_set,
)
from made_videos import write_video

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_output
from roboalign.episodes import rewrite as rewriting
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats.lerobot import read_lerobot
from roboalign.episodes.open import open_robot_data
from roboalign.episodes.rewrite import rewrite


@pytest.fixture
def stored(tmp_path) -> Path:
    return write_set(tmp_path / "set")


def test_the_output_is_checked_before_any_work(stored, tmp_path):
    data = open_robot_data(stored)
    before = sorted(stored.rglob("*"))
    with pytest.raises(RoboAlignError, match="the output is the source itself"):
        rewrite(data, stored)
    with pytest.raises(RoboAlignError, match="the output is inside the source"):
        rewrite(data, stored / "new")
    assert sorted(stored.rglob("*")) == before
    other = write_set(tmp_path / "other")
    with pytest.raises(RoboAlignError, match="holds other files, and nothing that this command"):
        rewrite(data, other)
    (tmp_path / "a-file").write_text("x")
    for path in (tmp_path / "a-file", tmp_path / "a-file/out"):
        with pytest.raises(RoboAlignError, match="is a file, not a folder"):
            rewrite(data, path)


@pytest.mark.skipif(not Path("/usr/bin/setpriv").exists(), reason="no setpriv")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    for folder in (locked, tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.is_relative_to(tempfile.gettempdir()):
            folder.chmod(folder.stat().st_mode | 0o055)
    locked.chmod(0o555)
    check_output(locked / "out")  # root may
    code = (
        "import sys; from roboalign.core.files import check_output\n"
        "try: check_output(sys.argv[1])\n"
        "except Exception as error: print(error)"
    )
    found = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", code, locked / "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if "Permission denied" in found.stderr or "loading shared libraries" in found.stderr:
        pytest.skip("the other user cannot run this Python")
    assert (
        f"{locked}: this folder cannot be written, so {locked}/out cannot be made" in found.stdout
    )


def test_another_source_is_not_appended(tmp_path):
    for day, lengths in (("monday", (7, 12)), ("tuesday", (5, 6))):
        write_set(tmp_path / day / "set", lengths)
    rewrite(open_robot_data(tmp_path / "monday/set"), tmp_path / "out")
    with pytest.raises(RoboAlignError, match="there is of another source: set from set/episode-0"):
        rewrite(open_robot_data(tmp_path / "tuesday/set"), tmp_path / "out")
    with pytest.raises(RoboAlignError, match=r"another source.*with state="):
        rewrite(
            open_robot_data(tmp_path / "monday/set", options={"state": "observation.state"}),
            tmp_path / "out",
        )
    assert [len(e) for e in read_lerobot(tmp_path / "out")] == [7, 12]


def test_a_set_without_a_good_episode_says_why(stored, tmp_path):
    for episode, length in enumerate((7, 12, 5)):
        change_data(stored, "timestamp", np.arange(length) / 20, episode)
        write_video(video_of(stored, episode), range(length - 1))
    with pytest.raises(RoboAlignError) as error:
        rewrite(open_robot_data(stored), tmp_path / "out")
    assert error.value.problem.startswith(
        "no episode could be written, 3 were left out; the first: "
        f"{video_of(stored, 0)}, at 0.300 s: 1 of 7 steps have no frame, the first of them step 6"
    )


def test_files_are_closed_by_size_and_a_killed_call_continues(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "set", (4, 5, 6, 3))
    monkeypatch.setattr(rewriting, "FILE_BYTES", 1)
    rewrite(open_robot_data(folder), tmp_path / "whole")
    seen: list[int] = []
    original = rewriting.write_episode

    def stops(writer, episode, actions):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(writer.n_files)
        original(writer, episode, actions)

    monkeypatch.setattr(rewriting, "write_episode", stops)
    with pytest.raises(KeyboardInterrupt):
        rewrite(open_robot_data(folder), tmp_path / "killed")
    data = tmp_path / "killed/data/chunk-000"
    assert seen == [0, 1] and len(list(data.glob("file-*.parquet"))) == 2
    videos = tmp_path / "killed/videos/observation.images.front/chunk-000"
    for half in (data / ".file-002.parquet.0123abcd.partial", videos / ".file-002.mp4.0.partial"):
        half.write_bytes(b"half")
    (videos / "file-002.mp4").write_bytes(b"copied, but its episode was not written")
    monkeypatch.setattr(rewriting, "write_episode", original)
    written = rewrite(open_robot_data(folder), tmp_path / "killed")
    assert (written.episodes, written.already_there) == (4, 2)
    names, again = (
        sorted(
            p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*.*") if p.is_file()
        )
        for name in ("whole", "killed")
    )
    assert names == again and sum(name.suffix == ".mp4" for name in names) == 4
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_every_camera_is_written_with_its_own_frames(stored, tmp_path):
    rewrite(open_robot_data(stored), tmp_path / "out")
    for number, (episode, length) in enumerate(zip(read_lerobot(tmp_path / "out"), (7, 12, 5))):
        assert shown(episode) == list(range(10 * number, 10 * number + length))
        assert all((episode.frame("wrist", t) == number).all() for t in range(length))
        np.testing.assert_array_equal(episode.actions, actions_of(number, length))
        np.testing.assert_array_equal(episode.state, np.full((length, 3), number))


def test_frames_are_encoded_one_at_a_time(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "set", (60,))
    alive, most = [0], [0]
    original = Episode.frame

    def ended() -> None:
        alive[0] -= 1

    def frame(self, camera, t):
        pixels = original(self, camera, t).copy()
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(pixels, ended)
        return pixels

    monkeypatch.setattr(Episode, "frame", frame)
    rewrite(open_robot_data(folder), tmp_path / "out")
    # 16 of each of two cameras for their statistics, the one that is encoded and the one before.
    assert 16 <= most[0] <= 2 * 16 + 2
