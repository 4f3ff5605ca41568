"""HDF5 files that would keep the HDF5 library busy without end: found in a process that can be ended.

The library follows what a file says about itself. In a damaged file that can lead in a circle, inside C code that no
signal handler of Python interrupts. So every file is first walked through in a child process: what the reader opens is
opened there, under a limit of processor time that the kernel enforces, also when this process is gone.
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
"""Processor time for one demonstration; a sound one takes milliseconds (docs/how-to/read-robot-data.md)."""
_WALKED: dict[tuple[str, int, int], str] = {}
"""Path, size and time of change of the files that were walked through -> what is wrong with it, or ""."""


def endless(files: Iterable[Path], seconds: float = _SECONDS) -> dict[Path, str]:
    """Those of the files that must not be opened here -> what is wrong with them.

    A file is walked through once in the life of this process, unless its size or its time of change differs.
    """
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
    """Walk through the files in a child process: how many it got through, and its exit status."""
    command = [
        sys.executable,
        "-P",
        __file__,
        str(seconds),
    ]  # this file alone and h5py: it starts in 0.2 s
    paths = b"\0".join(os.fsencode(file.absolute()) for file in files)
    ended = subprocess.run(command, input=paths, capture_output=True, check=False)
    return ended.stdout.count(b"\n"), ended.returncode


def main() -> None:
    """The child: file names on stdin, one line on stdout for each that it is through with."""
    for path in sys.stdin.buffer.read().split(b"\0"):
        with suppress(Exception):  # what is wrong in other ways, the reader says
            walk(os.fsdecode(path), float(sys.argv[1]))
        print(flush=True)


def walk(path: str, seconds: float) -> None:
    """Open and read what `read_robomimic` does; of the frames, where they lie and the last."""
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
    """How `group[name]` is stored outside of the file, "" where it is not; nothing outside is opened to tell.

    A link to another file, raw bytes of another file, or a virtual data set of others (HDF5 File Format, IV.A.2).
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
    """`leaving` of the first part of a soft link's path that is outside of the file."""
    at = group.file if path.startswith("/") else group
    for part in [part for part in path.split("/") if part not in ("", ".")]:
        if outside := leaving(at, part):
            return outside
        at = at.get(part)
        if not hasattr(at, "keys"):
            break
    return ""


def touch(found: Any) -> None:
    """Read a data set of numbers, of one of images the last, and of a group the same of its members."""
    if hasattr(found, "keys"):
        for name in list(found):
            with suppress(Exception):
                member = None if leaving(found, name) else found[name]
                if member is not None and not hasattr(member, "keys"):
                    touch(member)
        return
    if found.chunks:
        found.id.get_num_chunks()  # goes through the index of all of them
    found[-1:] if len(found.shape) > 2 else found[()]


if __name__ == "__main__":
    main()
