"""How worker processes start: what they have imported, which variables they have, and where they are spawned."""

import os
import sys
import tempfile
from multiprocessing.context import SpawnContext
from pathlib import Path

import pytest

from roboalign.core import processes
from roboalign.core.processes import worker_context, worker_pool


def about(variable: str) -> tuple[int, bool, str | None]:
    return os.getppid(), "torch" in sys.modules, os.environ.get(variable)


def test_workers_are_forked_from_a_server_that_has_imported_what_this_process_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import roboalign.vla.policy  # noqa: F401

    told = []
    for value in ("one", "two"):
        monkeypatch.setenv("ROBOALIGN_TEST", value)
        with worker_pool(1) as pool:
            told.append(pool.submit(about, "ROBOALIGN_TEST").result())
    (server, loaded, one), (again, _, two) = told
    assert server == again != os.getpid()  # the second pool finds the server of the first
    assert loaded
    assert (one, two) == ("one", "two")  # those of now, not those that the server began with


def test_where_a_fork_would_break_workers_are_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isinstance(worker_context(), SpawnContext)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "gettempdir", lambda: "/" + "a" * 90)
        assert isinstance(worker_context(), SpawnContext)
    monkeypatch.setattr(processes, "GPU", Path(__file__))
    assert isinstance(worker_context(), SpawnContext)
