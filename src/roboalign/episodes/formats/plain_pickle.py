"""Read parts of a pickle in a NumPy file, in a separate process that may crash instead of this one.

The unpickler there knows only the four names that NumPy's arrays need, so no code of the file runs.
A damaged array can still crash NumPy or request much memory: hence the process, its limits, and
JSON for the results. This file is also the script of that process, and imports only the standard
library and NumPy.
"""

import contextlib
import json
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_NAMES = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): np.ones(0).__reduce__()[0],
    ("numpy.core.multiarray", "scalar"): np.float64(0).__reduce__()[0],
}
_SECONDS = 300
MEMORY = 4 << 30  # bytes of address space for Python and NumPy; a file adds 16 times its size


def read_parts(path: Path, parts: Sequence[str]) -> dict[str, Any]:
    """Return name -> plain value of each of `parts` (dotted names) of the pickled dict.

    Plain values are None, bool, number, text, list and dict. A missing part is left out; arrays and
    tuples become lists. Raises ValueError with the problem: a name that is not data, another kind
    of value, damage, or a process that crashed or reached its limits.
    """
    command = [sys.executable, "-I", __file__, str(path), *parts]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"reading it took more than {_SECONDS} seconds") from None
    if ended.returncode != 0:
        raise ValueError(f"reading it ended the process with status {ended.returncode}")
    answer: dict[str, Any] = json.loads(ended.stdout)
    if "problem" in answer:
        raise ValueError(answer["problem"])
    found: dict[str, Any] = answer["found"]
    return found


class PlainUnpickler(pickle.Unpickler):
    """An unpickler of plain values, arrays and NumPy scalars."""

    def find_class(self, module: str, name: str) -> Any:
        known = _NAMES.get((module.replace("numpy._core.", "numpy.core."), name))
        if known is None:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not data")
        return known


def load_plain(file: BinaryIO) -> Any:
    """Return the value in an open NumPy file of one pickled object."""
    version = np.lib.format.read_magic(file)
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if not headers[version](file)[2].hasobject:
        raise ValueError("it does not hold a dict")
    loaded = PlainUnpickler(file).load()
    return loaded.item() if isinstance(loaded, np.ndarray) and loaded.shape == () else loaded


def _parts_of(value: Any, parts: Sequence[str]) -> dict[str, Any]:
    """Return the parts that exist, by their dotted names."""
    if not isinstance(value, dict):
        raise ValueError("it does not hold a dict")
    found = {}
    for part in parts:
        inner: Any = value
        for key in part.split("."):
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if inner is not None:
            found[part] = inner
    return found


def plain_value(value: Any) -> Any:
    """Convert what JSON does not support: arrays to lists, scalars to numbers or text."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"it holds a {type(value).__name__}, which is not data")


def limit_process(size: int) -> None:
    """Limit the memory, time and files of this process, if the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        for limit, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_CPU, _SECONDS),
            (resource.RLIMIT_AS, MEMORY + 16 * size),
        ):
            resource.setrlimit(limit, (value, value))


def main(path: str, *parts: str) -> None:
    """Print the parts, or the problem, as one line of JSON."""
    limit_process(Path(path).stat().st_size)
    try:
        with Path(path).open("rb") as file:
            text = json.dumps({"found": _parts_of(load_plain(file), parts)}, default=plain_value)
    except Exception as error:  # a damaged pickle can raise nearly anything
        text = json.dumps({"problem": f"{error}" or type(error).__name__})
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
