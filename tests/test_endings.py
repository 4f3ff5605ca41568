"""How commands end: Ctrl-C and SIGTERM within seconds and with one line, a closed pipe without a word."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

WORKERS = """
    import sys, time
    from pathlib import Path
    from roboalign.core.command import exit_status
    from roboalign.core.processes import worker_pool

    def sleep(folder, number):
        Path(folder, f"started-{number}").touch()
        time.sleep(600)

    def work():
        with worker_pool(2) as pool:
            for future in [pool.submit(sleep, sys.argv[1], n) for n in range(2)]:
                future.result()
        return 0

    if __name__ == "__main__":
        sys.exit(exit_status(work))
"""
ROLLOUTS = """
    import sys, time
    from pathlib import Path
    from roboalign.core.command import exit_status
    from roboalign.sim.parallel import evaluate_parallel
    from roboalign.sim.rollout import RolloutConfig

    def make_act():
        import multiprocessing, tqdm
        tqdm.tqdm.get_lock()  # a named semaphore, as transformers' bars make one
        Path(sys.argv[1], f"started-{multiprocessing.current_process().pid}").touch()
        time.sleep(600)

    def work():
        evaluate_parallel(make_act, None, [("a", 0), ("b", 0)], RolloutConfig(), workers=2, on_result=print)
        return 0

    if __name__ == "__main__":
        sys.exit(exit_status(work))
"""


def start(tmp_path: Path, program: str, started: int) -> tuple[subprocess.Popen[str], list[int]]:
    """The program in a process group of its own, once `started` of its workers are at work; and their ids."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while len(list(tmp_path.glob("started-*"))) < started:
        assert process.poll() is None and time.monotonic() < end, "the workers never started"
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    return process, [child.pid for child in children]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.parametrize("program", [WORKERS, ROLLOUTS], ids=["pool", "rollouts"])
@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True)],
    ids=["ctrl-c", "sigterm", "hangup"],
)
def test_a_stopped_command_ends_with_one_line_and_takes_its_workers_along(
    tmp_path: Path, program: str, number: signal.Signals, whole_group: bool
) -> None:
    process, workers = start(tmp_path, program, 2)
    assert len(workers) >= 2
    began = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert errors == "stopped; the same command continues from here\n"
    assert process.returncode == 128 + number
    while alive(workers) and time.monotonic() < began + 7:
        time.sleep(0.05)
    assert not alive(workers)


def test_workers_die_within_two_seconds_of_a_parent_that_is_killed(tmp_path: Path) -> None:
    process, workers = start(tmp_path, WORKERS, 2)
    process.kill()
    process.communicate()
    began = time.monotonic()
    while alive(workers) and time.monotonic() < began + 2:
        time.sleep(0.05)
    assert not alive(workers)


def test_a_command_that_cannot_end_by_itself_is_ended(tmp_path: Path) -> None:
    program = """
        import sys, time
        from pathlib import Path
        from roboalign.core.command import exit_status

        def work():
            Path(sys.argv[1], "started-0").touch()
            try:
                time.sleep(600)
            finally:
                time.sleep(600)
            return 0

        sys.exit(exit_status(work))
    """
    process, _ = start(tmp_path, program, 1)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert 3 < time.monotonic() - began < 6
    assert process.returncode == 130
    assert errors == "stopped; the same command continues from here\n"


def command(lines: str) -> subprocess.Popen[str]:
    program = f"import sys\nfrom roboalign.core.command import exit_status\ndef work():\n{lines}\n"
    program += "    return 0\nsys.exit(exit_status(work))"
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("count", [1, 100_000])
def test_a_reader_that_goes_ends_the_command_quietly(count: int) -> None:
    """`| head`, whether the output fits the buffer, and fails at its end only, or does not."""
    process = command(f"    for n in range({count}): print('line', n)")
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""


def test_a_broken_pipe_of_something_else_is_not_hidden() -> None:
    process = command("    raise BrokenPipeError('a worker is gone')")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "a worker is gone" in errors


def test_a_worker_that_fails_is_an_ordinary_error(tmp_path: Path) -> None:
    program = WORKERS.replace("time.sleep(600)", "raise ValueError(number)")
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1 and "ValueError" in ended.stderr
    assert "resource_tracker" not in ended.stderr
