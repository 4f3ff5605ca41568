"""How a failure of one rank ends both: one message, whoever fails and however."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from two_ranks import two_ranks

from roboalign.core.distributed import Team, join_team
from roboalign.core.errors import RoboAlignError


def command(work: Callable[[Team], None], timeout: float) -> int:
    """What the command does on each rank."""
    team = join_team()
    assert team is not None
    try:
        with team.guarded():
            team.form_group(torch.device("cpu"), timeout)
            assert add(team) == 3.0  # both are here before one of them fails
            work(team)
            team.part()
    except RoboAlignError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def add(team: Team) -> float:
    """A training: a collective."""
    total = torch.tensor(float(team.rank + 1))
    dist.all_reduce(total)
    return float(total)


def words(team: Team) -> None:
    if team.leads:
        for number, stage in enumerate(("sft", "rl", "")):
            team.tell(number, stage)
            if stage:
                assert add(team) == 3.0
    else:
        assert [(stage, add(team)) for stage in team.words()] == [("sft", 3.0), ("rl", 3.0)]


def leader_fails(team: Team) -> None:
    if team.leads:
        raise RoboAlignError("the loss is nan", where="rl, update 3")
    list(team.words())


def other_fails(team: Team) -> None:
    if not team.leads:
        raise RoboAlignError("the loss is nan", where="rl, update 3")
    add(team)


def both_fail(team: Team) -> None:
    raise RoboAlignError("no such folder", where="data")


def other_is_killed(team: Team) -> None:
    add(team)
    if not team.leads:
        os.kill(os.getpid(), signal.SIGKILL)
    add(team)


def leader_is_killed(team: Team) -> None:
    if team.leads:
        os.kill(os.getpid(), signal.SIGKILL)
    list(team.words())


def other_hangs(team: Team) -> None:
    add(team)
    if not team.leads:
        time.sleep(20)
    add(team)


def leader_is_stopped(team: Team) -> None:
    if team.leads:
        os.kill(os.getpid(), signal.SIGTERM)
    list(team.words())


def test_the_others_take_part_in_what_the_leader_says(tmp_path: Path) -> None:
    ended = two_ranks(command, words, 60.0, logs=tmp_path)
    assert [one.status for one in ended] == [0, 0], ended


@pytest.mark.parametrize("work", [leader_fails, other_fails, both_fail])
def test_one_message(tmp_path: Path, work: Callable[[Team], None]) -> None:
    ended = two_ranks(command, work, 60.0, logs=tmp_path)
    assert [one.status for one in ended] == [2, 2]
    (line,) = [line for one in ended for line in one.errors]
    assert line in ("error: rl, update 3: the loss is nan", "error: data: no such folder")


LEFT = {
    other_is_killed: ([2, -signal.SIGKILL], "rank 0 of 2"),
    leader_is_killed: ([-signal.SIGKILL, 2], "rank 1 of 2"),
    other_hangs: ([2, 2], "rank 0 of 2"),
    leader_is_stopped: ([2, 2], "rank 0 of 2"),
}


@pytest.mark.parametrize("work", LEFT, ids=lambda work: work.__name__)
def test_a_rank_that_is_left_alone_says_so(tmp_path: Path, work: Callable[[Team], None]) -> None:
    ended = two_ranks(command, work, 4.0, logs=tmp_path)
    statuses, where = LEFT[work]
    assert [one.status for one in ended] == statuses
    (line,) = [line for one in ended for line in one.errors]
    assert line.startswith(
        f"error: {where}: another process of this training has ended or no longer answers"
    )
    assert "resumes from the last checkpoint" in line
