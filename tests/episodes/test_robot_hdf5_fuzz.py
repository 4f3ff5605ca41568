"""Damaged HDF5 files are read, are faulty in part, or are refused by the one error; see `hdf5_fuzz`."""

import os
import sys

import numpy as np
import pytest
from hdf5_fuzz import damaged, fuzz

SEEDS = int(os.environ.get("HDF5_FUZZ_SEEDS", "12"))
"""A dozen here; thousands by hand."""


def test_every_damaged_file_ends_in_a_known_way() -> None:
    how, wrong = fuzz(0, SEEDS, 100)
    assert not wrong and how.total() == SEEDS
    assert (
        how["refused"] and how["read, as it was written"]
    )  # damage that is found, and damage that changes nothing


def test_what_brings_the_process_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hdf5_fuzz.SCRIPT", [sys.executable, "-c", "print('= refused'); raise OSError('torn')"]
    )
    how, wrong = fuzz(5, 4, 3)
    assert wrong == [
        f"seed {seed}: exit status 1 ['OSError: torn']" for seed in (6, 8)
    ] and how == {"refused": 2}


def test_each_seed_damages_the_file_and_does_so_again() -> None:
    whole = np.random.default_rng(0).bytes(400)
    for seed in range(200):
        assert damaged(whole, seed) == damaged(whole, seed) != whole
