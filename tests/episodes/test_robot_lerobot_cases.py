"""LeRobot data as people bring it: the right picture, order and instruction, or one message before any work."""

import json
import os
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_sets import (
    DATA,
    FEATURES,
    WRIST,
    actions_of,
    camera,
    change_data,
    data_of,
    edit_info,
    shown,
    video_of,
    write_json_lines,
    write_set,
)
from made_videos import number_in, write_video
from PIL import Image

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_source
from roboalign.episodes.episode import Episode, encode_png
from roboalign.episodes.formats.lerobot import about_lerobot, iterate_lerobot, read_lerobot
from roboalign.episodes.formats.lerobot_meta import read_tasks
from roboalign.episodes.open import open_robot_data
from roboalign.episodes.video import VideoFrames

INTEGER = {"dtype": "int64", "shape": [1], "names": None}
KEY = "annotation.human.action.task_description"


@pytest.fixture
def stored(tmp_path) -> Path:
    """Episodes of 7, 12 and 5 steps; frame t of episode e of the video shows 10 e + t."""
    return write_set(tmp_path / "set")


def add_column(folder: Path, episode: int, key: str, values) -> None:
    path = data_of(folder, episode)
    table = pq.read_table(path)
    pq.write_table(table.append_column(key, pa.array(values)), path)


def fault_of(folder: Path) -> str:
    """The only fault, which is of the second episode."""
    first, second, third = iterate_lerobot(folder)
    assert isinstance(first, Episode) and isinstance(third, Episode)
    return f"{second.where}: {second.problem}"


def shift_video(path: Path, frames: range, late: int) -> None:
    """A video whose first frame is shown `late` frames after 0."""
    write_video(path, frames)
    moved = path.with_name("moved.mp4")
    with av.open(str(path)) as source, av.open(str(moved), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                shift = int(late / 20 / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = stream
                target.mux(packet)
    moved.replace(path)


def test_rows_are_in_the_order_of_frame_index(stored):
    order = np.random.default_rng(0).permutation(12)
    add_column(stored, 1, "frame_index", np.arange(12))
    path = data_of(stored, 1)
    table = pq.read_table(path).take(order)
    pictures = [
        {"bytes": encode_png(np.full((48, 48, 3), 15 * t, np.uint8)), "path": None} for t in order
    ]
    pq.write_table(
        table.set_column(table.column_names.index(WRIST), WRIST, pa.array(pictures)),
        path,
        row_group_size=5,
    )
    episode = read_lerobot(stored)[1]
    np.testing.assert_array_equal(episode.actions, actions_of(1, 12))
    assert shown(episode) == list(range(10, 22))
    assert [int(episode.frame("wrist", t)[0, 0, 0]) for t in range(12)] == [
        15 * t for t in range(12)
    ]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([*range(5), *range(6, 13)], "frame_index is 4 and then 6: rows are missing or doubled"),
        ([*range(6), *range(5, 11)], "frame_index is 5 twice: rows are missing or doubled"),
    ],
)
def test_missing_and_doubled_rows_are_seen(stored, frames, message):
    add_column(stored, 1, "frame_index", frames)
    assert message in fault_of(stored)


def test_a_gap_in_the_times_is_seen(stored):
    times = np.arange(12) / 20
    times[8:] += 0.1
    change_data(stored, "timestamp", times)
    assert "timestamp goes from 0.350 to 0.500 s between steps 7 and 8" in fault_of(stored)


def test_a_trimmed_recording_shows_the_frames_of_its_times(stored):
    write_video(video_of(stored, 1), range(100, 120))
    change_data(stored, "timestamp", np.arange(4, 16) / 20)
    assert shown(read_lerobot(stored)[1]) == list(range(104, 116))


def test_a_video_that_begins_late_is_paired_in_order_where_it_is_as_long(stored):
    change_data(stored, "timestamp", np.arange(12) / 20)
    shift_video(video_of(stored, 1), range(100, 112), late=1)
    episode = read_lerobot(stored)[1]
    assert shown(episode) == list(range(100, 112))
    episode.images["front"].check()
    shift_video(video_of(stored, 1), range(100, 111), late=1)
    episode = read_lerobot(stored)[1]
    for t in (0, 5, 11):  # no step is shown the frame of another
        with pytest.raises(RoboAlignError, match=r"has 11 frames of this episode, at 0.050 to"):
            episode.frame("front", t)


def test_a_part_of_a_shared_video_never_shows_the_next_episode(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(30))
    late = 0.5 + (np.arange(10) + 1) / 20  # a table that counts from the second frame on
    frames = VideoFrames(path, 0.5, 10, 20, times=late, span=(0.5, 1.0))
    assert [number_in(frames.frame(t)) for t in range(10)] == list(range(10, 20))
    for end, steps in ((1.0, 10), (0.95, 10)):  # the end is when the last frame is over, or begins
        on_time = VideoFrames(path, 0.5, steps, 20, times=late - 0.05, span=(0.5, end))
        assert [number_in(on_time.frame(t)) for t in (0, 9)] == [10, 19]
    trimmed = VideoFrames(path, 0.5, 8, 20, times=0.6 + np.arange(8) / 20, span=(0.5, 1.0))
    assert [number_in(trimmed.frame(t)) for t in (0, 7)] == [12, 19]
    part = trimmed.part(3, 6)
    assert [number_in(part.frame(t)) for t in range(3)] == [15, 16, 17] and len(part) == 3
    beyond = VideoFrames(path, 0.5, 12, 20, times=0.5 + np.arange(12) / 20, span=(0.5, 1.0))
    with pytest.raises(RoboAlignError, match=r"has 10 frames of this episode, at 0.500 to 0.950 s"):
        beyond.frame(0)


def test_an_episode_is_split_where_its_instruction_changes(stored):
    write_json_lines(
        stored / "meta/tasks.jsonl",
        [{"task_index": 0, "task": "open it"}, {"task_index": 1, "task": "fill it"}],
    )
    change_data(stored, "task_index", [0] * 5 + [1] * 4 + [0] * 3)
    episodes = read_lerobot(stored)
    parts = episodes[1:4]
    whole = parts[0].episode_id.removesuffix("/steps-0-4")
    assert [e.episode_id for e in parts] == [
        f"{whole}/steps-{steps}" for steps in ("0-4", "5-8", "9-11")
    ]
    assert [e.instruction for e in parts] == ["open it", "fill it", "open it"]
    np.testing.assert_array_equal(
        np.concatenate([e.actions for e in parts]), actions_of(1, 12).astype(np.float32)
    )
    assert [shown(e) for e in parts] == [
        [10, 11, 12, 13, 14],
        [15, 16, 17, 18],
        [19, 20, 21],
    ]
    # A chunk never crosses: past the end of its part the last action is repeated.
    np.testing.assert_array_equal(parts[0].chunk(3, 4), actions_of(1, 12)[[3, 4, 4, 4]])


def modality(folder: Path, **parts) -> None:
    (folder / "meta/modality.json").write_text(json.dumps(parts))


def test_the_annotation_of_modality_is_the_instruction(stored):
    edit_info(stored, features=FEATURES | {KEY: INTEGER, "other": INTEGER})
    for episode, length in enumerate((7, 12, 5)):
        add_column(stored, episode, KEY, [1] * length)
        add_column(stored, episode, "other", [0] * length)
    write_json_lines(
        stored / "meta/tasks.jsonl",
        [{"task_index": 0, "task": "placeholder"}, {"task_index": 1, "task": "pick it"}],
    )
    modality(stored, annotation={"human.action.task_description": {}, "human.validity": {}})
    assert [e.instruction for e in read_lerobot(stored)] == ["pick it"] * 3
    assert about_lerobot(stored).notes == (
        f"Instructions are those of {KEY}, which meta/modality.json names, not of task_index.",
    )
    modality(stored, annotation={"human.task_description": {"original_key": "other"}})
    assert [e.instruction for e in read_lerobot(stored)] == ["placeholder"] * 3
    modality(stored, annotation={"human.task_description": {}})
    with pytest.raises(
        RoboAlignError, match=r"modality.json: it names the column annotation.human.ta"
    ):
        read_lerobot(stored)
    named = [e.instruction for e in iterate_lerobot(stored, instruction=KEY)]
    assert named == ["pick it"] * 3


def test_original_keys_and_slices_name_the_vectors(stored):
    slices = {
        "arm": {"start": 0, "end": 3, "original_key": "action.base"},
        "grip": {"start": 3, "end": 4, "original_key": "action.base"},
    }
    modality(stored, action=slices)
    assert read_lerobot(stored)[0].actions.shape == (7, 4)
    assert about_lerobot(stored).action_names == ("arm.0", "arm.1", "arm.2", "grip")
    modality(stored, action={**slices, "more": {"original_key": "action"}})
    joined = read_lerobot(stored)[0].actions
    np.testing.assert_array_equal(joined[:, :4], np.zeros((7, 4)))
    np.testing.assert_array_equal(joined[:, 4:], actions_of(0, 7))


def rename(folder: Path, names: dict[str, str]) -> None:
    edit_info(folder, features={names.get(key, key): value for key, value in FEATURES.items()})
    for path in folder.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([names.get(k, k) for k in table.column_names]), path)


def test_columns_of_other_names_are_asked_for(tmp_path):
    folder = write_set(tmp_path / "set")
    rename(folder, {"observation.state": "qpos"})
    with pytest.raises(RoboAlignError) as error:
        iterate_lerobot(folder)
    assert error.value.where == str(folder / "meta/info.json")
    assert error.value.problem == 'the state column is called "qpos", and no column was named'
    assert error.value.fix == "pass --read state=qpos, or --read state=[] to read no state"
    data = open_robot_data(folder, options={"state": "qpos"})
    assert [episode.state[0].tolist() for episode in data] == [[0.0] * 3, [1.0] * 3, [2.0] * 3]
    assert [e.state.shape for e in iterate_lerobot(folder, state=[])] == [(7, 0), (12, 0), (5, 0)]
    with pytest.raises(RoboAlignError, match=r"--read state: there is no feature 'gone'; the num"):
        iterate_lerobot(folder, state="gone")
    rename(folder, {"action": "actions", "action.base": "base", "observation.state": "qpos"})
    with pytest.raises(RoboAlignError, match='the action column is called "actions", and no col'):
        iterate_lerobot(folder, state="qpos")


def test_depth_is_left_out_and_never_saturated(tmp_path):
    depth = np.linspace(400, 1500, 48 * 48).reshape(48, 48).astype(np.uint16)
    buffer = BytesIO()
    Image.fromarray(depth).save(buffer, "PNG")
    folder = write_set(tmp_path / "set")
    change_data(folder, WRIST, [{"bytes": buffer.getvalue(), "path": None}] * 12)
    episode = read_lerobot(folder)[1]
    with pytest.raises(RoboAlignError, match=r"step 3 has more than 8 bits a pixel \(I;16\)"):
        episode.frame("wrist", 3)
    rename(folder, {WRIST: "observation.images.depth"})
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    features["observation.images.depth"]["shape"] = [48, 48, 1]
    edit_info(folder, features=features)
    assert [list(e.images) for e in read_lerobot(folder)] == [["front"]] * 3
    assert about_lerobot(folder).notes == ("Camera depth is left out: it holds depth.",)


def test_a_picture_of_another_size_is_refused_before_it_is_decoded(stored):
    large = encode_png(np.zeros((480, 480, 3), np.uint8))
    change_data(stored, WRIST, [{"bytes": large, "path": None}] * 12)
    with pytest.raises(RoboAlignError, match="step 2 is 480x480, described as 48x48"):
        read_lerobot(stored)[1].frame("wrist", 2)
    edit_info(stored, features=FEATURES | {WRIST: camera("image") | {"shape": [10**5, 10**5, 3]}})
    with pytest.raises(RoboAlignError, match=r"more than 67,108,864 pixels"):
        read_lerobot(stored)


def test_features_that_are_not_read_need_no_shape(stored):
    edit_info(
        stored, features=FEATURES | {"subtask": {"dtype": "string", "shape": None}, "x": None}
    )
    assert len(read_lerobot(stored)) == 3


def test_byte_order_marks_are_passed_over(stored):
    for name in ("info.json", "episodes.jsonl", "tasks.jsonl"):
        path = stored / "meta" / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [e.instruction for e in read_lerobot(stored)] == ["open it", "", "open it"]


@pytest.mark.parametrize(
    "columns",
    [
        {"task_index": [0], "task_name": ["on"], "__index_level_0__": ["turn it on"]},
        {"task_name": ["on"], "task": ["turn it on"], "task_index": [0]},
        {"task_index": [0], "weight": [0.5], "text": ["turn it on"]},
    ],
)
def test_the_instruction_is_the_index_of_the_tasks(tmp_path, columns):
    pq.write_table(pa.table(columns), tmp_path / "tasks.parquet")
    assert read_tasks(tmp_path / "tasks.parquet") == {0: "turn it on"}


def test_the_instruction_is_the_index_that_pandas_names(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"short": ["on"], "task_index": [4]}, index=pandas.Index(["turn it on"], name="sentence")
    )
    frame.to_parquet(tmp_path / "tasks.parquet")
    assert read_tasks(tmp_path / "tasks.parquet") == {4: "turn it on"}
    pq.write_table(pa.table({"task_index": [0], "a": ["x"], "b": ["y"]}), tmp_path / "t.parquet")
    with pytest.raises(RoboAlignError, match="its columns are task_index, a, b; expected"):
        read_tasks(tmp_path / "t.parquet")


def test_nothing_outside_is_read_and_no_fifo(stored, tmp_path):
    outside = tmp_path / "secret.parquet"
    data_of(stored, 1).rename(outside)
    data_of(stored, 1).symlink_to(outside)
    with pytest.raises(RoboAlignError, match=r"episode_000001.parquet: it is outside of the data"):
        iterate_lerobot(stored)
    assert len(list(iterate_lerobot(stored, links=True))) == 3
    edit_info(stored, data_path="../secret.parquet")
    with pytest.raises(RoboAlignError, match=r"it is outside of the data set, at .*secret.parquet"):
        iterate_lerobot(stored)
    edit_info(stored, data_path=DATA)
    data_of(stored, 1).unlink()
    os.mkfifo(data_of(stored, 1))
    assert "this is not a plain file (episode 1)" in fault_of(stored)
    data_of(stored, 1).unlink()
    outside.rename(data_of(stored, 1))
    video_of(stored, 1).unlink()
    os.mkfifo(video_of(stored, 1))
    assert "this is not a plain file (episode 1)" in fault_of(stored)


def test_a_snapshot_of_the_hub_links_to_its_own_blobs(tmp_path):
    snapshot = tmp_path / "datasets--a--b/snapshots/abc"
    blob, other = tmp_path / "datasets--a--b/blobs/1", tmp_path / "datasets--c/blobs/1"
    for path in (blob, other, snapshot / "x"):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_text("x")
    other.write_text("x")
    (snapshot / "good").symlink_to(blob)
    (snapshot / "bad").symlink_to(other)
    check_source(snapshot / "good", snapshot)
    with pytest.raises(RoboAlignError, match="outside of the data set"):
        check_source(snapshot / "bad", snapshot)
