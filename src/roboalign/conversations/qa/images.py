"""Read images of question-answering data: from a folder, a zip or tar archive, or as stored bytes.

Nothing is opened before it is requested, and nothing is ever downloaded.
"""

import re
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.pictures import (
    MOST_IMAGE_BYTES,
    read_picture_file,
    rgb_of_file,
    size_of_file,
)

_Result = TypeVar("_Result")
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Folder:
    """Image files below a folder; with `links` they may be links that leave it."""

    path: Path
    links: bool = False

    def read(self, name: str) -> bytes:
        """Return the bytes of a file. Raises RoboAlignError as `read_picture_file`."""
        return read_picture_file(self.path / name, self.path, links=self.links)


@dataclass(frozen=True)
class ZipArchive:
    """Members of a zip file, read one at a time.

    Each forked worker needs its own instance: shared ones would share the file position.
    """

    path: Path

    @cached_property
    def _opened(self) -> zipfile.ZipFile | str:
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            return str(error)

    def read(self, name: str) -> bytes:
        """Return the bytes of a member.

        Raises RoboAlignError if it is missing, damaged or too large.
        """
        where = f"{self.path}, member {name}"
        archive = self._opened
        if isinstance(archive, str):
            raise RoboAlignError(
                f"not a readable zip archive ({archive})", where=where, fix="download it again"
            )
        try:
            if (size := archive.getinfo(name).file_size) > MOST_IMAGE_BYTES:
                raise RoboAlignError(f"{size} bytes are too many for an image", where=where)
            return archive.read(name)
        except KeyError:
            raise RoboAlignError("the archive has no such member", where=where) from None
        except RoboAlignError:
            raise
        except Exception as error:  # a damaged member: zlib, struct, EOF, password and more
            problem = f"the member cannot be read ({error})"
            raise RoboAlignError(problem, where=where, fix="download the archive again") from None


@dataclass(frozen=True)
class TarArchive:
    """Members of an uncompressed tar file; their offsets are indexed on the first access."""

    path: Path

    @cached_property
    def _index(self) -> tuple[dict[str, tuple[int, int]], str]:
        """Return name -> (offset, size), and why the search ended early ("" if it did not)."""
        found: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(self.path, "r:") as archive:
                for member in archive:
                    if member.isfile() and member.sparse is None:  # links could lead anywhere
                        found[str(PurePosixPath(member.name))] = (member.offset_data, member.size)
        except (tarfile.TarError, OSError, ValueError) as error:
            return found, str(error)
        return found, ""

    def read(self, name: str) -> bytes:
        """Return the bytes of a member.

        Raises RoboAlignError if it is missing, cut short or too large.
        """
        where = f"{self.path}, member {name}"
        index, damage = self._index
        if name not in index:
            problem = (
                f"the archive is damaged ({damage})" if damage else "the archive has no such member"
            )
            raise RoboAlignError(
                problem, where=where, fix="download the archive again" if damage else ""
            )
        offset, size = index[name]
        if size > MOST_IMAGE_BYTES:
            raise RoboAlignError(f"{size} bytes are too many for an image", where=where)
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise RoboAlignError(f"the archive cannot be read ({error})", where=where) from None
        if len(data) < size:
            fix = "download the archive again"
            raise RoboAlignError(
                f"the archive ends after {len(data)} of {size} bytes", where=where, fix=fix
            )
        return data


Store = Folder | ZipArchive | TarArchive


def open_store(path: str | Path, *, links: bool = False) -> Store:
    """Return the store that image paths are relative to: a folder, a .zip or a .tar.

    `links` applies to a folder; see `Folder`. A folder may be created later. Raises RoboAlignError
    on a compressed tar: reading one member would unpack everything before it.
    """
    path = Path(path)
    if path.name.lower().endswith(PACKED):
        fix = f"unpack it: tar xf {path.name}, and give the folder"
        raise RoboAlignError(
            "a compressed tar cannot be read image by image", where=str(path), fix=fix
        )
    if path.suffix.lower() not in (".zip", ".tar") or path.is_dir():
        return Folder(path, links)
    if not path.is_file():
        raise RoboAlignError("the archive does not exist", where=str(path))
    return ZipArchive(path) if path.suffix.lower() == ".zip" else TarArchive(path)


@dataclass(frozen=True)
class LazyImage:
    """An image that is read on request.

    An error is a `Fault` value, so that one bad image cannot end a long run.
    """

    name: str
    where: str
    """The record that names this image."""
    store: Store | None = None
    held: bytes | None = field(default=None, repr=False)
    """The image file, if the record contains it."""

    def data(self) -> bytes | Fault:
        """Return the image file as stored."""
        if self.held is not None:
            return self.held
        assert self.store is not None
        try:
            return self.store.read(self.name)
        except RoboAlignError as error:
            return Fault(f"{self.where}, {error.where}", error.problem, error.fix)

    def size(self) -> tuple[int, int] | Fault:
        """Return (width, height) in pixels as displayed, from the file's header."""
        return self._read(size_of_file)

    def pixels(self) -> np.ndarray | Fault:
        """Return uint8 [H, W, 3], as `rgb_of_file`."""
        return self._read(rgb_of_file)

    def _read(self, read: Callable[[bytes], _Result]) -> _Result | Fault:
        data = self.data()
        if isinstance(data, Fault):
            return data
        try:
            return read(data)
        except RoboAlignError as error:
            return Fault(f"{self.where}, image {self.name}", error.problem, "drop this record")


def image_of(value: Any, store: Store, where: str, *, anchor: str = "") -> LazyImage:
    """Return the image that a record names: a store path, bytes, or {"bytes": .., "path": ..}.

    `anchor` is a folder name. Only the part of a path from that folder on is used, for data sets
    written with the paths of their authors' machine. Raises RoboAlignError on a URL and on a path
    that leaves the store.
    """
    if isinstance(value, dict):
        held, path = value.get("bytes"), value.get("path")
        value = path if held is None else held
        if isinstance(value, bytes):
            return LazyImage(str(path or "bytes"), where, held=value)
    if isinstance(value, bytes):
        return LazyImage("bytes", where, held=value)
    if not isinstance(value, str) or not value.strip():
        raise RoboAlignError(
            f"an image is {type(value).__name__}, not a path or bytes", where="image"
        )
    return LazyImage(inner_path(value, anchor), where, store)


def inner_path(name: str, anchor: str = "") -> str:
    """Return a relative path unchanged, or shortened to begin at `anchor`.

    Raises RoboAlignError if it may lead outside.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", name):
        fix = "download it below the image folder and write its path"
        raise RoboAlignError(
            f"{name[:80]!r} is a URL; nothing is downloaded", where="image", fix=fix
        )
    parts = name.replace("\\", "/").split("/")
    if anchor and anchor in parts:
        name = "/".join(parts[parts.index(anchor) :])
    path = PurePosixPath(name)
    if path.is_absolute() or re.match(r"[\\/]|[A-Za-z]:", name) or ".." in re.split(r"[\\/]", name):
        fix = "write the path relative to the image folder"
        raise RoboAlignError(
            f"the path {name[:80]!r} leaves the image folder", where="image", fix=fix
        )
    return str(path)
