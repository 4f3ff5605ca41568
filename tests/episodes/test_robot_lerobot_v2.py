"""LeRobot v2.0 and v2.1: what is in the files is what is read; a broken episode is a Fault among the others."""

import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot_sets import (
    FEATURES,
    FRONT,
    LENGTHS,
    WRIST,
    actions_of,
    camera,
    change_data,
    edit_info,
    write_json_lines,
    write_set,
)
from made_videos import number_in

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.decoder import Decoder
from roboalign.episodes.episode import Episode, content_id
from roboalign.episodes.formats.lerobot import iterate_lerobot, read_lerobot
from roboalign.episodes.formats.lerobot_layout import whole
from roboalign.episodes.formats.lerobot_v2 import read_task_lines
from roboalign.episodes.robot_data import RobotData

REAL = Path(__file__).parents[2].parent / "shared/data/lerobot_v2_picknplace"


@pytest.fixture
def stored(tmp_path) -> Path:
    return write_set(tmp_path / "set")


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_what_is_stored_is_read(tmp_path, version):
    episodes = read_lerobot(write_set(tmp_path / "set", version=version))
    assert [e.episode_id for e in episodes] == [
        content_id(f"set/episode-00000{i}", actions_of(i, n)) for i, n in enumerate(LENGTHS)
    ]
    assert [e.instruction for e in episodes] == ["open it", "", "open it"]
    for index, (episode, length) in enumerate(zip(episodes, LENGTHS)):
        assert episode.fps == 20.0 and len(episode) == length
        assert episode.actions.dtype == episode.state.dtype == np.float32
        np.testing.assert_array_equal(episode.actions, actions_of(index, length))
        np.testing.assert_array_equal(episode.state, np.full((length, 3), index))
        assert list(episode.images) == ["front", "wrist"] and episode.cameras["front"].width == 48
        for t in (length - 1, 0, 3):
            assert number_in(episode.frame("front", t)) == 10 * index + t
            assert (episode.frame("wrist", t) == index).all()


def test_opening_decodes_no_video(stored, monkeypatch):
    monkeypatch.setattr(Decoder, "__init__", lambda self, path: pytest.fail("a video was opened"))
    assert len(read_lerobot(stored)) == 3


def test_no_state_and_channels_first(tmp_path):
    features = {key: FEATURES[key] for key in ("action", "task_index")} | {FRONT: camera("video")}
    features[FRONT] = {
        "dtype": "video",
        "shape": [3, 48, 48],
        "names": ["channels", "height", "width"],
    }
    episode = read_lerobot(write_set(tmp_path / "set", (4,), features=features))[0]
    assert episode.state.shape == (4, 0) and episode.cameras["front"].height == 48
    assert number_in(episode.frame("front", 2)) == 2


def test_language_in_an_annotation_column(stored):
    features = {key: value for key, value in FEATURES.items() if key != "task_index"}
    key = "annotation.human.action.task_description"
    edit_info(stored, features=features | {key: FEATURES["task_index"]})
    for path in stored.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        names = [key if name == "task_index" else name for name in table.column_names]
        pq.write_table(table.rename_columns(names), path)
    assert [e.instruction for e in read_lerobot(stored)] == ["open it", "", "open it"]


def test_modality_names_the_cameras_that_are_used(stored):
    edit_info(stored, features=FEATURES | {"observation.images.never_stored": camera("video")})
    assert all(isinstance(item, Fault) for item in iterate_lerobot(stored))
    modality = stored / "meta/modality.json"
    modality.write_text(json.dumps({"video": {"ego": {"original_key": FRONT}, "wrist": {}}}))
    assert [list(episode.images) for episode in read_lerobot(stored)] == [["front", "wrist"]] * 3
    modality.write_text(json.dumps({"video": {"ego": {"original_key": "observation.images.gone"}}}))
    with pytest.raises(
        RoboAlignError, match=r"modality.json: it names the cameras \['observation.images.gone'\]"
    ):
        read_lerobot(stored)


def nan_at(step: int) -> list:
    values = actions_of(1, 12)
    values[step, 1] = np.nan
    return values.tolist()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("fault", "where", "problem"),
    [
        (
            lambda f: (f / "data/chunk-000/episode_000001.parquet").unlink(),
            "episode_000001.parquet",
            "does not exist",
        ),
        (
            lambda f: cut(f / "data/chunk-000/episode_000001.parquet"),
            "episode_000001.parquet",
            "not a readable parquet",
        ),
        (
            lambda f: (f / f"videos/chunk-000/{FRONT}/episode_000001.mp4").unlink(),
            "episode_000001.mp4",
            "does not exist",
        ),
        (
            lambda f: change_data(f, "action", nan_at(4)),
            "episode_000001.parquet",
            "column action is not finite at row 4",
        ),
        (
            lambda f: change_data(f, "action", [[1.0, 1e300]] * 12),
            "episode_000001.parquet",
            "column action is not finite",
        ),
        (
            lambda f: change_data(f, "action", [[1.0, None]] * 12),
            "episode_000001.parquet",
            "column action is not finite",
        ),
        (
            lambda f: change_data(f, "action", [[1.0, 1.0]] * 11 + [None]),
            "episode_000001.parquet",
            "action holds 22 value",
        ),
        (
            lambda f: change_data(f, "action", [[1.0]] * 12),
            "episode_000001.parquet",
            "column action holds 12 values in 12",
        ),
        (
            lambda f: change_data(f, "action", [[1.0], [1.0] * 3] * 6),
            "episode_000001.parquet",
            "rows of different widths",
        ),
        (
            lambda f: change_data(f, "action", [["a", "b"]] * 12),
            "episode_000001.parquet",
            "column action holds string",
        ),
        (
            lambda f: change_data(f, "observation.state", None),
            "episode_000001.parquet",
            "column observation.state is miss",
        ),
        (
            lambda f: change_data(f, WRIST, None),
            "episode_000001.parquet",
            f"column {WRIST} is missing",
        ),
        (
            lambda f: change_data(f, "task_index", [9] * 12),
            "tasks.jsonl",
            "no task with task_index 9",
        ),
        (
            lambda f: write_json_lines(
                f / "meta/episodes.jsonl",
                [{"episode_index": i, "length": n} for i, n in enumerate((7, 11, 5))],
            ),
            "episode_000001.parquet",
            "12 rows, meta/episodes.jsonl says 11",
        ),
    ],
)
def test_a_broken_episode_is_a_fault_and_the_others_are_read(stored, fault, where, problem):
    fault(stored)
    first, second, third = iterate_lerobot(stored)
    assert isinstance(first, Episode) and isinstance(third, Episode) and len(third) == 5
    assert isinstance(second, Fault) and second.where.endswith(where)
    assert problem in second.problem and second.problem.endswith("(episode 1)") and second.fix
    data = RobotData("set", "lerobot", lambda: iterate_lerobot(stored))
    assert [len(episode) for episode in data] == [7, 5] and data.faults == [second]
    with pytest.raises(RoboAlignError, match="episode 1"):
        read_lerobot(stored)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda f: edit_info(f, codebase_version="v4.0"),
            "info.json: LeRobot format v4.0, this reads v2.0, v2.1 and v3.0",
        ),
        (lambda f: edit_info(f, codebase_version="v1.6"), "LeRobot format v1.6"),
        (lambda f: edit_info(f, codebase_version=None), "LeRobot format None"),
        (lambda f: edit_info(f, fps=0), "fps is 0"),
        (lambda f: edit_info(f, fps="20"), "fps is '20'"),
        (lambda f: edit_info(f, chunks_size=0), "chunks_size is 0"),
        (
            lambda f: edit_info(f, total_episodes=2),
            "episodes.jsonl: it lists 3 episodes, total_episodes in meta/info.json is 2",
        ),
        (
            lambda f: edit_info(f, data_path="data/{episode}.parquet"),
            "info.json: data_path is 'data/{episode}.parquet'",
        ),
        (lambda f: edit_info(f, video_path=None), "info.json: video_path is None"),
        (
            lambda f: edit_info(f, features=FEATURES | {"action": {"dtype": "float32"}}),
            "feature action has no dtype and",
        ),
        (
            lambda f: edit_info(f, features=FEATURES | {FRONT: camera("video") | {"shape": [48]}}),
            r"shape \[48\]",
        ),
        (lambda f: (f / "meta/info.json").write_text("[]"), "codebase_version is missing"),
        (lambda f: (f / "meta/episodes.jsonl").unlink(), "episodes.jsonl: the file does not exist"),
        (lambda f: cut(f / "meta/episodes.jsonl"), "episodes.jsonl, line 2: not valid JSON"),
        (
            lambda f: write_json_lines(f / "meta/episodes.jsonl", [{"episode_index": 0}] * 3),
            "line 1: length of episode 0",
        ),
        (
            lambda f: write_json_lines(
                f / "meta/episodes.jsonl", [{"episode_index": 0, "length": 7}] * 3
            ),
            "twice",
        ),
        (
            lambda f: write_json_lines(f / "meta/tasks.jsonl", [{"task": "a"}]),
            "tasks.jsonl, line 1: no task_index",
        ),
    ],
)
def test_broken_meta_files_are_refused(stored, fault, message):
    fault(stored)
    with pytest.raises(RoboAlignError, match=message):
        list(iterate_lerobot(stored))


def test_a_cut_video_shows_when_its_frame_is_asked_for(stored):
    path = stored / f"videos/chunk-000/{FRONT}/episode_000001.mp4"
    cut(path)
    episode = read_lerobot(stored)[1]
    with pytest.raises(
        RoboAlignError, match=r"episode_000001.mp4, at 0.150 s: not a readable video"
    ):
        episode.frame("front", 2)
    with pytest.raises(RoboAlignError, match=r"episode_000001.mp4: not a readable video"):
        episode.images["front"].check()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_files_give_faults_and_no_other_error(tmp_path_factory, data):
    folder = write_set(
        tmp_path_factory.mktemp("damaged") / "set",
        (3, 2),
        video=False,
        features={key: value for key, value in FEATURES.items() if key != FRONT},
    )
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(paths))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(
        content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content
    )
    try:
        for item in iterate_lerobot(folder):
            if isinstance(item, Episode):
                item.frame("wrist", len(item) - 1)
    except RoboAlignError as error:
        assert "set" in str(error)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
def test_real_data():
    episodes = read_lerobot(REAL)
    assert [len(episode) for episode in episodes] == [
        416,
        470,
        470,
        412,
        328,
    ]  # meta/episodes.jsonl; 2096 frames
    things = [episode.instruction.split(" from ")[0] for episode in episodes]
    assert things == [
        "pick the squash",
        "pick the ketchup",
        "pick the candle",
        "pick the bar",
        "pick the spray",
    ]
    for index, episode in enumerate(episodes):
        stored = pq.read_table(REAL / f"data/chunk-000/episode_{index:06d}.parquet").to_pandas()
        assert (episode.fps, list(episode.images)) == (20.0, ["ego_view"])
        for found, key in ((episode.actions, "action"), (episode.state, "observation.state")):
            np.testing.assert_array_equal(found, np.stack(stored[key]).astype(np.float32))
    episodes[4].images["ego_view"].check()
    path = REAL / "videos/chunk-000/observation.images.ego_view/episode_000002.mp4"
    with av.open(str(path)) as container:
        wanted = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(wanted) == 470
    for t in (469, 251, 249, 0):
        np.testing.assert_array_equal(episodes[2].frame("ego_view", t), wanted[t])


@pytest.mark.parametrize("value", [0.5, True, "1", -1, None])
def test_a_number_of_an_episode_is_whole_or_named(value):
    row = {"episode_index": 3, "length": value}
    with pytest.raises(RoboAlignError, match="length of episode 3"):
        whole(row, "length", "episodes.jsonl, line 1")
    assert whole({"episode_index": 3, "length": 7.0}, "length", "") == 7


def test_one_task_index_with_two_texts_is_refused(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"task_index": 0, "task": "lift"}\n{"task_index": 0, "task": "push"}\n')
    with pytest.raises(RoboAlignError, match=r"tasks\.jsonl, line 2: task_index 0 has two texts"):
        read_task_lines(path)
