"""RLDS: layouts of known and unknown sets, missing parts, broken episodes; on files written here and on BridgeV2."""

from pathlib import Path

import numpy as np
import pytest
from rlds_sets import ONE, STEPS, TEXT, image, numbers, picture, record, tree, write_set
from tfrecords import example, framed

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode, content_id
from roboalign.episodes.formats.rlds import read_rlds
from roboalign.episodes.robot_data import RobotData

BRIDGE = Path(__file__).parents[2].parent / "shared" / "data" / "bridge_sample"


DROID_STEPS = {
    "action": numbers(7, dtype="float64"),
    "action_dict": tree(
        {"joint_velocity": numbers(7, dtype="float64"), "gripper_position": numbers(1)}
    ),
    "is_first": numbers(dtype="bool"),
    "language_instruction": TEXT,
    "language_instruction_2": TEXT,
    "language_instruction_3": TEXT,
    "observation": tree(
        {
            "cartesian_position": numbers(6),
            "gripper_position": numbers(1),
            "joint_position": numbers(7),
            "exterior_image_1_left": image(180, 320, 3),
            "wrist_image_left": image(180, 320, 3),
        }
    ),
}


def place_of(episode: Episode) -> str:
    """Its id without the digest of its actions."""
    return episode.episode_id.rsplit("-", 1)[0]


def faults(items) -> list[Fault]:
    return [item for item in items if isinstance(item, Fault)]


# What is read ---------------------------------------------------------------------------------------------------------


def test_an_episode(tmp_path):
    (episode,) = read_rlds(write_set(tmp_path / "s", {ONE: [record()]}))
    assert place_of(episode) == f"bridge_x/train/bridge_x-{ONE}/0"
    assert episode.episode_id == content_id(place_of(episode), episode.actions)
    assert (episode.task, episode.instruction, episode.fps) == (
        "push the block",
        "push the block",
        5.0,
    )
    np.testing.assert_array_equal(episode.actions, [[0, 0], [1, -1], [2, -2]])
    np.testing.assert_array_equal(episode.state, [[0, 0, 0], [1, 1, 1], [2, 2, 2]])
    assert episode.actions.dtype == episode.state.dtype == np.float32
    assert list(episode.images) == list(episode.cameras) == ["front"]  # the depth map is none
    assert (episode.cameras["front"].width, episode.cameras["front"].height) == (6, 4)
    assert episode.png("front", 2) == picture(20) and episode.frame("front", 2)[0, 0].tolist() == [
        20,
        20,
        20,
    ]


def test_splits_in_name_order_and_stable_unique_ids(tmp_path):
    shards = {
        "val.tfrecord-00000-of-00001": [record()],
        "train.tfrecord-00001-of-00002": [record()],
        "train.tfrecord-00000-of-00002": [record(), record()],
    }
    folder = write_set(tmp_path / "s", shards, splits=[])
    ids = [place_of(item).removeprefix("bridge_x/") for item in read_rlds(folder)]
    assert ids == [
        "train/bridge_x-train.tfrecord-00000-of-00002/0",
        "train/bridge_x-train.tfrecord-00000-of-00002/1",
        "train/bridge_x-train.tfrecord-00001-of-00002/0",
        "val/bridge_x-val.tfrecord-00000-of-00001/0",
    ]
    assert [place_of(item) for item in read_rlds(folder, split="val")] == [f"bridge_x/{ids[-1]}"]


def droid_record(second: bytes = b"") -> dict:
    return {
        "steps/action": [0.5] * 14,
        "steps/action_dict/joint_velocity": [float(v) for v in range(14)],
        "steps/action_dict/gripper_position": [0.25, 0.75],
        "steps/is_first": [1, 0],
        "steps/language_instruction": [b""] * 2,
        "steps/language_instruction_2": [second] * 2,
        "steps/language_instruction_3": [b"third"] * 2,
        "steps/observation/cartesian_position": [1.0] * 12,
        "steps/observation/gripper_position": [2.0, 3.0],
        "steps/observation/joint_position": [4.0] * 14,
        "steps/observation/exterior_image_1_left": [picture(1, "JPEG", (320, 180))] * 2,
        "steps/observation/wrist_image_left": [picture(2, "JPEG", (320, 180))] * 2,
    }


def test_droid(tmp_path):
    records = [droid_record(), droid_record(b"second")]
    folder = write_set(tmp_path / "s", {ONE: records}, name="droid", steps=DROID_STEPS)
    first, other = read_rlds(folder)
    assert (first.fps, first.instruction, other.instruction) == (15.0, "third", "second")
    np.testing.assert_array_equal(first.state, [[1] * 6 + [2], [1] * 6 + [3]])
    np.testing.assert_array_equal(first.actions, np.full((2, 7), 0.5))
    assert set(first.cameras) == {"exterior_image_1_left", "wrist_image_left"}
    assert (
        first.png("wrist_image_left", 1).startswith(b"\xff\xd8")
        and first.cameras["wrist_image_left"].width == 320
    )
    names = ["action_dict/joint_velocity", "action_dict/gripper_position"]
    first, _ = read_rlds(
        folder, action=names, state="joint_position", instruction="language_instruction_2"
    )
    np.testing.assert_array_equal(first.actions, [[*range(7), 0.25], [*range(7, 14), 0.75]])
    np.testing.assert_array_equal(first.state, np.full((2, 7), 4.0))
    assert first.instruction == ""


def test_an_empty_instruction_stays_and_none_may_be_wanted(tmp_path):
    folder = write_set(tmp_path / "s", {ONE: [record(language_instruction=[b""] * 3)]})
    (episode,) = read_rlds(folder)
    assert (episode.instruction, episode.task) == ("", "bridge_x")
    (episode,) = read_rlds(write_set(tmp_path / "s", {ONE: [record()]}), instruction="", state=())
    assert episode.instruction == "" and episode.state.shape == (3, 0)


# What is refused as a whole -------------------------------------------------------------------------------------------


def refused(folder: Path, **arguments) -> RoboAlignError:
    with pytest.raises(RoboAlignError) as caught:
        read_rlds(folder, **arguments)
    assert caught.value.where and caught.value.fix
    return caught.value


def test_the_control_rate_has_to_be_known_or_given(tmp_path):
    folder = write_set(tmp_path / "s", {ONE: [record()]}, name="bridgework")
    assert "fps=" in refused(folder).fix
    assert next(read_rlds(folder, fps=10)).fps == 10.0
    assert "fps" in refused(folder, fps=0).problem


def test_an_ambiguous_state_lists_the_features(tmp_path):
    observation = tree({"state": numbers(3), "proprio": numbers(3)})
    folder = write_set(
        tmp_path / "s", {ONE: [record()]}, name="mine", steps=STEPS | {"observation": observation}
    )
    error = refused(folder, fps=5)
    assert (
        "state and proprio" in error.problem
        and "observation/proprio" in error.problem
        and "state=" in error.fix
    )
    assert next(read_rlds(folder, fps=5, state="state")).state.shape == (3, 3)
    observation = tree(
        {"joints": numbers(3), "blob": numbers(3, encoding="zlib"), "open": numbers(-1)}
    )
    folder = write_set(
        tmp_path / "s", {ONE: []}, name="mine", steps=STEPS | {"observation": observation}
    )
    assert "['action', 'observation/joints', 'reward']" in refused(folder, fps=5).problem


def test_wrong_names_are_refused(tmp_path):
    folder = write_set(tmp_path / "s", {ONE: [record()]})
    assert "steps/nothing" in refused(folder, action="nothing").problem
    assert "observation/state" in refused(folder, state="nothing").problem
    assert "steps/language_instruction" in refused(folder, instruction="nothing").problem
    assert "'train'" in refused(folder, split="test").problem
    assert "action" in refused(folder, action=()).problem
    other = {name: value for name, value in STEPS.items() if name != "language_instruction"} | {
        "caption": TEXT
    }
    assert "steps/caption" in refused(write_set(tmp_path / "s", {ONE: []}, steps=other)).problem
    folder = write_set(
        tmp_path / "s", {ONE: [record()]}, steps=STEPS | {"action": tree({"arm": numbers(2)})}
    )
    assert "action/arm" in refused(folder).problem


def test_folders_that_are_none(tmp_path):
    assert "dataset_info.json" in refused(tmp_path).where
    folder = write_set(tmp_path / "s", {})
    assert "no tfrecord files" in refused(folder).problem
    folder = write_set(tmp_path / "s", {ONE: [record()]}, fileFormat="riegeli")
    assert "riegeli" in refused(folder).problem
    write_set(tmp_path / "s", {ONE: [record()], "train.tfrecord-00000-of-00002": [record()]})
    assert "several versions" in refused(tmp_path / "s").problem
    texts = (
        "[]",
        "{}",
        "null",
        "{",
        '{"featuresDict": {"features": {"steps": 3}}}',
        '{"name": "x", "splits": 3}',
    )
    for name in ("features.json", "dataset_info.json"):
        for text in texts:
            folder = write_set(tmp_path / "t", {ONE: [record()]})
            (folder / name).write_text(text)
            assert name in refused(folder).where


# What is left out and counted -----------------------------------------------------------------------------------------


def test_missing_shards_splits_and_records(tmp_path):
    splits = [
        {"name": "train", "shardLengths": ["1", "1", "5"]},
        {"name": "val", "shardLengths": ["9"]},
    ]
    shards = {
        "train.tfrecord-00000-of-00003": [record()],
        "train.tfrecord-00002-of-00003": [record()],
    }
    items = list(read_rlds(write_set(tmp_path / "s", shards, splits=splits)))
    shard, records, val = faults(items)
    assert len(items) == 5 and "1 of 3 shards" in shard.problem and "00001" in shard.problem
    assert (
        "1 records, dataset_info.json says 5" in records.problem
        and "00002-of-00003" in records.where
    )
    assert "split val" in val.where and "1 of 1" in val.problem


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"action": None}, "steps/action is missing"),
        ({"action": [b"x"]}, "holds no numbers"),
        ({"action": []}, "no steps"),
        ({"action": [1.0] * 5}, "no multiple of 2"),
        ({"action": [float("nan")] * 6}, "not finite at step 0"),
        (
            {"observation/state": [0.0] * 5 + [float("inf")] + [0.0] * 3},
            "state is not finite at step 1",
        ),
        ({"observation/state": [0.0] * 6}, "3 actions, but 2 states"),
        ({"observation/front": [picture(0)] * 2}, "2 images for 3 steps"),
        ({"observation/front": None}, "0 images"),
        ({"observation/front": [1, 2, 3]}, "images"),
        (
            {"observation/front": [picture(0), b"GIF89a", picture(0)]},
            "neither JPEG nor PNG at step 1",
        ),
        (
            {"observation/front": [picture(0)[:9]] * 3},
            "first image of front is not a readable image",
        ),
        ({"language_instruction": [b"a", b"b", b"b"]}, "changes at step 1"),
        ({"language_instruction": [b"a"]}, "one text a step"),
        ({"language_instruction": [b"\xff"] * 3}, "UTF-8"),
    ],
)
def test_a_broken_episode_is_one_fault(tmp_path, changes, problem):
    folder = write_set(tmp_path / "s", {ONE: [record(), record(**changes), record()]})
    items = list(read_rlds(folder))
    (fault,) = faults(items)
    assert problem in fault.problem and "record 1" in fault.where and ONE in fault.where
    assert [place_of(item)[-2:] for item in items if isinstance(item, Episode)] == ["/0", "/2"]
    with pytest.raises(RoboAlignError, match="record 1"):
        list(RobotData("s", "rlds", lambda: read_rlds(folder), strict=True))


def test_damaged_bytes_and_cut_files(tmp_path):
    folder = write_set(tmp_path / "s", {ONE: [record(), record()]})
    path = folder / f"bridge_x-{ONE}"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        items = list(read_rlds(folder))
        assert len(faults(items)) == 1 and len(items) in (1, 2)
    path.write_bytes(whole[: len(whole) // 2])
    assert len(faults(read_rlds(folder))) >= 1
    path.write_bytes(framed(b"no example") + framed(example(record())))
    fault, episode = read_rlds(folder)
    assert (
        isinstance(fault, Fault)
        and "tf.train.Example" in fault.problem
        and isinstance(episode, Episode)
    )


# Real data ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not BRIDGE.is_dir(), reason="the sample data are not here")
def test_bridge_sample():
    episodes = list(read_rlds(BRIDGE, split="train"))
    assert len(episodes) == 25 and all(isinstance(episode, Episode) for episode in episodes)
    assert {(*e.actions.shape, *e.state.shape, e.fps) for e in episodes} == {(10, 7, 10, 7, 5.0)}
    assert len({e.episode_id for e in episodes}) == 25
    first = episodes[0]
    assert place_of(first) == "bridge_dataset/train/bridge_dataset-train.tfrecord-00000-of-00001/0"
    assert first.instruction == "put cup from counter or drying rack into sink"
    assert sorted(first.cameras) == ["image_0", "image_1", "image_2", "image_3"]
    assert first.frame("image_0", 9).shape == (64, 64, 3) and first.frame("image_3", 0).max() == 0
    # The first six dimensions are the change of the state, which the next state shows up to the controller's lag.
    moved = np.concatenate([np.diff(e.state[:, 0]) for e in episodes])
    asked = np.concatenate([e.actions[:-1, 0] for e in episodes])
    assert np.corrcoef(moved, asked)[0, 1] > 0.5


@pytest.mark.skipif(not BRIDGE.is_dir(), reason="the sample data are not here")
def test_the_split_that_bridge_sample_lacks_is_named():
    items = list(read_rlds(BRIDGE))
    assert len(items) == 26 and "split val" in items[-1].where
