"""Row groups of a shard: where one ends when it is written, and how one is found when it is read.

Reading one conversation at random reads its row group, so groups are small. pyarrow parses a whole
footer to read one group: 30 us a group on one core, and 20 KB of memory a group if it is kept. A
shard of a large mixture has a hundred groups, and a mixture a thousand shards. So a footer is
walked once, and a read gets a footer with its own group alone.
Source: parquet.thrift of apache/parquet-format, FileMetaData, and Thrift's compact protocol.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS, GROUP_BYTES = 100, 2**20
"""Largest row group: reading one conversation at random reads its group. Each group takes some 3 KB
of its own: 0.3% of this size."""
_TAIL = 8  # int32 length of the footer, and the magic number
_MAGIC = b"PAR1"
_ROW_GROUPS = 4  # the field of FileMetaData
_BOOLEANS, _BYTE, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, 7, 8, (9, 10), 12
_VARINTS = (4, 5, 6)


def row_groups_of(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows in lists of at most GROUP_ROWS, and GROUP_BYTES of images after the first row.

    Yields one empty list if there are no rows: a shard has a row group.
    """
    group: list[dict[str, Any]] = []
    size, some = 0, False
    for row in rows:
        images = sum(len(image["bytes"]) for image in row["images"])
        if group and (len(group) == GROUP_ROWS or size + images > GROUP_BYTES):
            yield group
            group, size, some = [], 0, True
        group.append(row)
        size += images
    if group or not some:
        yield group


class Footer:
    """Where each row group is described in a parquet file's footer. Holds eight bytes a group."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if it is no parquet file, or one that changes in size."""
        self.path = path
        with path.open("rb") as file:
            self.size = file.seek(0, os.SEEK_END)
            length, magic = 0, b""
            if self.size > _TAIL:
                file.seek(-_TAIL, os.SEEK_END)
                tail = file.read(_TAIL)
                length, magic = int.from_bytes(tail[:4], "little"), tail[4:]
            if magic != _MAGIC or length + _TAIL > self.size:
                raise OSError("it does not end as a parquet file does")
            file.seek(-_TAIL - length, os.SEEK_END)
            data = file.read(length)
        self.first = self.size - _TAIL - length
        try:
            before, bounds = _row_groups(data)
        except IndexError:
            raise OSError("its footer ends too early") from None
        self.before, self.after = data[:before], data[bounds[-1] :]
        self.bounds = np.array(bounds, dtype=np.int64)

    def metadata(self, group: int) -> pq.FileMetaData:
        """Return the file's metadata with this row group alone, as number 0.

        Raises OSError if the file's size has changed.
        """
        start, end = self.bounds[group : group + 2].tolist()
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) != self.size:
                raise OSError("its size has changed since it was opened")
            file.seek(self.first + start)
            described = file.read(end - start)
        list_of_one = bytes([1 << 4 | _STRUCT])
        data = self.before + list_of_one + described + self.after
        return pq.read_metadata(
            pa.BufferReader(_MAGIC + data + len(data).to_bytes(4, "little") + _MAGIC)
        )


def _row_groups(data: bytes) -> tuple[int, list[int]]:
    """Return where the list of row groups begins in a footer, and the bounds of its items."""
    at = field = 0
    while head := data[at]:
        field, at = _field(data, at, field)
        if field == _ROW_GROUPS:
            count, _, first = _list(data, at)
            bounds = _alike(data, first, count) or [first]
            while len(bounds) <= count:
                bounds.append(_skip_struct(data, bounds[-1]))
            return at, bounds
        at = _skip(data, at, head & 15)
    raise OSError("its footer lists no row groups")


def _alike(data: bytes, first: int, count: int) -> list[int]:
    """Return where the row groups begin, or nothing if only a walk can tell.

    A walk takes 0.3 ms a group. All groups begin with the same bytes: a list of as many columns as
    the file has, and the first field of a column. If these occur as often as there are groups, they
    are the groups'.
    """
    size = 3 if data[first + 1] >> 4 < 15 else 4
    head, found = data[first : first + size], [first]
    while len(found) <= count and (at := data.find(head, found[-1] + size)) >= 0:
        found.append(at)
    return found if len(found) == count else []


def _field(data: bytes, at: int, last: int) -> tuple[int, int]:
    """Return the number of the field that begins at `at`, and where its value begins."""
    if delta := data[at] >> 4:
        return last + delta, at + 1
    number, at = _varint(data, at + 1)
    return number >> 1, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1


def _list(data: bytes, at: int) -> tuple[int, int, int]:
    """Return the number of items, their type, and where the first begins."""
    count, kind, at = data[at] >> 4, data[at] & 15, at + 1
    if count == 15:
        count, at = _varint(data, at)
    return count, kind, at


def _skip_struct(data: bytes, at: int) -> int:
    while head := data[at]:
        at += 1
        if head < 16:
            _, at = _varint(data, at)
        kind = head & 15
        if kind in _VARINTS:
            while data[at] > 127:
                at += 1
            at += 1
        elif kind not in _BOOLEANS:  # a boolean field's value is its type
            at = _skip(data, at, kind)
    return at + 1


def _skip(data: bytes, at: int, kind: int) -> int:
    """Return where the value of this type that begins at `at` ends. Raises OSError if unknown."""
    if kind == _STRUCT:
        return _skip_struct(data, at)
    if kind in _VARINTS:
        return _varint(data, at)[1]
    if kind == _BINARY:
        length, at = _varint(data, at)
        return at + length
    if kind in _LISTS:
        count, item, at = _list(data, at)
        for _ in range(count):
            at = _skip(data, at, item)
        return at
    if kind in (*_BOOLEANS, _BYTE):
        return at + 1
    if kind == _DOUBLE:
        return at + 8
    raise OSError(f"its footer has a value of type {kind}")
