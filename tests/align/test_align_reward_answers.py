import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.align.rewards.answers import (
    ANSWER_REWARDS,
    TAU_CELLS,
    AnswerReward,
    read_trace,
    score_answers,
    trace_closeness,
)
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.reply import ParsedReply
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.questions.registry import label_of

LABELLED = STYLES["labelled"]

GOOD = "<think>It is left. So B.</think><answer>letter B</answer>"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (GOOD, "B"),
        (" <think>\nIt is left.\n\nSo B.</think>\n<answer> letter B </answer>\n", "B"),
        (GOOD.replace("letter B", "letter: B"), "B"),
        (GOOD.replace("letter B", "letter B: the cup"), "B: the cup"),
    ],
)
def test_well_formed(text, read):
    parsed = LABELLED.parse(text, "think", "letter")
    assert parsed.well_formed and parsed.answer == read and parsed.reason == "ok"
    assert " ".join(parsed.reasoning.split()) == "It is left. So B."


AROUND = "text around <think>reasoning</think><answer>"


@pytest.mark.parametrize(
    ("text", "read", "reason"),
    [
        ("", None, "not one <answer>"),
        ("<think>It is left.</think>letter B", None, "not one <answer>"),
        ("<think>It is left.</think><answer>letter B", None, "not one <answer>"),  # cut off
        (GOOD + "<answer>letter B</answer>", None, "not one <answer>"),
        (
            "<think>It is <answer>letter A</answer></think><answer>letter B</answer>",
            None,
            "not one <answer>",
        ),
        ("<answer>letter B</answer>", "B", AROUND),
        ("so: " + GOOD, "B", AROUND),
        (GOOD + " thanks", "B", AROUND),
        (GOOD + "<|im_end|>", "B", AROUND),
        (GOOD.replace("</think>", "</think> so "), "B", AROUND),
        ("<think>It</think><think>is</think><answer>letter B</answer>", "B", AROUND),
        ("<think>It<think>is</think></think><answer>letter B</answer>", "B", AROUND),
        ("<think>It is</answer></think><answer>letter B</answer>", "B", AROUND),
        ("<think>It is</think><answer><think>letter B</think></answer>", None, AROUND),
        ("<think></think><answer>letter B</answer>", "B", "empty reasoning"),
        ("<think> \n </think><answer>letter B</answer>", "B", "empty reasoning"),
        (GOOD.replace("letter", "point"), None, "another label than the question's"),
        (GOOD.replace("letter ", ""), None, "another label than the question's"),
        (GOOD.replace("letter B", "letters B"), None, "another label than the question's"),
        (
            GOOD.replace("letter B", "letter "),
            None,
            "another label than the question's",
        ),  # nothing behind the label
        (GOOD.replace("letter B", "letter:"), "", "nothing behind the label"),
        (GOOD.replace("It is left", "It is <FAST_3>"), "B", "action tokens in an answer in words"),
        (
            "<think>go</think><answer><ACTION_START><FAST_3><ACTION_END></answer>",
            None,
            "action tokens in an answer in words",
        ),
    ],
)
def test_not_well_formed(text, read, reason):
    assert LABELLED.parse(text, "think", "letter") == ParsedReply(False, "", read, reason)


def test_a_special_token_breaks_the_format():
    text = GOOD.replace("It is", "It <|image_pad|> is")
    assert LABELLED.parse(text, "think", "letter", ["<|im_end|>", "<|image_pad|>"]) == ParsedReply(
        False, "", "B", "a special token"
    )
    (reward,) = score_answers(
        [text],
        [asked("movement_choice", "B")],
        preset="answer",
        style=LABELLED,
        special=["<|image_pad|>"],
    )
    assert reward == AnswerReward(0.0, 0.0, 0.0, 1.0, "a special token")


WORDS = st.text("ab <>/.", min_size=1, max_size=8)


@given(WORDS, WORDS, st.sampled_from(["letter", "point", "side"]))
def test_what_training_imitates_is_well_formed(reasoning, text, label):
    """Whatever has no tag in it and something in it: `reply` writes what `parse` reads."""
    if reasoning.strip() and text.strip(" "):
        parsed = LABELLED.parse(LABELLED.reply(text, "think", label, reasoning), "think", label)
        assert parsed == ParsedReply(True, reasoning.strip(), text.strip(), "ok")


def asked(kind: str, expected: str) -> Conversation:
    text = LABELLED.question("Where?", "think", label_of(kind))
    return Conversation(
        "one", "", 0, "", (), (Turn("reasoning", kind, "think", text, "", expected),)
    )


@pytest.mark.parametrize(
    ("kind", "expected", "inside", "right"),
    [
        ("movement_choice", "B", "letter B", 1),
        ("movement_choice", "B", "letter b.", 1),
        ("movement_choice", "B", "letter A", 0),
        ("movement_choice", "B", "letter B: left", 0),  # the letter alone was asked for
        ("choice", "C", "letter C", 1),
        ("choice", "C", "letter A", 0),
        ("point", "12 20", "point 14 18", 1),  # 2 cells on both axes
        ("point", "12 20", "point 15 20", 0),
        ("gripper_point", "12 20", "point 12 20", 1),
        ("text", "The red  cup.", "answer the red cup", 1),
        ("text", "the red cup", "answer a red cup", 0),
    ],
)
def test_the_answer_preset_by_hand(kind, expected, inside, right):
    text = f"<think>Left of it. So there.</think><answer>{inside}</answer>"
    formed, bare = score_answers(
        [text, f"<think></think><answer>{inside}</answer>"],
        [asked(kind, expected)] * 2,
        preset="answer",
        style=LABELLED,
    )
    assert formed == AnswerReward((1 + right) / 2, 1.0, right, right, "ok")
    assert bare == AnswerReward(0.0, 0.0, 0.0, right, "empty reasoning")  # right, and paid nothing


def test_an_unreadable_answer_earns_half_where_the_format_holds():
    (reward,) = score_answers(
        [GOOD.replace("letter B", "point here")],
        [asked("point", "1 2")],
        preset="answer",
        style=LABELLED,
    )
    assert reward == AnswerReward(0.5, 1.0, 0.0, 0.0, "ok")


def test_faults_of_the_caller_are_errors():
    with pytest.raises(ValueError):
        score_answers([GOOD], [], preset="answer", style=LABELLED)
    with pytest.raises(RoboAlignError, match="unknown question type 'nonsense'"):
        score_answers(
            [GOOD],
            [Conversation("one", "", 0, "", (), (Turn("", "nonsense", "", "", "", ""),))],
            preset="answer",
            style=LABELLED,
        )
    with pytest.raises(ValueError, match="no list of points"):
        ANSWER_REWARDS["trace"](Turn("reasoning", "point", "think", "", "", "left"), "1 2")


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("12 20, 13 22, 15 25", [(12, 20), (13, 22), (15, 25)]),
        ("12 20", [(12, 20)]),
        (" 1 2 ,3  4. ", [(1, 2), (3, 4)]),
        ("", None),
        ("12", None),
        ("12 20, 13", None),
        ("12 20 13 22", None),
        ("12, 20, 13, 22", None),
        ("12 20; 13 22", None),
        ("12 20, 13 22,", None),
        ("-1 2", None),
        ("left", None),
        ("12345 1", None),
    ],
)
def test_read_trace(text, points):
    assert read_trace(text) == points


def test_trace_closeness_by_hand():
    expected = "0 0, 10 10"
    assert trace_closeness(expected, expected) == 1.0
    assert trace_closeness(expected, "3 4, 10 10", tau=2.5) == pytest.approx(
        math.exp(-1)
    )  # distances 5 and 0
    assert trace_closeness(expected, "3 4, 10 15", tau=2.5) == pytest.approx(
        math.exp(-2)
    )  # 5 and 5
    assert trace_closeness(expected, "3 4, 10 15") == pytest.approx(math.exp(-5 / TAU_CELLS))
    assert trace_closeness(expected, "10 10, 0 0") == pytest.approx(
        math.exp(-math.sqrt(200) / TAU_CELLS)
    )  # the order
    assert [
        trace_closeness(expected, other) for other in ("0 0", "0 0, 10 10, 10 10", "left", "", None)
    ] == [0.0] * 5


CELLS = st.tuples(st.integers(0, 31), st.integers(0, 31))


@given(st.lists(CELLS, min_size=1, max_size=4), st.integers(0, 9), st.integers(0, 9))
def test_a_shift_of_all_points_costs_its_length(points, right, down):
    written = [
        ", ".join(f"{x + dx} {y + dy}" for x, y in points) for dx, dy in ((0, 0), (right, down))
    ]
    found = trace_closeness(*written)
    assert found == pytest.approx(math.exp(-math.hypot(right, down) / TAU_CELLS)) and 0 < found <= 1


def test_the_trace_preset_is_paid_by_distance_and_only_in_the_format():
    conversation = asked("point", "0 0, 10 10")
    texts = [
        "<think>So.</think><answer>point 3 4, 10 15</answer>",
        "<answer>point 3 4, 10 15</answer>",
    ]
    near = math.exp(-5 / TAU_CELLS)
    formed, bare = score_answers(texts, [conversation] * 2, preset="trace", style=LABELLED)
    assert (formed.total, formed.score, formed.accuracy) == (
        pytest.approx((1 + near) / 2),
        near,
        near,
    )
    assert (bare.total, bare.score, bare.accuracy) == (0.0, 0.0, near)
