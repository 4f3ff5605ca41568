"""Any stored picture as RGB: values by hand, for each kind of file and array."""

import io
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from roboalign.core.errors import RoboAlignError
from roboalign.episodes import pictures
from roboalign.episodes.pictures import (
    PixelLayout,
    layout_of,
    read_picture_file,
    rgb_of_file,
    size_of_file,
)

RED, WHITE, BLACK = [255, 0, 0], [255, 255, 255], [0, 0, 0]


def file_of(picture: Image.Image, form: str = "PNG", **more) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **more)
    return buffer.getvalue()


def corner() -> Image.Image:
    """6 wide, 4 high, white, red at the top left."""
    stored = np.full((4, 6, 3), 255, np.uint8)
    stored[:2, :2] = RED
    return Image.fromarray(stored)


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [
        (1, (6, 4), (0, 0)),
        (2, (6, 4), (0, 5)),
        (3, (6, 4), (3, 5)),
        (4, (6, 4), (3, 0)),
        (5, (4, 6), (0, 0)),
        (6, (4, 6), (0, 3)),
        (7, (4, 6), (5, 3)),
        (8, (4, 6), (5, 0)),
    ],
)
def test_the_orientation_is_applied(orientation, size, red):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(corner(), exif=exif)
    assert size_of_file(data) == size
    shown = rgb_of_file(data)
    assert shown.shape == (size[1], size[0], 3)
    assert shown[red].tolist() == RED
    others = {(0, 0), (0, -1), (-1, 0), (-1, -1)}
    assert sum(shown[place].tolist() == RED for place in others) == 1


def test_transparency_is_laid_on_white():
    drawn = np.zeros((4, 4, 4), np.uint8)
    drawn[1, 1, 3], drawn[2, 2] = 255, (255, 0, 0, 128)
    shown = rgb_of_file(file_of(Image.fromarray(drawn)))
    assert shown[0, 0].tolist() == WHITE and shown[1, 1].tolist() == BLACK
    assert shown[2, 2].tolist() == [255, 127, 127]


def test_gray_with_alpha_and_a_palette_with_a_transparent_color():
    gray = np.array([[[0, 0], [0, 255]]], np.uint8)
    assert rgb_of_file(file_of(Image.fromarray(gray, "LA"))).tolist() == [[WHITE, BLACK]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([*BLACK, *RED])
    assert rgb_of_file(file_of(palette)).tolist() == [[BLACK, RED]]
    assert rgb_of_file(file_of(palette, transparency=0)).tolist() == [[WHITE, RED]]


def test_sixteen_bits_are_scaled():
    ramp = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    shown = rgb_of_file(file_of(Image.fromarray(ramp)))
    assert shown[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (shown == shown[..., :1]).all()


def test_float_files_from_0_to_1_are_scaled_and_others_refused():
    values = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert rgb_of_file(file_of(Image.fromarray(values), "TIFF"))[0, :, 1].tolist() == [0, 128, 255]
    with pytest.raises(RoboAlignError, match="go from 0 to 200; their range must be 0 to 1"):
        rgb_of_file(file_of(Image.fromarray(values * 200), "TIFF"))
    with pytest.raises(RoboAlignError, match="32-bit integers have no declared range"):
        rgb_of_file(file_of(Image.fromarray(np.array([[7]], np.int32)), "TIFF"))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_usual_files_are_as_pillow_reads_them(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for data in (
        file_of(Image.fromarray(pixels)),
        file_of(Image.fromarray(pixels), "JPEG"),
        file_of(Image.fromarray(pixels[..., 0])),
    ):
        expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(rgb_of_file(data), expected)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 23)
    with pytest.raises(RoboAlignError, match="6 x 4 pixels are too many"):
        rgb_of_file(file_of(corner()))


def test_a_message_is_the_same_on_every_run():
    texts = set()
    for _ in range(2):
        with pytest.raises(RoboAlignError) as caught:
            rgb_of_file(b"no image at all")
        texts.add(str(caught.value))
    (text,) = texts
    assert "no known image format" in text and "0x" not in text


def test_only_plain_files_inside_the_folder_are_read(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"a")
    (tmp_path / "secret").write_bytes(b"s")
    os.mkfifo(folder / "fifo.png")
    (folder / "inner.png").symlink_to("a.png")
    (folder / "outer.png").symlink_to(tmp_path / "secret")
    (folder / "zero.png").symlink_to("/dev/zero")
    assert read_picture_file(folder / "a.png", folder) == b"a"
    assert read_picture_file(folder / "inner.png", folder) == b"a"
    for name, links, problem in (
        ("fifo.png", False, "not a plain file"),
        (".", False, "not a plain file"),
        ("outer.png", False, "a link leads out of the image folder"),
        ("zero.png", False, "a link leads out of the image folder"),
        ("zero.png", True, "not a plain file"),
        ("none.png", False, "the image does not exist"),
    ):
        with pytest.raises(RoboAlignError) as caught:
            read_picture_file(folder / name, folder, links=links)
        assert caught.value.problem == problem
    assert read_picture_file(folder / "outer.png", folder, links=True) == b"s"


def test_a_snapshot_of_the_hugging_face_cache_may_link_to_its_blobs(tmp_path):
    images = tmp_path / "datasets--a--b/snapshots/0123/images"
    images.mkdir(parents=True)
    blob = tmp_path / "datasets--a--b/blobs/f00"
    blob.parent.mkdir()
    blob.write_bytes(b"b")
    (images / "x.png").symlink_to("../../../blobs/f00")
    assert read_picture_file(images / "x.png", images) == b"b"


# Arrays ---------------------------------------------------------------------------------------------------------------


def stored_picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def test_every_layout_gives_the_same_picture():
    rgb = stored_picture()
    opaque = np.full((9, 12, 1), 255, np.uint8)
    for stored in (
        rgb,
        np.concatenate([rgb, opaque], axis=2),
        rgb.transpose(2, 0, 1),
        np.concatenate([rgb, opaque], axis=2).transpose(2, 0, 1),
        (rgb / 255).astype(np.float32),
        (rgb / 255).astype(np.float64).transpose(2, 0, 1),
        rgb.astype(np.uint16) * 257,
    ):
        layout = layout_of("front_rgb", stored.shape, stored.dtype)
        assert isinstance(layout, PixelLayout) and (layout.width, layout.height) == (12, 9)
        assert np.array_equal(layout.rgb(stored), rgb)


def test_one_channel_of_bytes_is_gray():
    gray = stored_picture()[..., :1]
    layout = layout_of("wrist", gray.shape, gray.dtype)
    assert np.array_equal(layout.rgb(gray), np.repeat(gray, 3, axis=2))


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "why"),
    [
        ("agentview_depth", (32, 32, 1), "float32", "its name says"),
        ("depth_image", (32, 32, 3), "uint8", "its name says"),
        ("front_segmentation", (32, 32, 1), "uint8", "its name says"),
        ("distance_to_camera", (32, 32, 1), "float32", "its name says"),
        ("front", (32, 32, 1), "float32", "one channel of float32: depth or a mask"),
        ("front", (32, 32, 1), "uint16", "one channel of uint16: depth or a mask"),
        ("front", (32, 32, 3), "int64", "int64 has no declared range"),
        ("front", (3, 32, 3), "uint8", "could be first or last"),
    ],
)
def test_what_is_no_color_image_is_named(name, shape, dtype, why):
    found = layout_of(name, shape, dtype)
    assert isinstance(found, str) and why in found


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((7,), "float32"), ((4, 4), "float32"), ((2, 4, 4), "float64"), ((32, 32, 6), "uint8")],
)
def test_other_arrays_are_no_pictures(shape, dtype):
    assert layout_of("poses", shape, dtype) is None


def test_a_float_beyond_1_is_refused():
    pixels = np.full((9, 9, 3), 128.0, np.float32)
    layout = layout_of("front", pixels.shape, pixels.dtype)
    with pytest.raises(RoboAlignError, match="demo_3: float pixels go from 128 to 128"):
        layout.rgb(pixels, where="demo_3")
