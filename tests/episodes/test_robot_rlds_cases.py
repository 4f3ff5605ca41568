"""RLDS as users bring it: two sets in one folder, pictures stored as tensors, depth."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rlds_sets import ONE, STEPS, numbers, record, tree, write_set
from tfrecords import example, framed

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.formats.rlds import about_rlds, read_rlds

T = 3


def two_sets(folder: Path) -> Path:
    """The files of kitchen, which dataset_info.json names, and of office."""
    rows = {"kitchen": b"open the drawer", "office": b"press the button"}
    write_set(folder, {ONE: [record(language_instruction=[rows["kitchen"]] * T)]}, name="kitchen")
    other = record(language_instruction=[rows["office"]] * T)
    (folder / f"office-{ONE}").write_bytes(framed(example(other)) * 2)
    return folder


def test_two_sets_in_one_folder_are_named_and_an_option_chooses(tmp_path):
    folder = two_sets(tmp_path / "s")
    with pytest.raises(RoboAlignError) as caught:
        read_rlds(folder, fps=5)
    assert caught.value.problem == (
        "the files of 2 data sets are in one folder: kitchen, office; dataset_info.json is of kitchen"
    )
    for name, instruction, count in (
        ("kitchen", "open the drawer", 1),
        ("office", "press the button", 2),
    ):
        episodes = list(read_rlds(folder, fps=5, name=name))
        assert [episode.instruction for episode in episodes] == [instruction] * count
        assert episodes[0].episode_id.startswith(f"{name}/train/{name}-train.tfrecord")
    with pytest.raises(RoboAlignError, match=r"no files of the data set 'garden'; there are"):
        read_rlds(folder, fps=5, name="garden")


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (T, 9, 10, 3), dtype=np.uint8)


def tensor_set(folder: Path, feature: dict, values) -> Path:
    steps = {**STEPS, "observation": tree({"state": numbers(3), "wrist": feature})}
    row = record(**{"observation/front": None, "observation/depth": None})
    return write_set(folder, {ONE: [row | {"steps/observation/wrist": values}]}, steps=steps)


def tensor(dtype: str, *sizes: int, encoding: str = "none") -> dict:
    feature = numbers(*sizes, dtype=dtype)
    feature["tensor"]["encoding"] = encoding
    return feature


@pytest.mark.parametrize("kind", ["none", "bytes", "zlib", "first", "float"])
def test_a_tensor_that_holds_pictures_is_a_camera(tmp_path, kind):
    rgb = pixels()
    feature, values = {
        "none": (tensor("uint8", 9, 10, 3), rgb.ravel().tolist()),
        "bytes": (tensor("uint8", 9, 10, 3, encoding="bytes"), [f.tobytes() for f in rgb]),
        "zlib": (
            tensor("uint8", 9, 10, 3, encoding="zlib"),
            [zlib.compress(f.tobytes()) for f in rgb],
        ),
        "first": (tensor("uint8", 3, 9, 10), rgb.transpose(0, 3, 1, 2).ravel().tolist()),
        "float": (tensor("float32", 9, 10, 3), (rgb / 255).ravel().tolist()),
    }[kind]
    folder = tensor_set(tmp_path / "s", feature, values)
    (episode,) = read_rlds(folder)
    camera = episode.cameras["wrist"]
    assert (camera.width, camera.height) == (10, 9)
    assert np.array_equal([episode.frame("wrist", t) for t in range(T)], rgb)
    assert about_rlds(folder).notes == ()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([zlib.compress(bytes(271))] * T, "expected 3 pictures of 270 bytes"),
        ([b"junk"] * T, "not zlib data"),
        ([zlib.compress(bytes(270))] * 2, "expected 3 pictures of 270 bytes"),
    ],
)
def test_a_tensor_of_another_size_is_a_fault(tmp_path, values, problem):
    feature = tensor("uint8", 9, 10, 3, encoding="zlib")
    (fault,) = read_rlds(tensor_set(tmp_path / "s", feature, values))
    assert isinstance(fault, Fault) and problem in fault.problem


def test_depth_is_left_out_and_named(tmp_path):
    folder = write_set(tmp_path / "s", {ONE: [record()]})
    (episode,) = read_rlds(folder)
    assert list(episode.images) == ["front"]
    assert about_rlds(folder).notes == (
        "Feature observation/depth is left out of the cameras: its name says that it is no color image",
    )
    described = json.loads((folder / "features.json").read_text())
    steps = described["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    observation = steps["featuresDict"]["features"]["observation"]["featuresDict"]["features"]
    observation["front"]["image"]["dtype"] = "uint16"
    (folder / "features.json").write_text(json.dumps(described))
    assert about_rlds(folder).notes[1] == (
        "Feature observation/front is left out of the cameras: an image of uint16: depth, not color"
    )


def test_an_image_with_transparency_is_laid_on_white(tmp_path):
    steps = {**STEPS, "observation": tree({"state": numbers(3), "front": {"image": {}}})}
    row = record(**{"observation/depth": None, "observation/front": [transparent()] * T})
    (episode,) = read_rlds(write_set(tmp_path / "s", {ONE: [row]}, steps=steps))
    assert episode.frame("front", 0).tolist() == [[[255, 255, 255]] * 6] * 4
    assert episode.png("front", 0) == transparent()


def transparent() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (6, 4), (0, 0, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()
