"""Read and write the messages of openpi's websocket protocol: msgpack maps that contain NumPy
arrays (docs/reference/wire.md).

Compatible with openpi's `openpi_client/msgpack_numpy.py`: an array is a map of its bytes, dtype and
shape, with keys of type bytes. Nothing is ever unpickled. All input is limited before it is built:
message size, containers, dtypes, and the bytes of an array against its shape.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from roboalign.core.errors import RoboAlignError

MAX_BYTES = 1 << 26
"""Maximum bytes of one message: 64 MiB."""
MAX_ENTRIES = 1 << 14
"""Maximum entries of one list or map, and of all lists and maps of a message together."""
MAX_DIMENSIONS = 8
DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|U\d{1,5})")
"""Booleans, integers, floats and text; no objects, records or complex numbers."""
UNREADABLE = "send a msgpack map packed as openpi's msgpack_numpy does"


def pack_message(value: Any) -> bytes:
    """Pack a map, list, number, text or array into the same bytes as openpi's `packb`.

    Raises RoboAlignError for arrays of objects, records or complex numbers, which the protocol does
    not carry.
    """
    try:
        packed: bytes = msgpack.packb(value, default=_as_map)
    except (TypeError, OverflowError, ValueError) as error:
        raise RoboAlignError(
            f"this cannot be sent ({error})", where="message", fix="send arrays, numbers and text"
        ) from None
    return packed


def unpack_message(data: bytes | str, *, limit: int = MAX_BYTES) -> Any:
    """Return what was given to `pack_message`, with lists for tuples. Arrays are read-only views of
    `data`.

    Map keys may be text or bytes; integers are refused. Raises RoboAlignError, naming the fault,
    for a message above `limit` bytes and for anything that `pack_message` could not have made.
    """
    if isinstance(data, str):
        raise _fault("a text frame instead of a binary one")
    if len(data) > limit:
        raise _fault(
            f"a message of {len(data):,} bytes, at most {limit:,} are read",
            fix="send the image sizes that the metadata names",
        )
    reader = _Reader()
    try:
        return msgpack.unpackb(
            data,
            object_hook=reader.read_map,
            list_hook=reader.read_list,
            ext_hook=_refuse_extension,
            max_str_len=1 << 16,
            max_bin_len=limit,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_ext_len=16,
        )
    except RoboAlignError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise _fault(f"not a readable message ({reason})") from None


class _Reader:
    """Build arrays from their maps, and count the entries of a message."""

    def __init__(self) -> None:
        self.entries = 0

    def read_list(self, items: list[Any]) -> list[Any]:
        self._count(items)
        return items

    def read_map(self, items: dict[Any, Any]) -> Any:
        self._count(items)
        for mark, read in (("__ndarray__", _array), ("__npgeneric__", _scalar)):
            if mark.encode() in items or mark in items:
                return read({_text(key): value for key, value in items.items()})
        return items

    def _count(self, items: Sequence[Any] | dict[Any, Any]) -> None:
        self.entries += len(items) + 1
        if self.entries > MAX_ENTRIES:
            raise _fault(
                f"more than {MAX_ENTRIES:,} entries in lists and maps",
                fix="send numbers as one array",
            )


def _as_map(value: Any) -> dict[bytes, Any]:
    """Return the map for a value that msgpack cannot pack itself. The order of the keys is
    openpi's."""
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a value of type {type(value).__name__}")
    if value.dtype.kind not in "biufU":
        raise TypeError(f"dtype {value.dtype}")
    described = {b"dtype": value.dtype.str}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), **described}
    return {b"__ndarray__": True, b"data": value.tobytes(), **described, b"shape": value.shape}


def _array(items: dict[str, Any]) -> np.ndarray:
    """Build an array from its map. Raises RoboAlignError if dtype, shape and bytes are
    inconsistent."""
    dtype, shape, data = _dtype(items), items.get("shape"), items.get("data")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(n) is int and 0 <= n < 1 << 31 for n in shape)
    ):
        raise _fault(f"an array's shape is {str(shape)[:60]}", fix="send a list of sizes")
    if not isinstance(data, bytes):
        raise _fault(f"an array's data is {type(data).__name__}, not bytes")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise _fault(
            f"an array of {dtype} {list(shape)} has {len(data):,} bytes instead of {expected:,}"
        )
    if dtype.kind == "U":
        points = np.frombuffer(data, dtype.str[0].replace("|", "=") + "u4")
        if ((points > 0x10FFFF) | ((points >= 0xD800) & (points < 0xE000))).any():
            raise _fault("an array of text holds what is no Unicode")
    return np.ndarray(tuple(shape), dtype, data)


def _scalar(items: dict[str, Any]) -> np.generic:
    """Build a NumPy scalar from its map. Raises RoboAlignError if its value does not fit its
    dtype."""
    dtype, data = _dtype(items), items.get("data")
    kinds: Any = {"b": bool, "i": int, "u": int, "f": (int, float), "U": str}[dtype.kind]
    if not isinstance(data, kinds) or (isinstance(data, bool) and dtype.kind != "b"):
        raise _fault(f"a scalar of {dtype} holds a {type(data).__name__}")
    scalar: np.generic = dtype.type(data)
    return scalar


def _dtype(items: dict[str, Any]) -> np.dtype:
    name = items.get("dtype")
    if not isinstance(name, str) or not DTYPE.fullmatch(name):
        raise _fault(
            f"dtype {str(name)[:40]!r} is not carried",
            fix="send booleans, integers, floats of 2 to 8 bytes, or text",
        )
    return np.dtype(name)


def _text(key: Any) -> str:
    return key.decode("ascii", "replace") if isinstance(key, bytes) else key


def _refuse_extension(code: int, data: bytes) -> Any:
    raise _fault(f"a msgpack extension of type {code}")


def _fault(problem: str, fix: str = UNREADABLE) -> RoboAlignError:
    return RoboAlignError(problem, where="message", fix=fix)
