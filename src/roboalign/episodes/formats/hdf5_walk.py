"""Detect HDF5 files that would occupy the HDF5 library forever, in a process that can be ended.

The library follows the structure that a file declares. In a damaged file this can form a loop,
inside C code that no Python signal handler interrupts. Every file is therefore first walked through
in a child process, which opens everything that the reader opens. The kernel enforces its limit of
processor time, even after this process has ended.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_SECONDS = 20.0
"""Processor time for one demonstration, in seconds; an intact one takes milliseconds. See
docs/how-to/read-robot-data.md."""
_WALKED: dict[tuple[str, int, int], str] = {}
"""Path, size and modification time of checked files -> what is wrong with each, or ""."""


def endless(files: Iterable[Path], seconds: float = _SECONDS) -> dict[Path, str]:
    """Return the files that must not be opened here -> what is wrong with them. Each file is
    checked once per process, unless its size or modification time changes."""
    stamps = {
        file: (str(file), state.st_size, state.st_mtime_ns)
        for file in files
        for state in [file.stat()]
    }
    left = [file for file, stamp in stamps.items() if stamp not in _WALKED]
    while left:
        done, ended = walk_apart(left, seconds)
        _WALKED.update((stamps[file], "") for file in left[:done])
        if done < len(left):
            by_time = ended == -signal.SIGPROF
            _WALKED[stamps[left[done]]] = (
                f"the HDF5 library does not come to an end with it within {seconds:g} s of processor time"
                if by_time
                else f"the HDF5 library breaks off at it (exit status {ended})"
            )
        left = left[done + 1 :]
    return {file: problem for file, stamp in stamps.items() if (problem := _WALKED[stamp])}


def walk_apart(files: Sequence[Path], seconds: float) -> tuple[int, int]:
    """Check the files in a child process. Returns how many it finished, and its exit status."""
    command = [
        sys.executable,
        "-P",
        __file__,
        str(seconds),
    ]  # only this file and h5py: it starts in 0.2 s
    paths = b"\0".join(os.fsencode(file.absolute()) for file in files)
    ended = subprocess.run(command, input=paths, capture_output=True, check=False)
    return ended.stdout.count(b"\n"), ended.returncode


def main() -> None:
    """Run the child: read file names from stdin, print one line for each finished file."""
    for path in sys.stdin.buffer.read().split(b"\0"):
        with suppress(Exception):  # the reader reports other errors
            walk(os.fsdecode(path), float(sys.argv[1]))
        print(flush=True)


def walk(path: str, seconds: float) -> None:
    """Open and read what `read_robomimic` does; for frames only their location and the last one."""
    import h5py

    signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF without a handler ends the process
    with h5py.File(path, "r") as file:
        with suppress(Exception):
            if not leaving(file, "mask"):
                touch(file["mask"])
        if leaving(file, "data"):
            return
        data = file["data"]
        with suppress(Exception):
            list(data.attrs.items())
        for demo in list(data):
            signal.setitimer(signal.ITIMER_PROF, seconds)
            for name in ("actions", "rewards", "obs"):
                with suppress(Exception):
                    if not leaving(data, demo) and not leaving(data[demo], name):
                        touch(data[demo][name])
            with suppress(Exception):
                list(data[demo].attrs.items())


def leaving(group: Any, name: str) -> str:
    """Return how `group[name]` is stored outside of the file; "" if it is not.

    It can be a link to another file, raw bytes of another file, or a virtual data set of others
    (HDF5 File Format, IV.A.2). Nothing outside is opened.
    """
    import h5py

    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        return f"a link to another file, {link.filename}"
    if isinstance(link, h5py.SoftLink):
        return softly_leaving(group, link.path)
    stored = group.get(name)
    if not isinstance(stored, h5py.Dataset):
        return ""
    if stored.external:
        return f"stored in another file, {stored.external[0][0]}"
    if stored.is_virtual:
        files = [source.file_name for source in stored.virtual_sources()]
        return next((f"made of another file, {file}" for file in files if file != "."), "")
    return ""


def softly_leaving(group: Any, path: str) -> str:
    """Return `leaving` of the first part of a soft link's path that is outside of the file."""
    at = group.file if path.startswith("/") else group
    for part in [part for part in path.split("/") if part not in ("", ".")]:
        if outside := leaving(at, part):
            return outside
        at = at.get(part)
        if not hasattr(at, "keys"):
            break
    return ""


def touch(found: Any) -> None:
    """Read a numeric data set, the last image of an image data set, or a group's data sets."""
    if hasattr(found, "keys"):
        for name in list(found):
            with suppress(Exception):
                member = None if leaving(found, name) else found[name]
                if member is not None and not hasattr(member, "keys"):
                    touch(member)
        return
    if found.chunks:
        found.id.get_num_chunks()  # traverses the index of all of them
    found[-1:] if len(found.shape) > 2 else found[()]


if __name__ == "__main__":
    main()
