"""A damaged HDF5 file that the library finds no end of is one error; sound ones are walked through once."""

import os
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats import hdf5_walk, robomimic
from roboalign.episodes.formats.hdf5_walk import endless, walk_apart
from roboalign.episodes.open import open_robot_data


def write(path: Path, demos: int = 1) -> Path:
    """A robomimic file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = '{"env_name": "Lift"}'
        for n in range(demos):
            for name, width in (
                ("actions", 7),
                ("obs/ee_pos", 3),
                ("obs/ee_ori", 3),
                ("obs/gripper_states", 2),
            ):
                file[f"data/demo_{n}/{name}"] = np.full((4, width), n, float)
    return path


def write_endless(path: Path) -> Path:
    """The same with one bit flipped: the size of the one text in the global heap grows by 1024."""
    whole = bytearray(write(path).read_bytes())
    size = whole.index(b"GCOL") + 16 + 8  # header of the heap; index, references, reserved
    assert int.from_bytes(whole[size : size + 8], "little") == len('{"env_name": "Lift"}')
    whole[size + 1] ^= 4
    path.write_bytes(whole)
    return path


def test_it_is_named_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robomimic, "endless", partial(endless, seconds=1.0))
    write(tmp_path / "a.hdf5", demos=2)
    bad = write_endless(tmp_path / "b.hdf5")
    write(tmp_path / "c.hdf5")
    *_, fault, last = open_robot_data(tmp_path, options={"state": ["ee_pos"]}).read()
    assert (
        isinstance(fault, Fault)
        and fault.where == str(bad)
        and "does not come to an end" in fault.problem
    )
    assert isinstance(last, Episode) and last.episode_id.startswith("c.hdf5/demo_0-")
    with pytest.raises(
        RoboAlignError, match=r"b\.hdf5: the HDF5 library does not come to an end .* Fix: download"
    ):
        open_robot_data(bad)


def test_the_walk_ends_with_its_processor_time_also_alone(tmp_path: Path) -> None:
    assert walk_apart([write(tmp_path / "a.hdf5"), write_endless(tmp_path / "b.hdf5")], 0.5) == (
        1,
        -27,
    )


def test_a_sound_file_is_walked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked = []

    def counting(files: list[Path], seconds: float) -> tuple[int, int]:
        walked.extend(files)
        return len(files), 0

    monkeypatch.setattr(hdf5_walk, "walk_apart", counting)
    one, other = write(tmp_path / "a.hdf5"), write(tmp_path / "b.hdf5")
    assert endless([one]) == endless([one, other]) == {} and walked == [one, other]
    os.utime(one, ns=(0, time.time_ns()))
    assert endless([one, other]) == {} and walked == [one, other, one]


def test_a_walk_that_breaks_off_is_the_files_fault_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write(tmp_path / name) for name in ("a.hdf5", "b.hdf5", "c.hdf5")]
    ended = iter([(1, -11), (1, 0)])
    monkeypatch.setattr(hdf5_walk, "walk_apart", lambda files, seconds: next(ended))
    assert list(endless(files)) == list(endless(files)) == [files[1]]
    assert "breaks off at it (exit status -11)" in endless([files[1]])[files[1]]


def test_what_is_broken_otherwise_is_left_to_the_reader(tmp_path: Path) -> None:
    cut, empty, text = (tmp_path / name for name in ("a.hdf5", "b.hdf5", "c.hdf5"))
    cut.write_bytes(write(tmp_path / "whole.hdf5").read_bytes()[:900])
    with h5py.File(empty, "w"):
        pass
    text.write_text("no HDF5")
    assert walk_apart([cut, empty, text], 5.0) == (3, 0)
