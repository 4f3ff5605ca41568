"""LeRobot v3.0: what is written is read back, and every fault is refused by name."""

import json
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lerobot_writers import as_arguments, open_writer

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Camera, content_id
from roboalign.episodes.formats.lerobot import (
    LeRobotWriter,
    about_lerobot,
    iterate_lerobot,
    read_lerobot,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory, episodes) -> Path:
    folder = tmp_path_factory.mktemp("lerobot") / "set"
    writer = open_writer(folder, episodes[0])
    for episode in episodes[:5]:
        writer.add(**as_arguments(episode))
    writer.finalize()
    return folder


@pytest.fixture
def copied(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "set"))


def test_round_trip(written, episodes):
    found = read_lerobot(written)
    assert [episode.episode_id for episode in found] == [
        episode.episode_id for episode in episodes[:5]
    ]
    for a, b in zip(found, episodes):
        for name in ("task", "instruction", "fps", "nouns", "privileged_names", "success_step"):
            assert getattr(a, name) == getattr(b, name)
        for name in ("actions", "state", "privileged"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        np.testing.assert_array_equal(
            a.cameras["workspace"].projection, b.cameras["workspace"].projection
        )
        for t in (0, 7, len(a) - 1):
            assert a.png("workspace", t) == b.png("workspace", t)
            np.testing.assert_array_equal(a.frame("workspace", t), b.frame("workspace", t))


def test_layout_is_v3(written, episodes):
    info = json.loads((written / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["video_path"] is None
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (5, 150, 1)
    assert info["features"]["observation.images.workspace"]["shape"] == [32, 32, 3]
    rows = pa.concat_tables(
        [pq.read_table(path) for path in sorted((written / "data").glob("*/*.parquet"))]
    )
    assert rows["index"].to_pylist() == list(range(150))
    assert rows["frame_index"].to_pylist() == list(range(30)) * 5
    assert rows["next.done"].to_pylist() == [t == 29 for t in range(30)] * 5
    assert rows["next.success"].to_pylist() == [t >= 26 for t in range(30)] * 5
    np.testing.assert_allclose(rows["timestamp"].to_numpy()[:30], np.arange(30) / 10, rtol=1e-6)
    meta = pq.read_table(written / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["data/file_index"] for row in meta] == [0, 0, 1, 1, 2]
    assert [row["dataset_from_index"] for row in meta] == [0, 30, 60, 90, 120]
    assert [row["dataset_to_index"] for row in meta] == [30, 60, 90, 120, 150]


def test_stats_are_those_of_all_actions(written, episodes):
    stats = json.loads((written / "meta/stats.json").read_text())["action"]
    actions = np.concatenate([episode.actions for episode in episodes[:5]])
    np.testing.assert_allclose(stats["mean"], actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["std"], actions.std(0), atol=1e-6)
    np.testing.assert_allclose(stats["max"], actions.max(0))
    assert stats["count"] == [150]


def test_datasets_library_decodes_the_images(written, episodes, tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = [str(path) for path in sorted((written / "data").glob("*/*.parquet"))]
    rows = datasets.Dataset.from_parquet(paths, cache_dir=str(tmp_path))
    np.testing.assert_array_equal(
        np.array(rows[31]["observation.images.workspace"]), episodes[1].frame("workspace", 1)
    )


def test_writer_refuses_a_second_copy_and_another_set(written, one_episode, episodes):
    writer = open_writer(written, episodes[0])
    with pytest.raises(RoboAlignError, match="already in the data set"):
        writer.add(**as_arguments(episodes[0]))
    with pytest.raises(RoboAlignError, match="another fps"):
        open_writer(written, episodes[0], fps=20.0)
    with pytest.raises(RoboAlignError, match="no episode was added"):
        open_writer(written.parent / "empty", episodes[0]).finalize()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_column(path: Path, key: str, column: pa.Array) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(key), key, column), path)


def edit_info(folder: Path, **changes) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def break_action(value: float, width: int):
    def change(folder: Path) -> None:
        values = np.zeros(60 * width, np.float32)
        values[5 * width] = value
        column = pa.FixedSizeListArray.from_arrays(values, width)
        replace_column(folder / "data/chunk-000/file-000.parquet", "action", column)

    return change


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda f: truncate(f / "data/chunk-000/file-001.parquet"),
            "file-001.parquet: not a readable parquet",
        ),
        (
            lambda f: truncate(f / "meta/episodes/chunk-000/file-000.parquet"),
            "not a readable parquet",
        ),
        (lambda f: (f / "meta/info.json").unlink(), "info.json: the file does not exist"),
        (lambda f: (f / "meta/info.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "meta/tasks.parquet").unlink(), "tasks.parquet: the file does not exist"),
        (lambda f: (f / "meta/episodes/chunk-000/file-000.parquet").unlink(), "no parquet file"),
        (
            lambda f: (f / "data/chunk-000/file-002.parquet").unlink(),
            "file-002.parquet: the file does not exist",
        ),
        (
            lambda f: edit_info(f, codebase_version="v4.0"),
            "format v4.0, this reads v2.0, v2.1 and v3.0",
        ),
        (
            lambda f: edit_info(f, total_episodes=9),
            "meta/episodes: it lists 5 episodes, total_episodes in meta/info.json is 9",
        ),
        (lambda f: edit_info(f, features={}), "features describes nothing"),
        (break_action(np.nan, 4), "file-000.parquet: column action is not finite at row 5"),
        (break_action(0.0, 3), "column action holds 180 values in 60 rows, info.json says 4 a row"),
    ],
)
def test_reader_refuses(copied, fault, message):
    fault(copied)
    with pytest.raises(RoboAlignError, match=message):
        read_lerobot(copied)


def test_a_video_that_the_meta_files_do_not_place_is_refused(copied):
    features = json.loads((copied / "meta/info.json").read_text())["features"]
    features["observation.images.workspace"]["dtype"] = "video"
    edit_info(copied, features=features)
    with pytest.raises(
        RoboAlignError, match=r"meta/episodes: videos/.*/chunk_index of episode 0 is None"
    ):
        read_lerobot(copied)


VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


@pytest.fixture
def with_video(copied) -> Path:
    """The set with a second camera, as video: episodes 0 to 2 one after another in one file, 3 and 4 in the next.
    Step t of episode e is of brightness 40 e + t."""
    key, features = (
        "observation.images.wrist",
        json.loads((copied / "meta/info.json").read_text())["features"],
    )
    features = {name: value for name, value in features.items() if name != "observation.state"}
    edit_info(
        copied,
        video_path=VIDEO_PATH,
        features=features | {key: {"dtype": "video", "shape": [16, 16, 3]}},
    )
    meta = copied / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(meta).to_pylist()
    for number, numbers in enumerate(((0, 1, 2), (3, 4))):
        path = copied / VIDEO_PATH.format(video_key=key, chunk_index=0, file_index=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width = stream.height = 16
            stream.pix_fmt, stream.options = "yuv420p", {"qp": "1"}
            for place, episode in enumerate(numbers):
                rows[episode] |= {
                    f"videos/{key}/chunk_index": 0,
                    f"videos/{key}/file_index": number,
                    f"videos/{key}/from_timestamp": 3.0 * place,
                    f"videos/{key}/to_timestamp": 3.0 * place + 3.0,
                }
                for t in range(30):
                    pixels = np.full((16, 16, 3), 40 * episode + t, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
    pq.write_table(pa.Table.from_pylist(rows), meta)
    return copied


def test_video_and_image_cameras_side_by_side(with_video, episodes):
    found = read_lerobot(with_video)
    for number in (4, 1, 0, 2, 3):
        episode = found[number]
        assert sorted(episode.images) == ["workspace", "wrist"] and episode.state.shape == (30, 0)
        for t in (29, 0, 13):
            pixels = episode.frame("wrist", t)
            assert (
                pixels.shape == (16, 16, 3) and abs(pixels.astype(int) - 40 * number - t).max() <= 2
            )
            assert episode.png("workspace", t) == episodes[number].png("workspace", t)
        episode.images["wrist"].check()


def set_meta(folder: Path, episode: int, **changes) -> None:
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[episode] |= changes
    pq.write_table(pa.Table.from_pylist(rows), path)


def other_rows(folder: Path) -> None:
    column = pa.array([0] * 30 + [7] * 30)
    replace_column(folder / "data/chunk-000/file-000.parquet", "episode_index", column)


@pytest.mark.parametrize(
    ("fault", "broken", "message"),
    [
        (
            lambda f: truncate(f / "data/chunk-000/file-000.parquet"),
            [0, 1],
            "file-000.parquet: not a readable parquet",
        ),
        (
            lambda f: (f / "data/chunk-000/file-001.parquet").unlink(),
            [2, 3],
            "file-001.parquet: the file does not exist",
        ),
        (break_action(np.nan, 4), [0], "file-000.parquet: column action is not finite at row 5"),
        (break_action(0.0, 3), [0, 1], "column action holds 180 values in 60 rows"),
        (other_rows, [1], r"column episode_index holds \[7\] where meta/episodes has 1"),
        (
            lambda f: set_meta(f, 4, length=31),
            [4],
            "file-002.parquet: 30 rows of episode_index 4, meta/episodes says 31",
        ),
        (lambda f: set_meta(f, 4, length=0), [4], "file-002.parquet: no steps"),
        (
            lambda f: (f / "videos/observation.images.wrist/chunk-000/file-001.mp4").unlink(),
            [3, 4],
            "does not exist",
        ),
        (
            lambda f: set_meta(f, 2, **{"videos/observation.images.wrist/to_timestamp": 8.0}),
            [2],
            "30 steps at 10 fps, but meta/episodes gives 6 to 8 s",
        ),
    ],
)
def test_a_broken_episode_is_a_fault_and_the_others_are_read(
    with_video, episodes, fault, broken, message
):
    fault(with_video)
    items = list(iterate_lerobot(with_video))
    assert [number for number, item in enumerate(items) if isinstance(item, Fault)] == broken
    for number in broken:
        assert re.search(message, f"{items[number].where}: {items[number].problem}")
        assert f"(episode {number})" in items[number].problem
    for number, item in enumerate(items):
        assert number in broken or (item.episode_id, len(item)) == (episodes[number].episode_id, 30)


def test_a_part_of_a_file_is_copied_out_of_it(written):
    """A kept episode does not keep the arrays of the whole file alive."""
    for episode in read_lerobot(written):
        for values in (episode.actions, episode.state):
            assert values.base is None or values.base.nbytes == values.nbytes


def test_a_broken_image_is_named(copied):
    path = copied / "data/chunk-000/file-000.parquet"
    images = pq.read_table(path)["observation.images.workspace"].to_pylist()
    images[2]["bytes"] = b"\x89PNG cut"
    replace_column(path, "observation.images.workspace", pa.array(images))
    with pytest.raises(RoboAlignError, match="frame 2 of camera workspace") as error:
        read_lerobot(copied)[0].frame("workspace", 2)
    assert "synthetic/drawer-open/seed-0" in str(error.value)


def test_a_set_of_another_tool_needs_no_extras(copied, episodes):
    (copied / "meta/roboalign.json").unlink()
    path = copied / "data/chunk-000/file-000.parquet"
    pq.write_table(
        pq.read_table(path), path, row_group_size=7
    )  # row groups that do not follow the episodes
    found = read_lerobot(copied)
    assert found[1].episode_id == content_id("set/episode-000001", episodes[1].actions)
    assert found[1].task == episodes[1].instruction
    assert found[1].cameras["workspace"].projection is None and found[1].nouns == {}
    for t in (0, 13, 29):
        assert found[1].png("workspace", t) == episodes[1].png("workspace", t)
    with pytest.raises(IndexError):
        found[1].png("workspace", 30)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 3), st.data())
def test_any_lengths_round_trip(tmp_path_factory, lengths, per_file, data):
    folder = tmp_path_factory.mktemp("any")
    writer = LeRobotWriter(
        folder,
        fps=5,
        cameras={"a": (4, 6)},
        action_names="xy",
        state_names="xyz",
        episodes_per_file=per_file,
    )
    finite = st.floats(-1e6, 1e6, width=32)
    stored = []
    for number, length in enumerate(lengths):
        actions = data.draw(hnp.arrays(np.float32, (length, 2), elements=finite))
        frames = {"a": np.full((length, 6, 4, 3), number, np.uint8)}
        writer.add(
            episode_id=str(number),
            task="t",
            instruction=f"do {number % 2}",
            actions=actions,
            state=np.zeros((length, 3)),
            frames=frames,
            cameras={"a": Camera("a", 4, 6)},
        )
        stored.append(actions)
    writer.finalize()
    found = read_lerobot(folder)
    assert [episode.instruction for episode in found] == [
        f"do {i % 2}" for i in range(len(lengths))
    ]
    for episode, actions, number in zip(found, stored, range(9)):
        np.testing.assert_array_equal(episode.actions, actions)
        assert episode.success_step is None and episode.privileged is None
        assert (episode.frame("a", len(actions) - 1) == number).all()


def test_a_data_set_tells_what_its_dimensions_are_called(copied):
    about = about_lerobot(copied)
    assert about.action_names == ("x", "y", "z", "gripper")
    assert about.state_names == ("x", "y", "z", "opening")
    assert (about.episodes, about.notes) == (5, ())
    features = json.loads((copied / "meta/info.json").read_text())["features"]
    del features["observation.state"], features["action"]["names"]
    edit_info(copied, features=features)
    about = about_lerobot(copied)
    assert (about.action_names, about.state_names) == ((), ())
    (copied / "meta/info.json").unlink()
    with pytest.raises(RoboAlignError, match=r"info\.json"):
        about_lerobot(copied)
