"""Rewards by name, from a package and from a file: what they are given, what is refused, what counts as changed."""

from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from roboalign.actions.fast import DecodeFailure
from roboalign.align.rewards.actions import ACTION_REWARDS
from roboalign.align.rewards.registry import (
    REWARD_ENTRY_POINTS,
    SampledAnswer,
    check_reward_name,
    reward_content,
    reward_names,
    score_action,
)
from roboalign.conversations.blocks import Parsed
from roboalign.core import plugins
from roboalign.core.errors import RoboAlignError

PARSED = Parsed(True, [3, 4], "ok")
CHUNK = np.full((2, 3), 0.5, np.float32)
TARGET = np.zeros((2, 3), np.float32)


def score(name: str, chunk: np.ndarray | DecodeFailure | None = CHUNK) -> float:
    return score_action(name, "said", PARSED, [3, 5], chunk, TARGET).total


def write(path: Path, body: str) -> str:
    path.write_text(body)
    return f"{path}:reward"


def test_built_in_rewards_are_the_pure_functions() -> None:
    assert reward_names()[:4] == ("paper", "decoded", "answer", "trace")
    for name in ("paper", "decoded"):
        expected = ACTION_REWARDS[name](PARSED, [3, 5], CHUNK, TARGET)
        assert score_action(name, "said", PARSED, [3, 5], CHUNK, TARGET) == expected
        assert reward_content(name) == {}
    assert score("paper") == 0.75  # format 1, one of two target tokens


def test_a_file_s_function_is_given_the_answer_and_pays_its_number(tmp_path: Path) -> None:
    body = """
import numpy as np

def reward(answer):
    assert answer.text == "said" and answer.well_formed
    assert answer.action_ids == (3, 4) and answer.target_ids == (3, 5)
    if answer.chunk is None:
        return -2
    return np.float32(10 * np.abs(answer.chunk - answer.target_chunk).max())
"""
    name = write(tmp_path / "mine.py", body)
    assert check_reward_name(name) == name
    reward = score_action(name, "said", PARSED, [3, 5], CHUNK, TARGET)
    assert reward.total == reward.action == 5.0 and reward.format == 1.0
    assert reward.prefix == 0.5 and reward.l1 == 0.5  # still logged
    assert score(name, None) == score(name, DecodeFailure("count", 5, 6)) == -2.0


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("def reward(answer): return float('nan')", "returned nan, not a finite number"),
        ("def reward(answer): return 'much'", "returned 'much', not a finite number"),
        ("def reward(answer): return None", "returned None, not a finite number"),
        ("def reward(answer): return True", "returned True, not a finite number"),
        ("def reward(answer): return answer.nothing", "raised AttributeError"),
        ("def reward(answer, other): return 1.0", "takes one argument, a SampledAnswer"),
        ("def reward(): return 1.0", "takes one argument, a SampledAnswer"),
        ("reward = 3", "takes one argument, a SampledAnswer"),
        ("def other(answer): return 1.0", "has no function `reward`"),
        ("1 / 0", "running it raised ZeroDivisionError"),
        ("def reward(", "running it raised SyntaxError"),
    ],
)
def test_a_wrong_reward_is_one_message(tmp_path: Path, body: str, problem: str) -> None:
    with pytest.raises(RoboAlignError) as error:
        score(write(tmp_path / "mine.py", body))
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_a_name_or_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`papr` not found. Available: paper, decoded"):  # noqa: RUF043
        check_reward_name("papr")
    with pytest.raises(RoboAlignError, match=r"none\.py does not exist"):
        reward_content(f"{tmp_path}/none.py:reward")


def test_an_edited_file_is_another_setting(tmp_path: Path) -> None:
    name = write(tmp_path / "mine.py", "def reward(answer): return 1.0\n")
    before = reward_content(name)
    assert reward_content(name) == before
    write(tmp_path / "mine.py", "def reward(answer): return 2.0\n")
    assert reward_content(name) != before and set(before) == {"reward_file"}


def always_two(answer: SampledAnswer) -> float:
    """A package's reward."""
    return 2.0


def test_a_package_s_reward_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(name="lab-rewards")
    points = [
        EntryPoint("two", f"{__name__}:always_two", REWARD_ENTRY_POINTS)._for(package),  # type: ignore[arg-type]
        EntryPoint("broken", "no_such_module:f", REWARD_ENTRY_POINTS)._for(package),  # type: ignore[arg-type]
    ]
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: points if group == REWARD_ENTRY_POINTS else []
    )
    assert check_reward_name("two") == "two" and score("two") == 2.0
    assert set(reward_content("two")) == {"reward_file"}
    with pytest.raises(RoboAlignError, match="package lab-rewards"):
        reward_content("broken")
