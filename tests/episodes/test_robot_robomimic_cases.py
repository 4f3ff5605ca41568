"""HDF5 recordings as users bring them: other camera layouts, a split, upside-down images, other layouts, links."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.formats.robomimic import about_robomimic, read_robomimic

STEPS = 3
WIDTHS = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2}


def picture(number: int = 0) -> np.ndarray:
    """uint8 [3, 16, 12, 3]"""
    return np.random.default_rng(number).integers(0, 256, (STEPS, 16, 12, 3), dtype=np.uint8)


def write(path: Path, cameras: dict[str, np.ndarray], demos: int = 1, **attributes: str) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, value in attributes.items():
            data.attrs[name] = value
        for number in range(demos):
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = np.full((STEPS, 7), number, np.float32)
            for name, width in WIDTHS.items():
                demo[f"obs/{name}"] = np.zeros((STEPS, width))
            for name, frames in cameras.items():
                demo[f"obs/{name}"] = frames
    return path


def frames_of(path: Path, **options) -> np.ndarray:
    (episode,) = read_robomimic(path, **options)
    return np.stack([episode.frame("front", t) for t in range(STEPS)])


@pytest.mark.parametrize("kind", ["rgba", "first", "float", "uint16", "gray"])
def test_every_camera_layout_is_read(tmp_path, kind):
    rgb = picture()
    stored = {
        "rgba": np.concatenate([rgb, np.full((*rgb.shape[:3], 1), 255, np.uint8)], axis=3),
        "first": rgb.transpose(0, 3, 1, 2),
        "float": (rgb / 255).astype(np.float32),
        "uint16": rgb.astype(np.uint16) * 257,
        "gray": rgb[..., :1],
    }[kind]
    expected = np.repeat(rgb[..., :1], 3, axis=3) if kind == "gray" else rgb
    path = write(tmp_path / "a.hdf5", {"front": stored})
    (episode,) = read_robomimic(path)
    assert (episode.cameras["front"].width, episode.cameras["front"].height) == (12, 16)
    assert np.array_equal(frames_of(path), expected)
    assert about_robomimic(path).notes == ()


def test_what_looks_like_a_camera_and_is_none_is_named(tmp_path):
    depth = np.ones((STEPS, 16, 12, 1), np.float32)
    path = write(tmp_path / "a.hdf5", {"front": picture(), "front_depth": depth, "range": depth})
    (episode,) = read_robomimic(path)
    assert list(episode.images) == ["front"]
    assert about_robomimic(path).notes == (
        "Observation front_depth is left out of the cameras: its name says that it is no color image",
        "Observation range is left out of the cameras: one channel of float32: depth or a mask, not color",
    )


def test_a_filter_key_chooses_and_is_named(tmp_path):
    path = write(tmp_path / "a.hdf5", {}, demos=4)
    with h5py.File(path, "a") as file:
        file["mask/train"] = np.array([b"demo_1", b"demo_0"])
        file["mask/valid"] = np.array([b"demo_3"])
    chosen = [episode.actions[0, 0] for episode in read_robomimic(path, filter="train")]
    assert chosen == [0, 1]
    assert [episode.actions[0, 0] for episode in read_robomimic(path)] == [0, 1, 2, 3]
    assert about_robomimic(path).notes == (
        "All demonstrations are read; the file's filter keys are train (2), valid (1): "
        "choose with --read filter=NAME",
    )
    assert about_robomimic(path, filter="train").notes == ()
    with pytest.raises(RoboAlignError, match="no filter key 'test' in mask; there is train, valid"):
        read_robomimic(path, filter="test")


@pytest.mark.parametrize(
    ("attributes", "flip", "turn"),
    [
        ({}, None, lambda f: f),
        ({"macros_image_convention": "opencv"}, None, lambda f: f),
        ({"macros_image_convention": "opengl"}, None, lambda f: f[:, ::-1]),
        (
            {"macros_image_convention": "opengl", "bddl_file_name": "a.bddl"},
            None,
            lambda f: f[:, ::-1, ::-1],
        ),
        ({"macros_image_convention": "opengl"}, "none", lambda f: f),
        ({"macros_image_convention": "opengl"}, False, lambda f: f),
        ({}, "rows", lambda f: f[:, ::-1]),
        ({}, "rotate", lambda f: f[:, ::-1, ::-1]),
        ({}, True, lambda f: f[:, ::-1, ::-1]),
    ],
)
def test_frames_are_turned_by_the_files_own_record(tmp_path, attributes, flip, turn):
    path = write(tmp_path / "a.hdf5", {"front": picture()}, **attributes)
    assert np.array_equal(frames_of(path, flip=flip), turn(picture()))


def test_turning_is_said(tmp_path):
    opengl = {"macros_image_convention": "opengl", "bddl_file_name": "a.bddl"}
    path = write(tmp_path / "a.hdf5", {"front": picture()}, **opengl)
    assert about_robomimic(path).notes == (
        "Images are stored upside down (macros_image_convention is opengl): they are rotated by "
        "180 degrees; --read flip=none keeps them as stored",
    )
    assert about_robomimic(path, flip="rotate").notes == ()
    with pytest.raises(RoboAlignError, match="flip is 'up'"):
        read_robomimic(path, flip="up")


def test_states_alone_and_other_layouts_are_said(tmp_path):
    with h5py.File(tmp_path / "states.hdf5", "w") as file:
        file["data/demo_1/states"], file["data/demo_1/actions"] = np.zeros((9, 4)), np.zeros((9, 7))
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["observation/head/rgb"], file["joint_action/vector"] = np.zeros(9), np.zeros((9, 14))
    with pytest.raises(RoboAlignError) as caught:
        read_robomimic(tmp_path / "states.hdf5")
    assert "a recording of simulator states: /data/demo_1 has actions, states" in str(caught.value)
    assert "dataset_states_to_obs.py" in caught.value.fix
    with pytest.raises(RoboAlignError) as caught:
        read_robomimic(tmp_path / "other.hdf5")
    assert caught.value.problem == (
        "another layout than robomimic's: no group data; there is joint_action, observation"
    )


def secret_file(folder: Path, kind: str) -> Path:
    """A file whose camera, or whose demonstration, is stored in another file."""
    path = write(folder / "x.hdf5", {})
    frames = picture()
    (folder / "raw.bin").write_bytes(frames.tobytes())
    with h5py.File(folder / "other.hdf5", "w") as other:
        other["frames"] = frames
        other["obs/front"] = frames
    with h5py.File(path, "a") as file:
        obs = file["data/demo_0/obs"]
        if kind == "storage":
            place = [(str(folder / "raw.bin"), 0, frames.size)]
            obs.create_dataset("front", frames.shape, "u1", external=place)
        elif kind == "link":
            obs["front"] = h5py.ExternalLink(str(folder / "other.hdf5"), "/frames")
        elif kind == "soft":
            file["elsewhere"] = h5py.ExternalLink(str(folder / "other.hdf5"), "/obs")
            obs["front"] = h5py.SoftLink("/elsewhere/front")
        else:
            layout = h5py.VirtualLayout(frames.shape, "u1")
            layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "frames", frames.shape)
            obs.create_virtual_dataset("front", layout)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("storage", "stored in another file, "),
        ("link", "a link to another file, "),
        ("soft", "a link to another file, "),
        ("virtual", "made of another file, "),
    ],
)
def test_nothing_outside_of_the_file_is_read(tmp_path, kind, said):
    path = secret_file(tmp_path, kind)
    (fault,) = read_robomimic(path)
    assert isinstance(fault, Fault) and said + str(tmp_path) in fault.problem
    assert "external=true" in fault.fix
    assert np.array_equal(frames_of(path, external=True), picture())


def test_a_link_inside_of_the_file_is_read(tmp_path):
    path = write(tmp_path / "a.hdf5", {})
    with h5py.File(path, "a") as file:
        file["frames"] = picture()
        file["data/demo_0/obs/front"] = h5py.SoftLink("/frames")
    assert np.array_equal(frames_of(path), picture())


def test_libero_instruction_still_read(tmp_path):
    problem = json.dumps({"language_instruction": '"open the drawer"'})
    (episode,) = read_robomimic(write(tmp_path / "a.hdf5", {}, problem_info=problem))
    assert episode.instruction == "open the drawer"
