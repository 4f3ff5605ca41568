"""A short version of kills.py: `data convert`, killed and given again; and that a difference is seen."""

import random
import sys
from pathlib import Path

from kills import (
    Target,
    differences,
    killed_and_ended,
    start,
    state,
    targets,
    unbroken,
    without_times,
)


def test_killed_and_given_again_is_as_unbroken(tmp_path: Path) -> None:
    target = targets(tmp_path, tmp_path / "run")["convert"]
    sound, whole = unbroken(target, tmp_path / "whole")
    assert sound and whole > 2
    kills = 0
    for seed in range(3):
        kills += killed_and_ended(target, tmp_path / str(seed), whole, random.Random(seed))
        assert differences(sound, state(tmp_path / str(seed))) == []
        if kills:
            break
    assert kills


def test_a_kill_falls_after_the_change_that_was_drawn(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    loop = (
        "import pathlib, sys, time\n"
        "for n in range(50):\n"
        "    (pathlib.Path(sys.argv[1]) / f'{n}.jsonl').write_text('{}')\n"
        "    time.sleep(0.1)"
    )
    command = [sys.executable, "-c", loop, str(out)]
    ended = start(command, out, after=3)
    assert ended.killed and ended.changes >= 3 and 3 <= len(list(out.iterdir())) < 50


def test_what_a_broken_command_leaves_is_seen(tmp_path: Path) -> None:
    """A command that appends to its output each time it is given is no command that resumes."""
    script = "import sys; open(sys.argv[1] + '/rows.jsonl', 'a').write('{\"a\": 1}\\n')"
    target = Target(
        lambda out: out.mkdir(exist_ok=True),
        lambda out: [sys.executable, "-c", script, str(out)],
    )
    sound, _ = unbroken(target, tmp_path / "whole")
    for _ in range(2):
        start(target.command(tmp_path / "whole"), tmp_path / "whole", None)
    assert differences(sound, state(tmp_path / "whole")) == ["rows.jsonl"]


def test_times_do_not_count() -> None:
    row = {"step": 1, "seconds": 2.0, "cost": [{"wall_time": 3, "tokens": 4}]}
    assert without_times(row) == {"step": 1, "cost": [{"tokens": 4}]}
