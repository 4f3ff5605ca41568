"""The log: on disk before it is acknowledged, whole after a kill, one process at a time, no change unseen."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roboalign.core.errors import RoboAlignError
from roboalign.trial import log as log_module
from roboalign.trial.log import TrialLog, read_log

WRITER = """
import sys
from roboalign.trial.log import TrialLog
log = TrialLog(sys.argv[1], "p")
while True:
    row = log.append("note", text="x" * 3000)
    print(row["row"], flush=True)
"""


def written(path, count=4):
    with TrialLog(path, "p") as log:
        for number in range(count):
            log.append("note", text=f"row {number}")
    return path.read_bytes()


def test_rows_come_back_and_go_on_in_the_next_process(tmp_path):
    path = tmp_path / "a.jsonl"
    written(path, 2)
    written(path, 1)
    rows = read_log(path, "p")
    assert [row["row"] for row in rows] == [1, 2, 3]
    assert [row["text"] for row in rows] == ["row 0", "row 1", "row 0"]
    assert rows[0]["previous"] == "" and len({row["previous"] for row in rows}) == 3


@given(cut=st.integers(0, 10_000))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_file_cut_at_any_byte_keeps_every_whole_row_and_takes_more(tmp_path, cut):
    path = tmp_path / "a.jsonl"
    path.unlink(missing_ok=True)
    data = written(path)
    cut %= len(data) + 1
    path.write_bytes(data[:cut])
    whole = data[:cut].count(b"\n")
    if whole:
        assert len(read_log(path)) == whole
    with TrialLog(path, "p") as log:
        assert len(log.rows) == whole
        log.append("note", text="after")
    rows = read_log(path)
    assert len(rows) == whole + 1 and rows[-1]["text"] == "after"


def test_killed_while_it_writes_no_acknowledged_row_is_lost(tmp_path):
    path = tmp_path / "a.jsonl"
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(8):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:
            acknowledged = int(line) if line.endswith("\n") else acknowledged
        process.wait()
        assert len(read_log(path)) >= acknowledged
    with TrialLog(path, "p") as log:  # the dead process's lock is free
        log.append("note", text="after")


@pytest.mark.parametrize("kind", ["changed", "removed", "moved", "added", "not JSON"])
def test_a_change_is_named(tmp_path, kind):
    path = tmp_path / "a.jsonl"
    lines = written(path).splitlines()
    if kind == "changed":
        lines[1] = lines[1].replace(b"row 1", b"row 7")
    elif kind == "removed":
        del lines[1]
    elif kind == "moved":
        lines[1], lines[2] = lines[2], lines[1]
    elif kind == "added":
        lines.insert(1, json.dumps(json.loads(lines[1]) | {"text": "more"}).encode())
    else:
        lines[2] = b"{"
    path.write_bytes(b"\n".join(lines) + b"\n")
    at = {"not JSON": 3, "removed": 2, "moved": 2, "changed": 3, "added": 3}[kind]
    for read in (read_log, lambda path: TrialLog(path, "p")):
        with pytest.raises(RoboAlignError, match=f"a.jsonl, line {at}: ") as error:
            read(path)
        assert "restore the file" in error.value.fix


def test_another_plans_log_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    written(path)
    with pytest.raises(RoboAlignError, match="of another plan"):
        TrialLog(path, "q")
    with pytest.raises(RoboAlignError, match="of another plan"):
        read_log(path, "q")


def test_a_second_process_is_refused_while_the_first_writes(tmp_path):
    path = tmp_path / "a.jsonl"
    with TrialLog(path, "p") as log:
        log.append("note")
        code = "import sys; from roboalign.trial.log import TrialLog; TrialLog(sys.argv[1], 'p')"
        second = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True
        )
        assert "another process is writing this log" in second.stderr
        log.append("note")
    assert len(read_log(path)) == 2


def test_threads_that_write_at_once_make_one_chain(tmp_path):
    path = tmp_path / "a.jsonl"
    together = threading.Barrier(4)
    with TrialLog(path, "p") as log, ThreadPoolExecutor(4) as pool:

        def write(who):
            together.wait()
            for _ in range(10):
                log.append("note", who=who)

        list(pool.map(write, range(4)))
    rows = read_log(path)
    assert sorted(row["who"] for row in rows) == sorted([0, 1, 2, 3] * 10)


def test_a_row_that_the_disk_refuses_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    before = written(path)
    with TrialLog(path, "p") as log:

        def half(file, data):
            os.write(file, data[: len(data) // 2])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(log_module, "_write_whole", half)
            with pytest.raises(RoboAlignError, match="No space left on device"):
                log.append("note")
        assert path.read_bytes() == before and len(log.rows) == 4
        log.append("note")
    assert len(read_log(path)) == 5
