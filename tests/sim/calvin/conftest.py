"""A checkout of CALVIN that CI can run; the real one only where ROBOALIGN_CALVIN names it."""

import os
import sys

import pytest
from fake_checkout import write_checkout

from roboalign.sim.calvin import chains, checkout, library

MODULES = ("calvin_env", "hydra", "omegaconf", "pybullet")


def _forget(folder):
    for cached in (
        library.load_simulator,
        library.oracle,
        chains.measured_chains,
        checkout.open_checkout,
    ):
        cached.cache_clear()
    sys.path[:] = [path for path in sys.path if not path.startswith(str(folder))]
    for name in list(sys.modules):
        if name.split(".")[0] in MODULES:
            del sys.modules[name]


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    """The folder of a fake checkout. Imports of it are undone at the end."""
    folder = write_checkout(tmp_path_factory.mktemp("calvin"))
    _forget(folder)
    yield folder
    _forget(folder)


@pytest.fixture(scope="module")
def real():
    """The folder of a real checkout. Skips without one."""
    if not (folder := os.environ.get("ROBOALIGN_CALVIN")):
        pytest.skip("ROBOALIGN_CALVIN names no checkout of CALVIN")
    _forget(folder)
    return folder
