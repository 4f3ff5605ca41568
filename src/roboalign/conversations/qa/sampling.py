"""Read a sample of a question-answering file's records, and estimate how many it has.

A small file is read whole. Of a larger one, windows are read at even distances: a record is found
in a window by its field, so that nothing before it is parsed. Memory and time do not grow with the
file.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.conversations.qa.records import QaColumns, records
from roboalign.core.errors import RoboAlignError

_WHOLE = 8 << 20
"""Bytes of a JSON file that is read whole."""
_WINDOW = 1 << 20
"""Bytes read at one place of a larger file."""
_WINDOWS = 8
"""Places of a larger file; row groups of a parquet file."""


@dataclass(frozen=True)
class Sampled:
    """Some records of a file, in its order."""

    records: list[Any]
    """As `records` yields them: a broken line is a Fault."""
    total: float
    """How many records the file has."""
    exact: bool
    """Whether `total` was counted rather than estimated."""
    parsed: int
    """How many records were parsed to choose these."""


def spread_records(path: Path, columns: QaColumns, most: int) -> Sampled:
    """Return at most `most` records, spread over the file; with 0, only how many there are.

    Raises RoboAlignError if the file is not one of records, as `records` does.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet(path, columns, most)
    if path.stat().st_size <= _WHOLE or path.suffix.lower() not in (".json", ".jsonl", ".ndjson"):
        found = list(records(path, columns))
        return Sampled(_spread(found, most), len(found), True, len(found))
    next(iter(records(path, columns)), None)  # raises if the file does not begin as it should
    found, parsed, covered = [], 0, 0
    for window in _windows(path):
        rows, length = _in_window(window, columns.turns or columns.question)
        found += _spread(rows, -(-most // _WINDOWS))
        parsed += len(rows)
        covered += length
    if not parsed:
        raise RoboAlignError(
            f"no record with the field {columns.turns or columns.question} in any of {_WINDOWS} "
            f"places of {_WINDOW} bytes",
            where=str(path),
            fix="check the layout of this source",
        )
    total = path.stat().st_size * parsed / covered
    return Sampled(_spread(found, most), total, False, parsed)


def _spread(found: list[Any], most: int) -> list[Any]:
    """Return at most `most` of a list, at even distances."""
    if len(found) <= most:
        return found
    return [found[index * len(found) // most] for index in range(most)]


def _parquet(path: Path, columns: QaColumns, most: int) -> Sampled:
    try:
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        total, groups = file.metadata.num_rows, file.metadata.num_row_groups
        if not most or groups <= 1 or total <= most:
            found = list(islice(records(path, columns), most))
            return Sampled(found, total, True, len(found))
        next(iter(records(path, columns)), None)  # raises if a column is missing
        names = (columns.turns, columns.question, columns.answer, columns.id, *columns.images)
        wanted = [name for name in file.schema_arrow.names if name in names]
        chosen = _spread(list(range(groups)), min(_WINDOWS, most))
        found = []
        for group in chosen:
            size = -(-most // len(chosen))
            batch = next(file.iter_batches(size, row_groups=[group], columns=wanted), None)
            found += batch.to_pylist() if batch is not None else []
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RoboAlignError(
            f"not a readable parquet file ({error})", where=str(path), fix="download it again"
        ) from None
    return Sampled(found[:most], total, True, len(found))


def _windows(path: Path) -> Iterator[str]:
    """Yield the text at even distances; broken characters at the ends are left out."""
    last = path.stat().st_size - _WINDOW
    with path.open("rb") as file:
        for number in range(_WINDOWS):
            file.seek(last * number // (_WINDOWS - 1))
            yield file.read(_WINDOW).decode("utf-8", errors="ignore")


def _in_window(text: str, field: str) -> tuple[list[Any], int]:
    """Return the whole records in a text, and how many bytes they and their separators take.

    A record is an object with `field`: the objects inside it have other fields.
    """
    decoder = json.JSONDecoder()
    found: list[Any] = []
    at = first = text.find("{")
    end = first
    while at >= 0:
        try:
            value, after = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            value, after = None, at + 1
        if isinstance(value, dict) and field in value:
            if not found:
                first = at
            found.append(value)
            end = after
            at = text.find("{", after)
        else:
            at = text.find("{", at + 1)
    return found, len(text[first:end].encode())
