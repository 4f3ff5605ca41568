"""Read the rows of a LeRobot data file: its columns as arrays, and each episode's rows by time."""

import io
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_readable
from roboalign.episodes.episode import LazyFrames
from roboalign.episodes.formats import lerobot_layout as layout
from roboalign.episodes.formats.lerobot_layout import EpisodeRows
from roboalign.episodes.pictures import shown_size

_BROKEN = (pa.ArrowException, OSError, ValueError)
"""Errors raised when reading a truncated or damaged parquet file."""
Arrays = dict[str, np.ndarray]
EPISODE, FRAME, TIME = "episode_index", "frame_index", "timestamp"
_CORRECT = "get this file again, or correct the meta files"
DEEP = ("I;16", "I;16B", "I;16L", "I", "F")
"""PIL's modes of more than 8 bits: depth, never a color picture."""


class StoredImages(LazyFrames):
    """The image files of one camera of one episode, read from the parquet file on first request."""

    def __init__(self, path: Path, column: str, rows: np.ndarray, size: tuple[int, int]) -> None:
        """`rows` of the file, in the order of the steps; `size`: (width, height) of all
        pictures."""
        self.path, self.column, self.rows, self.size = path, column, rows, size
        self.length = len(rows)

    def part(self, first: int, end: int) -> "StoredImages":
        """Return steps `first` to `end` - 1."""
        return StoredImages(self.path, self.column, self.rows[first:end], self.size)

    def file(self, t: int) -> bytes:
        """Return the stored file. Raises RoboAlignError if missing, or of another size or kind."""
        value = self._column[int(self.rows[t] - self._first)].as_py()
        where = f"{self.path}, column {self.column}"
        if not value:
            raise RoboAlignError(f"no image at step {t}", where=where)
        try:
            with Image.open(io.BytesIO(value)) as header:
                size, mode = shown_size(header), header.mode
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return value  # decoding reports what is broken about it
        if mode in DEEP:
            raise RoboAlignError(
                f"the picture of step {t} has more than 8 bits a pixel ({mode}): it is no color picture",
                where=where,
                fix="name the camera depth and give it one channel in meta/info.json: it is then left out",
            )
        if size != self.size:
            problem = (
                f"the picture of step {t} is {size[0]}x{size[1]}, "
                f"described as {self.size[0]}x{self.size[1]}"
            )
            raise RoboAlignError(problem, where=where, fix="correct the shape in meta/info.json")
        return value

    @property
    def _first(self) -> int:
        return self._part[0]

    @property
    def _column(self) -> pa.Array:
        return self._part[1]

    @cached_property
    def _part(self) -> tuple[int, pa.Array]:
        """Return the row groups that contain this episode, and their first row."""
        file = open_parquet(self.path)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        group, last = np.searchsorted(ends, [self.rows.min(), self.rows.max()], side="right")
        first, groups = int(ends[group] - sizes[group]), list(range(group, last + 1))
        try:
            column = file.read_row_groups(groups, columns=[self.column]).column(0).combine_chunks()
        except _BROKEN as error:
            raise _unreadable(self.path, error) from None
        images = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
            images = images.field("bytes")
        if not pa.types.is_binary(images.type) and not pa.types.is_large_binary(images.type):
            raise RoboAlignError(
                f"{images.type}, expected images", where=f"{self.path}, column {self.column}"
            )
        return first, images


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open one parquet file; RoboAlignError if it is missing, truncated or not a plain file."""
    check_readable(path, fix=layout.FETCH_DATA_SET_AGAIN)
    try:
        return pq.ParquetFile(path)
    except _BROKEN as error:
        raise _unreadable(path, error) from None


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read some or all columns of one parquet file. Raises RoboAlignError if it is missing or
    truncated, or lacks one of them."""
    file = open_parquet(path)
    for key in columns or ():
        if key not in file.schema_arrow.names:
            raise RoboAlignError(
                f"the column {key} is missing", where=str(path), fix="get this file again"
            )
    try:
        return file.read(columns=columns)
    except _BROKEN as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> RoboAlignError:
    """Return an error of the parquet library as a message for the user."""
    return RoboAlignError(
        f"not a readable parquet file ({error})", where=str(path), fix="get it again"
    )


def read_arrays(
    path: Path, features: dict[str, Any], needed: list[str], images: list[str]
) -> Arrays:
    """Return the `needed` columns of one data file and its order columns, as arrays [rows, D].

    Text is [rows, 1]. Raises RoboAlignError on another width, on a missing value, and if one of
    `images` is not a column.
    """
    stored = open_parquet(path).schema_arrow.names
    for key in images:
        if key not in stored:
            raise RoboAlignError(
                f"the column {key} is missing", where=str(path), fix="get this file again"
            )
    order = [key for key in (EPISODE, FRAME, TIME) if key in stored and key not in needed]
    table = read_parquet(path, [*needed, *order])
    arrays = {}
    for key in table.column_names:
        if pa.types.is_string(table[key].type) and features.get(key, {}).get("dtype") == "string":
            arrays[key] = np.array(table[key].to_pylist(), object)[:, None]
        else:
            shape = features[key]["shape"] if key in needed and key in features else [1]
            arrays[key] = as_array(table[key], shape, key, path)
    return arrays


def as_array(column: pa.ChunkedArray, shape: list[int], name: str, path: Path) -> np.ndarray:
    """Return a column of numbers, or of lists of them, as [rows, product of `shape`]. NaN
    represents a missing number."""
    rows, width = len(column), int(np.prod(shape))
    values = column.combine_chunks()
    values = pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) else values
    even, nulls = True, values.null_count
    while pa.types.is_nested(values.type) and not pa.types.is_struct(values.type):
        lengths = pc.list_value_length(values)
        even, values = even and len(pc.unique(lengths)) <= 1, values.flatten()
    if nulls or not even or len(values) != rows * width:
        uneven = "" if even else " of different widths"
        raise RoboAlignError(
            f"column {name} holds {len(values)} values in {rows} rows{uneven}, info.json says {width} a row",
            where=str(path),
            fix="correct the shape in meta/info.json, or get this file again",
        )
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise RoboAlignError(
            f"column {name} holds {kind}, expected numbers", where=str(path), fix="get it again"
        )
    return values.to_numpy(zero_copy_only=False).reshape(rows, width)


def rows_of(record: EpisodeRows, arrays: Arrays) -> np.ndarray:
    """Return int [T]: the rows of one episode in a file, in time order. Raises RoboAlignError if
    their number differs from the meta files, or if one is missing or duplicated."""
    count, end = len(next(iter(arrays.values()))), record.start + record.length
    rows = np.arange(record.start, min(end, count))
    problem = ""
    if not record.length:
        problem = "no steps"
    elif record.alone and count != end:
        problem = f"{count} rows, meta/episodes.jsonl says {end}"
    elif not record.alone and EPISODE in arrays:
        index = arrays[EPISODE][:, 0]
        there = index[rows]
        rows = np.flatnonzero(index == record.index)
        if not len(rows):
            held = np.unique(there)[:3].tolist()
            problem = f"column {EPISODE} holds {held} where meta/episodes has {record.index}"
        elif len(rows) != record.length:
            problem = (
                f"{len(rows)} rows of {EPISODE} {record.index}, meta/episodes says {record.length}"
            )
    elif end > count:
        problem = f"{count} rows, the episode ends at {end}"
    if problem:
        raise RoboAlignError(problem, where=str(record.path), fix=_CORRECT)
    if FRAME not in arrays:
        return rows
    rows = rows[np.argsort(arrays[FRAME][rows, 0], kind="stable")]
    frames = arrays[FRAME][rows, 0]
    wrong = np.flatnonzero(np.diff(frames) != 1)
    if len(wrong):
        before, after = (int(frames[wrong[0] + i]) for i in (0, 1))
        what = "twice" if before == after else f"and then {after}"
        raise RoboAlignError(
            f"{FRAME} is {before} {what}: rows are missing or doubled (row {rows[wrong[0] + 1]})",
            where=str(record.path),
            fix="drop that episode, or record it again",
        )
    return rows


def times_of(rows: np.ndarray, arrays: Arrays, fps: float, path: Path) -> np.ndarray:
    """Return float64 [T]: the time of each step in its recording, in seconds.

    It is from the column timestamp, else from frame_index, else t / fps. Raises RoboAlignError if
    the times do not advance by one step.
    """
    if TIME not in arrays:
        frames = arrays[FRAME][rows, 0] if FRAME in arrays else np.arange(len(rows))
        return frames / fps
    times = arrays[TIME][rows, 0].astype(np.float64)
    advance = np.diff(times) * fps
    wrong = np.flatnonzero(~(np.abs(advance - 1) < 0.5))
    if len(wrong) or not np.isfinite(times).all():
        step = int(wrong[0]) if len(wrong) else 0
        after = times[min(step + 1, len(times) - 1)]
        raise RoboAlignError(
            f"{TIME} goes from {times[step]:.3f} to {after:.3f} s between steps {step} and {step + 1}; "
            f"at {fps:g} fps a step is {1 / fps:.3f} s",
            where=str(path),
            fix="correct fps in meta/info.json, or drop that episode: rows are missing or doubled",
        )
    return times
