"""Images of question-answering data: from folders, archives and bytes; paths that lead out; damage of every kind."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from roboalign.conversations.qa import images
from roboalign.conversations.qa.images import (
    Folder,
    LazyImage,
    TarArchive,
    ZipArchive,
    image_of,
    inner_path,
    open_store,
)
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes import pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def png(mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, images.Store]:
    """The same picture at a/b.png of a folder, a zip and a tar, behind other members."""
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/a/b.png").write_bytes(png())
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("note.txt", "x" * 5000)
        archive.writestr("a/b.png", png())
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x.zip", "./other")
        archive.add(tmp_path / "root/a/b.png", "./a/b.png")
    return {name: open_store(tmp_path / name) for name in ("root", "x.zip", "x.tar")}


def test_same_image_from_every_store(stores):
    for store in stores.values():
        image = image_of("a/b.png", store, "record 1")
        assert image.data() == png() and image.size() == (9, 6)
        assert np.array_equal(image.pixels(), PIXELS)
        missing = image_of("a/c.png", store, "record 1").pixels()
        assert (
            isinstance(missing, Fault)
            and missing.where.startswith("record 1, ")
            and "c.png" in missing.where
        )


def test_types_of_stores_and_refused_ones(stores, tmp_path):
    assert [type(store) for store in stores.values()] == [Folder, ZipArchive, TarArchive]
    with pytest.raises(RoboAlignError, match=r"unpack it: tar xf x.tar.gz"):
        open_store(tmp_path / "x.tar.gz")
    with pytest.raises(RoboAlignError, match="does not exist"):
        open_store(tmp_path / "none.zip")


def test_a_tar_is_searched_once_and_only_when_asked(stores, monkeypatch):
    opened = []
    original = tarfile.open
    monkeypatch.setattr(
        tarfile, "open", lambda *args, **kw: opened.append(args) or original(*args, **kw)
    )
    image = image_of("a/b.png", stores["x.tar"], "record 1")
    assert opened == []
    for _ in range(3):
        assert image.data() == png()
    assert len(opened) == 1


def test_bytes_and_paths_of_parquet(stores):
    store = stores["root"]
    assert image_of({"bytes": png(), "path": "z.png"}, store, "r").data() == png()
    assert image_of(png(), store, "r").data() == png()
    assert image_of({"bytes": None, "path": "a/b.png"}, store, "r").data() == png()
    for nothing in (None, "", " ", 3, [], {}, {"bytes": None, "path": None}):
        with pytest.raises(RoboAlignError, match="not a path or bytes"):
            image_of(nothing, store, "r")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_every_mode_becomes_rgb(mode):
    pixels = LazyImage("x", "r", held=png(mode)).pixels()
    assert isinstance(pixels, np.ndarray) and pixels.shape == (6, 9, 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "name, problem",
    [
        ("http://x.org/a.png", "URL"),
        ("HTTPS://x.org/a.png", "URL"),
        ("s3://b/a.png", "URL"),
        ("file:///etc/a", "URL"),
        ("data:image/png;base64,AAAA", "URL"),
        ("/etc/passwd", "leaves"),
        ("../a.png", "leaves"),
        ("a/../../b", "leaves"),
        ("a\\..\\b", "leaves"),
        ("C:\\a.png", "leaves"),
        ("\\\\host\\a.png", "leaves"),
        ("..", "leaves"),
        ("/x/frames/../../a.png", "leaves"),
    ],
)
def test_paths_that_lead_out_are_refused(name, problem):
    with pytest.raises(RoboAlignError, match=problem):
        inner_path(name, "frames")


def test_paths_that_stay(tmp_path):
    assert inner_path("./a//b..c.png") == "a/b..c.png"
    assert inner_path("49_bridge#episode_1/f.png") == "49_bridge#episode_1/f.png"
    assert inner_path("/mnt/x/frames/1/a.png", "frames") == "frames/1/a.png"
    assert inner_path("x/a:b.png") == "x/a:b.png"


@given(st.text(alphabet="ab./\\:~", max_size=12))
def test_no_path_leaves_the_folder(name):
    root = Path("/root/images")
    try:
        inner = inner_path(name)
    except RoboAlignError:
        return
    assert (root / inner).resolve().is_relative_to(root)


def test_a_tar_that_shrinks_after_it_was_searched(stores):
    image = image_of("a/b.png", stores["x.tar"], "r")
    assert image.data() == png()
    whole = stores["x.tar"].path.read_bytes()
    stores["x.tar"].path.write_bytes(whole[: whole.rindex(png()) + 20])
    assert image.data().problem == f"the archive ends after 20 of {len(png())} bytes"


def test_tar_links_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(png())
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo(f"link{kind.decode()}.png")
            member.type, member.linkname = kind, str(tmp_path / "secret")
            archive.addfile(member)
    store = open_store(tmp_path / "x.tar")
    for kind in "12":
        assert isinstance(image_of(f"link{kind}.png", store, "r").data(), Fault)


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_truncated_archives_are_faults(stores, name):
    store = stores[name]
    whole = store.path.read_bytes()
    start = whole.index(png()[:8]) if name == "x.tar" else 50
    for cut in (0, 10, start - 600 if name == "x.tar" else 30, start + 20):
        store.path.write_bytes(whole[:cut])
        fault = image_of("a/b.png", open_store(store.path), "r").pixels()
        assert isinstance(fault, Fault) and "r, " in fault.where and fault.problem


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["png", "jpeg", "gif", "webp", "bmp", "tiff"]), st.data())
def test_flipped_and_cut_images_are_faults_or_pixels(form, data):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form)
    file = bytearray(buffer.getvalue())
    for at in data.draw(st.lists(st.integers(0, len(file) - 1), max_size=4)):
        file[at] ^= data.draw(st.integers(1, 255))
    image = LazyImage("x", "record 5", held=bytes(file[: data.draw(st.integers(0, len(file)))]))
    for found in (image.pixels(), image.size()):
        assert not isinstance(found, Fault) or found.where == "record 5, image x"
    assert isinstance(LazyImage("x", "r", held=bytes(file[:5])).pixels(), Fault)


def test_a_bomb_is_not_unpacked(stores, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_IMAGE_BYTES", 100)
    monkeypatch.setattr(images, "MOST_IMAGE_BYTES", 100)
    for store in stores.values():
        fault = image_of("a/b.png", store, "r").data()
        assert isinstance(fault, Fault) and "too many for an image" in fault.problem
    monkeypatch.setattr(pictures, "MAX_PIXELS", 50)
    fault = LazyImage("x", "r", held=png()).pixels()
    assert isinstance(fault, Fault) and "9 x 6 pixels are too many" in fault.problem


def test_flipped_byte_in_a_zip_member_is_a_fault(stores):
    store = stores["x.zip"]
    whole = bytearray(store.path.read_bytes())
    whole[whole.index(b"a/b.png") + 30] ^= 255
    store.path.write_bytes(whole)
    assert isinstance(image_of("a/b.png", open_store(store.path), "r").data(), Fault)
    assert isinstance(image_of("a\0b.png", stores["root"], "r").data(), Fault)
