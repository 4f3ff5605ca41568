"""The report holds the videos of its own folder, and no other file that an index names."""

from pathlib import Path

import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_json
from roboalign.run.stages.report import stored_videos, video_file

ROW = {"task": "door", "outcome": "failure", "seed": 3, "path": "door-failure.mp4"}


def test_a_plain_name_is_read(tmp_path):
    write_json(tmp_path / "index.json", [ROW])
    assert stored_videos(tmp_path) == [ROW]
    assert video_file(tmp_path, ROW, 0) == tmp_path / "door-failure.mp4"
    assert stored_videos(tmp_path / "none") == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.txt", "a/b.mp4", "..", "", "link.mp4"])
def test_another_place_is_refused(tmp_path: Path, path):
    (tmp_path / "secret.txt").write_text("TOPSECRET")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(RoboAlignError, match=r"index.json, row 4: path is .* no plain file name"):
        video_file(tmp_path, {**ROW, "path": path}, 4)


@pytest.mark.parametrize("row", [{}, [], {**ROW, "seed": "3"}, {**ROW, "path": None}])
def test_a_damaged_row_is_named(tmp_path, row):
    with pytest.raises(RoboAlignError, match=r"index.json, row 0: \w+ is missing or no"):
        video_file(tmp_path, row, 0)
    write_json(tmp_path / "index.json", {"a": 1})
    with pytest.raises(RoboAlignError, match=r"index.json: expected a list of videos"):
        stored_videos(tmp_path)
