"""Records of rollouts: a report counts each wanted episode once, or says which record is wrong."""

import json
from pathlib import Path

import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.evaluate.success import read_episodes

WANTED = [("push", 0), ("push", 1), ("open", 0)]


def row(task: str, seed: int, **change: object) -> dict:
    return {"task": task, "seed": seed, "success": True, "steps": 7, "crash": None} | change


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_one_record_of_each_is_read_in_their_order(tmp_path: Path) -> None:
    rows = [row("open", 0), row("push", 1, success=False), row("push", 0)]
    assert read_episodes(write(tmp_path / "episodes.jsonl", rows), WANTED) == rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "3 of 3 episodes are missing, as open seed 0"),
        ([row("push", 0), row("open", 0)], "1 of 3 episodes are missing, as push seed 1"),
        ([row(*key) for key in [*WANTED, ("push", 0)]], "push seed 0 is recorded 2 times"),
        ([row(*key) for key in [*WANTED, ("push", 9)]], "push seed 9 is none of the episodes"),
        ([row("push", 0, success="no")], "record 1.*success"),
        ([row("push", 0, success=1)], "record 1.*success"),
        ([row("push", 0, steps=-1)], "record 1.*steps"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, rows: list[dict], message: str) -> None:
    path = write(tmp_path / "episodes.jsonl", rows)
    with pytest.raises(RoboAlignError, match=message) as caught:
        read_episodes(path, WANTED, "run them again")
    assert str(path) in str(caught.value)
