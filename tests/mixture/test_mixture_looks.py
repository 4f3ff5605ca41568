"""The same picture is found whatever its encoding and size; another one is not."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixing_sources import encoded, picture
from PIL import Image, ImageDraw, ImageFile

from roboalign.core.errors import RoboAlignError
from roboalign.mixture.looks import LOOK_DTYPE, SeenImages, look_of, thumbnail


def seen_of(files: list[bytes], distance: int = 7, difference: int = 12) -> SeenImages:
    images = np.zeros(len(files), dtype=LOOK_DTYPE)
    for number, file in enumerate(files):
        thumb = thumbnail(file)
        images[number] = (number, look_of(thumb), thumb.reshape(-1))
    return SeenImages(images, distance, difference)


def found(seen: SeenImages, file: bytes) -> list[int]:
    thumb = thumbnail(file)
    return seen.near(look_of(thumb), thumb).tolist()


SEEDS = range(20)


@pytest.mark.parametrize(
    "change",
    [
        lambda im: encoded(im, "JPEG", quality=80),
        lambda im: encoded(im, "JPEG", quality=50),
        lambda im: encoded(im.resize((48, 36), Image.Resampling.LANCZOS)),
        lambda im: encoded(im.resize((250, 188), Image.Resampling.BICUBIC), "JPEG", quality=80),
        lambda im: encoded(im, "WEBP", quality=80),
    ],
    ids=["q80", "q50", "half", "larger", "webp"],
)
def test_a_re_encoded_or_rescaled_picture_is_found_and_no_other(change):
    seen = seen_of([encoded(picture(seed)) for seed in SEEDS])
    for seed in SEEDS:
        assert found(seen, change(picture(seed))) == [seed]
        assert found(seen, change(picture(seed + 100))) == []


def test_a_camera_that_does_not_move_sees_other_pictures():
    def scene(x: int) -> bytes:
        image = picture(0, (128, 128))
        ImageDraw.Draw(image).rectangle((x, 60, x + 7, 67), fill="black")
        return encoded(image)

    seen = seen_of([scene(40)])
    assert found(seen, scene(40)) == [0]
    thumb = thumbnail(scene(48))
    assert seen.alike(look_of(thumb)).tolist() == [0]  # the hash cannot tell them apart ..
    assert seen.near(look_of(thumb), thumb).tolist() == []  # .. the thumbnail can


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=30),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 63)),
    st.integers(0, 7),
)
def test_the_sieve_finds_what_going_through_all_finds(
    looks: list[int], look: int, flips: list[int], distance: int
):
    near = look
    for bit in flips[:8]:
        near ^= 1 << bit
    looks = [*looks, near]
    images = np.zeros(len(looks), dtype=LOOK_DTYPE)
    images["look"] = looks
    expected = [n for n, other in enumerate(looks) if (other ^ look).bit_count() <= distance]
    for few in (0, 4096):
        assert SeenImages(images, distance, 0, few).alike(look).tolist() == expected


def test_exact_bytes_are_found_among_signed_hashes():
    images = np.zeros(4, dtype=LOOK_DTYPE)
    images["sha"] = [5, -7, 5, 2**62]
    seen = SeenImages(images, 7, 12)
    assert (
        sorted(seen.exact(5).tolist()) == [0, 2]
        and seen.exact(-7).tolist() == [1]
        and seen.exact(6).size == 0
    )


def test_nothing_to_compare_with():
    assert found(SeenImages(np.zeros(0, dtype=LOOK_DTYPE), 7, 12), encoded(picture(0))) == []


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_truncated_image_raises(format: str):
    data = encoded(picture(0), format)
    with pytest.raises(Exception, match=r"."):
        thumbnail(data[: len(data) // 2])


def test_a_truncated_image_raises_where_another_library_allows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(picture(0), "PNG")
    with pytest.raises(RoboAlignError, match="not a readable image"):
        thumbnail(data[: len(data) // 2])


def test_every_mode_has_a_thumbnail():
    for mode in ("RGBA", "P", "L", "1", "CMYK"):
        buffer = io.BytesIO()
        picture(0).convert(mode).save(buffer, "TIFF")
        assert thumbnail(buffer.getvalue()).shape == (16, 16)
