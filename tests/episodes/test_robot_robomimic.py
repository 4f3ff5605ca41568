"""robomimic and LIBERO files: layouts written here are read back, frames come late, and faults are named."""

import io
import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats import robomimic as robomimic_files
from roboalign.episodes.formats.arrays import float_rows
from roboalign.episodes.formats.robomimic import read_robomimic
from roboalign.episodes.formats.robomimic_file import by_number
from roboalign.episodes.open import format_of, open_robot_data

LIBERO_OBS = {"ee_pos": 3, "ee_ori": 3, "ee_states": 6, "gripper_states": 2, "joint_states": 7}
ROBOMIMIC_OBS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}


def frames(number: int, steps: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (steps, 4, 6, 3), dtype=np.uint8)


def values(number: int, steps: int, width: int) -> np.ndarray:
    return np.random.default_rng([number, width]).normal(size=(steps, width))


def add_demo(
    data: h5py.Group, number: int, obs: dict[str, int], cameras=("agentview_rgb",), steps: int = 5
) -> None:
    demo = data.create_group(f"demo_{number}")
    demo["actions"] = values(number, steps, 7)
    demo["states"] = np.full((steps, 45), np.nan)  # the simulator's: never read
    demo["rewards"] = demo["dones"] = np.array([0] * (steps - 1) + [1], dtype=np.uint8)
    for name, width in obs.items():
        demo[f"obs/{name}"] = values(number, steps, width)
    for camera in cameras:
        demo[f"obs/{camera}"] = frames(number, steps)
    demo["obs/depth"] = np.zeros((steps, 4, 6, 1), dtype=np.float32)
    demo.attrs["num_samples"] = steps


def libero(path: Path, demos=(0, 1), **attributes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps(
            {"language_instruction": "turn on the stove", "domain_name": "x"}
        )
        data.attrs["bddl_file_name"] = (
            "chiliocosm/bddl_files/libero_90/KITCHEN_SCENE3_turn_on_the_stove.bddl"
        )
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Libero_Kitchen", "env_kwargs": {"control_freq": 20}}
        )
        for name, value in attributes.items():
            data.attrs[name] = value
        for number in demos:
            add_demo(data, number, LIBERO_OBS, ("agentview_rgb", "eye_in_hand_rgb"))
    return path


def robomimic(path: Path, env_args=None, cameras=()) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(
            env_args or {"env_name": "Lift", "type": 1, "env_kwargs": {}}
        )
        add_demo(data, 0, ROBOMIMIC_OBS, cameras)
    return path


def place_of(episode: Episode) -> str:
    """Its id without the digest of its actions."""
    return episode.episode_id.rsplit("-", 1)[0]


def decoded(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)))


# What is read ---------------------------------------------------------------------------------------------------------


def test_libero(tmp_path):
    episodes = list(read_robomimic(libero(tmp_path / "stove_demo.hdf5")))
    assert [place_of(episode) for episode in episodes] == [
        "stove_demo.hdf5/demo_0",
        "stove_demo.hdf5/demo_1",
    ]
    second = episodes[1]
    assert (second.instruction, second.fps) == ("turn on the stove", 20.0)
    assert second.task == "KITCHEN_SCENE3_turn_on_the_stove"
    np.testing.assert_array_equal(second.actions, values(1, 5, 7).astype(np.float32))
    expected = np.concatenate([values(1, 5, 3), values(1, 5, 3), values(1, 5, 2)], axis=1)
    np.testing.assert_array_equal(second.state, expected.astype(np.float32))
    assert list(second.cameras) == ["agentview_rgb", "eye_in_hand_rgb"]
    assert (second.cameras["agentview_rgb"].width, second.cameras["agentview_rgb"].height) == (6, 4)
    assert (
        second.png("agentview_rgb", 3).startswith(b"\x89PNG")
        and len(second.images["agentview_rgb"]) == 5
    )
    np.testing.assert_array_equal(second.frame("agentview_rgb", 3), frames(1, 5)[3])
    np.testing.assert_array_equal(decoded(second.images["agentview_rgb"][1:][-1]), frames(1, 5)[4])
    with pytest.raises(IndexError):
        second.images["agentview_rgb"][5]


def test_the_rewards_tell_the_first_success(tmp_path):
    path = libero(tmp_path / "a.hdf5", demos=[0, 1])
    assert [episode.success_step for episode in read_robomimic(path)] == [4, 4]
    for rewards, expected in (
        ([0, 1.0, 0, 1, 1], 1),
        (np.zeros(5), None),
        ([0, 0.5, 0, 1, 1], None),
        ([0, 1], None),
        ([b"x"] * 5, None),
        (None, None),
    ):
        damage(path, rewards=rewards)
        assert [episode.success_step for episode in read_robomimic(path)] == [4, expected]


def test_robomimic_without_images_and_instruction(tmp_path):
    (episode,) = read_robomimic(robomimic(tmp_path / "low_dim.hdf5"))
    assert (episode.task, episode.instruction, episode.fps, episode.cameras) == (
        "Lift",
        "",
        20.0,
        {},
    )
    assert episode.state.shape == (5, 9) and np.isfinite(episode.state).all()


def test_the_control_rate(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"env_name": "Lift", "env_kwargs": {"control_freq": 15}})
    assert next(read_robomimic(path)).fps == 15.0
    assert next(read_robomimic(path, fps=10)).fps == 10.0


def test_a_named_state(tmp_path):
    (episode,) = read_robomimic(
        libero(tmp_path / "a.hdf5", demos=[3]), state=["joint_states", "ee_pos"]
    )
    np.testing.assert_array_equal(episode.state[:, 7:], values(3, 5, 3).astype(np.float32))
    assert next(read_robomimic(tmp_path / "a.hdf5", state="ee_pos")).state.shape == (5, 3)
    assert next(read_robomimic(tmp_path / "a.hdf5", state=())).state.shape == (5, 0)


def test_demonstrations_come_in_the_order_of_their_numbers(tmp_path):
    found = read_robomimic(libero(tmp_path / "a.hdf5", demos=[10, 9, 0, 100]))
    assert [place_of(episode).split("_")[-1] for episode in found] == ["0", "9", "10", "100"]


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_by_number(numbers):
    assert sorted((f"demo_{n}" for n in numbers), key=by_number) == [
        f"demo_{n}" for n in sorted(numbers)
    ]


def test_a_folder_of_files(tmp_path):
    for name in ("goal/b_demo.hdf5", "goal/a_demo.hdf5", "spatial/a_demo.h5"):
        libero(tmp_path / name, demos=[0])
    (tmp_path / "README.md").write_text("no data")
    ids = [place_of(episode) for episode in read_robomimic(tmp_path)]
    assert ids == ["goal/a_demo.hdf5/demo_0", "goal/b_demo.hdf5/demo_0", "spatial/a_demo.h5/demo_0"]


def test_a_file_without_an_ending_is_told_by_its_first_bytes(tmp_path):
    libero(tmp_path / "sets/libero_10", demos=[0])  # as LIBERO's create_dataset.py names it
    libero(
        tmp_path / "sets/libero_10_x0.2", demos=[0]
    )  # an ending of another kind: only where it is given itself
    (tmp_path / "sets/LICENSE").write_text("no data")
    (tmp_path / "sets/notes.hdf5").mkdir()
    assert (
        format_of(tmp_path / "sets") == format_of(tmp_path / "sets/libero_10_x0.2") == "robomimic"
    )
    assert [place_of(episode) for episode in read_robomimic(tmp_path / "sets")] == [
        "libero_10/demo_0"
    ]
    (episode,) = open_robot_data(tmp_path / "sets/libero_10_x0.2")
    assert episode.instruction == "turn on the stove"
    with pytest.raises(RoboAlignError, match="no known data set here"):
        format_of(tmp_path / "sets/LICENSE")


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_compressed_chunks_read_as_what_was_stored(tmp_path, compression):
    (plain,) = read_robomimic(libero(tmp_path / "plain.hdf5", demos=[0]))
    with h5py.File(libero(tmp_path / "small.hdf5", demos=[0]), "r+") as file:
        demo = file["data/demo_0"]
        for name in ("actions", *(f"obs/{key}" for key in demo["obs"])):
            data = demo[name][()]
            del demo[name]
            stored = demo.create_dataset(
                name, data=data, chunks=(2, *data.shape[1:]), compression=compression
            )
            assert stored.id.get_num_chunks() == 3
    (episode,) = open_robot_data(tmp_path / "small.hdf5")
    np.testing.assert_array_equal(episode.actions, plain.actions)
    np.testing.assert_array_equal(episode.state, plain.state)
    for camera in ("agentview_rgb", "eye_in_hand_rgb"):
        for t in (4, 0, 2, 1, 3):
            np.testing.assert_array_equal(episode.frame(camera, t), frames(0, 5)[t])


def test_a_damaged_compressed_chunk_is_the_one_error(tmp_path):
    """A checksum tells: the frames of the first chunk are refused, those of the others read."""
    path = libero(tmp_path / "a.hdf5", demos=[0])
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/obs/agentview_rgb"]
        stored = file.create_dataset(
            "data/demo_0/obs/agentview_rgb",
            data=frames(0, 5),
            chunks=(2, 4, 6, 3),
            compression="gzip",
            fletcher32=True,
        )
        place = stored.id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[place + 10] ^= 1
    path.write_bytes(data)
    (episode,) = open_robot_data(path)
    with pytest.raises(RoboAlignError, match=r"a\.hdf5"):
        episode.frame("agentview_rgb", 1)
    np.testing.assert_array_equal(episode.frame("agentview_rgb", 2), frames(0, 5)[2])


def test_no_file_stays_open_and_episodes_can_be_sent_to_workers(tmp_path):
    stream = read_robomimic(libero(tmp_path / "a.hdf5"))
    first = next(stream)
    with h5py.File(
        tmp_path / "a.hdf5", "r+"
    ) as file:  # refused while another handle is open for reading
        file["data/demo_0/obs/agentview_rgb"][0] = 7
    assert (first.frame("agentview_rgb", 0) == 7).all()  # read now, not when the episode was
    assert (pickle.loads(pickle.dumps(first)).frame("agentview_rgb", 0) == 7).all()
    assert isinstance(next(stream), Episode)


def test_an_instruction_in_words_or_quotes(tmp_path):
    for stored in ('"open it"', ["open", "it"]):
        info = json.dumps({"language_instruction": stored})
        assert (
            next(read_robomimic(libero(tmp_path / "a.hdf5", problem_info=info))).instruction
            == "open it"
        )


# What is refused ------------------------------------------------------------------------------------------------------


def refused(path: Path, **arguments) -> RoboAlignError:
    with pytest.raises(RoboAlignError) as caught:
        read_robomimic(path, **arguments)
    assert caught.value.where and caught.value.fix
    return caught.value


def test_wrong_arguments(tmp_path):
    path = libero(tmp_path / "a.hdf5")
    assert "joint_states" in refused(path, state=["nothing"]).problem
    assert "fps" in refused(path, fps=-1).problem
    assert "neither" in refused(tmp_path / "none").problem
    (tmp_path / "empty").mkdir()
    assert "no HDF5 file" in refused(tmp_path / "empty").problem


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"env_args": "{"}, "env_args is not valid JSON"),
        ({"problem_info": "[]"}, "problem_info is no JSON object"),
        ({"env_args": json.dumps({"env_kwargs": {"control_freq": "fast"}})}, "control_freq"),
        ({"env_args": json.dumps({"env_kwargs": {"control_freq": 0}})}, "control_freq"),
    ],
)
def test_broken_attributes(tmp_path, attributes, problem):
    assert problem in refused(libero(tmp_path / "a.hdf5", **attributes)).problem


def test_files_of_another_layout(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["data"] = np.zeros(3)
    assert "no group /data" in refused(tmp_path / "a.hdf5").problem
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_group("data")
    assert "no demonstration" in refused(tmp_path / "a.hdf5").problem


def test_truncated_files(tmp_path):
    good = libero(tmp_path / "set/good.hdf5")
    cut = libero(tmp_path / "set/cut.hdf5")
    cut.write_bytes(cut.read_bytes()[:2000])
    assert "not a readable HDF5 file" in refused(cut).problem
    fault, *episodes = read_robomimic(tmp_path / "set")
    assert isinstance(fault, Fault) and str(cut) in fault.where and len(episodes) == 2
    good.unlink()
    assert "none of 1 files" in refused(tmp_path / "set").problem


def damage(path: Path, **changes) -> None:
    with h5py.File(path, "r+") as file:
        for name, value in changes.items():
            name = name.replace("__", "/")
            if name == "num_samples":
                file["data/demo_1"].attrs[name] = value
                continue
            del file[f"data/demo_1/{name}"]
            if value is not None:
                file[f"data/demo_1/{name}"] = value


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"actions": None}, "no dataset /data/demo_1/actions"),
        ({"obs": None}, "no group /data/demo_1/obs"),
        ({"obs__ee_pos": None}, "no dataset /data/demo_1/obs/ee_pos"),
        ({"num_samples": 6}, "num_samples is 6"),
        ({"actions": np.full((5, 7), np.nan)}, "not finite at step 0"),
        ({"actions": np.full((5, 7), 1e300)}, "finite"),
        ({"actions": np.zeros((4, 7))}, "4 actions"),
        ({"actions": np.zeros((5, 7, 1))}, "expected numbers [T, D]"),
        ({"actions": np.zeros((0, 7))}, "expected numbers"),
        ({"actions": np.full((5, 7), b"x")}, "expected numbers"),
        (
            {"rewards": np.dtype("f8")},
            "no dataset /data/demo_1/rewards",
        ),  # a named type in its place: seed 2046
        ({"obs__agentview_rgb": frames(0, 3)}, "5 actions"),
        ({"obs__ee_ori": np.zeros((6, 3))}, "5 actions"),
    ],
)
def test_a_broken_demonstration_is_one_fault(tmp_path, changes, problem):
    path = libero(tmp_path / "a.hdf5", demos=[0, 1, 2])
    damage(path, **changes)
    first, fault, last = read_robomimic(path)
    assert isinstance(first, Episode) and isinstance(last, Episode) and isinstance(fault, Fault)
    assert problem in fault.problem and str(path) in fault.where and "demo_1" in fault.where


def test_flipped_bits_never_raise_anything_but_the_one_error(tmp_path, monkeypatch):
    """HDF5 has no checksums here, so a flip may pass; it may not end in a traceback of h5py.

    The places are fixed and none of them is an endless one (below), so the walk through 40 files is spared.
    """
    monkeypatch.setattr(robomimic_files, "endless", lambda files: {})
    path, rng = robomimic(tmp_path / "a.hdf5", cameras=("front",)), np.random.default_rng(0)
    whole, found = path.read_bytes(), 0
    for place in rng.integers(0, len(whole), 40):
        data = bytearray(whole)
        data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            for item in read_robomimic(path):
                found += isinstance(item, Fault)
                if isinstance(item, Episode):
                    [item.frame(camera, 0) for camera in item.cameras]
        except RoboAlignError as error:
            found += 1
            assert "a.hdf5" in str(error)
    assert found


@pytest.mark.parametrize("name", [b"robot0_eef_pos", b"demo_0", b"front"])
def test_a_name_that_is_no_text_is_the_one_error(tmp_path, name):
    path = robomimic(tmp_path / "a.hdf5", cameras=("front",))
    path.write_bytes(path.read_bytes().replace(name, name[:-1] + b"\xb3"))
    with pytest.raises(RoboAlignError, match="no text"):
        next(read_robomimic(path))


def test_frames_that_went_away(tmp_path):
    episode = next(read_robomimic(libero(tmp_path / "a.hdf5")))
    (tmp_path / "a.hdf5").unlink()
    with pytest.raises(RoboAlignError, match=r"a\.hdf5"):
        episode.frame("agentview_rgb", 0)


def test_float_rows():
    np.testing.assert_array_equal(float_rows(np.array([True, False]), "x"), [[1], [0]])
    with pytest.raises(RoboAlignError, match="x: not finite at step 1"):
        float_rows(np.array([0, np.inf]), "x")
