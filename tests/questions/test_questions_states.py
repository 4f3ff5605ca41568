"""Answers computed from robot states are scored: words, numbers within a tolerance, points, traces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.align.rewards.answers import score_answers
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.styles.registry import style_of
from roboalign.core.errors import RoboAlignError
from roboalign.questions.movement import TURNS, centimetres, degrees
from roboalign.questions.numbers import read_numbers
from roboalign.questions.registry import (
    QUESTION_TYPES,
    SOURCE_TYPES,
    chance,
    score_answer,
    types_from,
)


def test_the_registry_has_each_name_once_and_says_how_each_type_is_made_and_scored() -> None:
    made = {facts: types_from(facts) for facts in ("scene", "motion", "frames", "source")}
    assert {facts: len(types) for facts, types in made.items()} == {
        "scene": 26,
        "motion": 13,
        "frames": 1,
        "source": len(SOURCE_TYPES),
    }
    assert sum(map(len, made.values())) == len(QUESTION_TYPES)
    for name, kind in QUESTION_TYPES.items():
        assert name == kind.name and (kind.make is None) == (kind.facts in ("frames", "source"))
        assert (kind.chance is None) == (kind.score == "point") == (kind.label == "point")
        assert bool(kind.units) == (kind.score == "numbers")
    assert chance("gripper_cell", grid=32) == (5 / 32) ** 2 and chance("main_direction") == 1 / 6


@pytest.mark.parametrize(
    ("name", "expected", "predicted", "score"),
    [
        ("displacement", "4 cm right, 2 cm up", "4 cm right, 2 cm up.", 1),
        ("displacement", "4 cm right", "5 cm right", 1),
        ("displacement", "4 cm right", "6 cm right", 0),
        ("displacement", "4 cm right", "4 cm left", 0),
        ("displacement", "4 cm right", "4 cm right, 2 cm up", 0),
        ("displacement", "1 cm up", "1 cm up, 1 cm back", 1),
        ("displacement", "20 cm up", "24 cm up", 1),
        ("displacement", "20 cm up", "25 cm up", 0),
        ("displacement", "1 cm left", "0 cm", 1),
        ("displacement", "0 cm", "2 cm left", 0),
        ("displacement", "4 cm right", "4 cm right, 4 cm right", 0),
        ("displacement", "4 cm right", "4 right", 0),
        ("displacement", "4 cm right", "4 cm right, 0 degrees", 0),
        ("displacement", "0 cm", "", 0),
        ("relative_pose", "5 cm up, turn left 12 degrees", "5 cm up, turn left 17 degrees", 1),
        ("relative_pose", "5 cm up, turn left 12 degrees", "5 cm up, turn left 18 degrees", 0),
        ("relative_pose", "5 cm up, turn left 12 degrees", "5 cm up", 0),
        ("relative_pose", "0 cm, tilt up 1 degree", "0 cm, 0 degrees", 1),
        ("gripper_cell", "12 20", "14 18", 1),
        ("gripper_cell", "12 20", "15 20", 0),
        ("gripper_trace", "1 2, 3 4, 5 6", "3 2, 3 4, 5 8", 1),
        ("gripper_trace", "1 2, 3 4, 5 6", "1 2, 3 4", 0),
        ("next_movement", "right, up", "Right, up", 1),
        ("next_movement", "right, up", "right", 0),
        ("fingers_next", "keep", "keep", 1),
        ("next_movement_choice", "B", "A", 0),
        ("frame_order", "left", None, 0),
    ],
)
def test_scores_by_hand(name: str, expected: str, predicted: str | None, score: float) -> None:
    assert score_answer(name, expected, predicted) == score


@given(st.lists(st.floats(-0.5, 0.5), min_size=6, max_size=6))
def test_what_the_questions_write_is_read_back(values: list[float]) -> None:
    moved, turned = np.array(values[:3]), np.array(values[3:])
    answer = f"{centimetres(moved)}, {degrees(turned)}"
    read = read_numbers(answer, ("cm", "degrees"))
    assert read is not None and list(read.values()) == [
        *np.rint(moved * 100),
        *np.rint(np.degrees(turned)),
    ]
    assert [axis for unit, axis in read if unit == "degrees"] == [positive for _, positive in TURNS]
    assert score_answer("relative_pose", answer, answer) == 1


def test_an_expected_answer_that_is_broken_is_an_error() -> None:
    with pytest.raises(RoboAlignError, match="no such numbers"):
        score_answer("displacement", "far", "4 cm up")


def test_the_reward_of_rl_takes_them() -> None:
    turn = Turn("reasoning", "displacement", "think", "How far?", "", "4 cm up")
    asked = [Conversation("a", "e", 0, "t", b"", (turn,))] * 2
    texts = [f"<think>So.</think><answer>displacement {cm} cm up</answer>" for cm in (5, 9)]
    assert [
        reward.total
        for reward in score_answers(texts, asked, preset="answer", style=style_of(None))
    ] == [1, 0.5]
