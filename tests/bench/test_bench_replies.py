"""Golden replies in the forms that Qwen, RoboPoint and RoboBrain write: the values are read by eye."""

from typing import get_args

import numpy as np
import pytest
from golden_replies import LETTERS, POINTS, YES_NO
from hypothesis import given
from hypothesis import strategies as st

from roboalign.bench.items import BenchItem
from roboalign.bench.letters import LETTER_RULES, last_number, yes_or_no
from roboalign.bench.points import (
    CONVENTIONS,
    PointForm,
    Spot,
    bare_pair,
    boxes_in,
    spots_in,
    to_fraction,
    to_pixel,
)
from roboalign.bench.presets import Protocol, as_written
from roboalign.bench.reading import grade, spoken
from roboalign.bench.regions import in_polygon, mask_score, outside
from roboalign.conversations.styles.registry import STYLES

LABELLED, PAPER = STYLES["labelled"], STYLES["paper"]
SIZE = (640, 480)


@pytest.mark.parametrize(("reply", "ranked", "stated", "leading", "first"), LETTERS)
def test_letters(reply: str, ranked: str, stated: str, leading: str, first: str) -> None:
    found = {rule: read(reply, "ABCD") for rule, read in LETTER_RULES.items()}
    expected = {"ranked": ranked, "stated": stated, "leading": leading, "first-word": first}
    assert found == expected


@pytest.mark.parametrize(("reply", "starts", "last_line", "answer_line"), YES_NO)
def test_yes_and_no(reply: str, starts: str, last_line: str, answer_line: str) -> None:
    assert yes_or_no(reply, "starts") == starts
    assert yes_or_no(reply, "last-line") == last_line
    assert yes_or_no(reply, "answer-line") == answer_line


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", 2.0),
        ("Score: 2/3", 3.0),
        ("I would give this 1.5.", 1.5),
        ("The score is -1", -1.0),
        ("Rating: [[3]]", 3.0),
        ("none", None),
        ("v1.2.3 is a version", None),
        ("a4 paper", None),
    ],
)
def test_numbers(text: str, number: float | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(("reply", "form", "points", "boxes"), POINTS)
def test_points_and_boxes(reply: str, form: str, points: list, boxes: list) -> None:
    assert [(spot.x, spot.y) for spot in spots_in(reply, form)] == points
    found = [(box.first.x, box.first.y, box.last.x, box.last.y) for box in boxes_in(reply, form)]
    assert found == boxes


def test_a_pair_alone() -> None:
    assert bare_pair("12 7") == [Spot(12, 7, True)] == bare_pair(" 12, 7. ")
    assert bare_pair("point 12 7") == bare_pair("12 7 9") == bare_pair("12") == []


# two numbers, convention, pixel of a 640 x 480 mask; the image is 640 x 480, seen as 320 x 224
CONVERTED = [
    ("(0.5, 0.25)", "unit", (320, 120)),
    ("(1, 1)", "unit", (640, 480)),
    ("(500, 250)", "thousand", (320, 120)),
    ("(1000, 1000)", "thousand", (640, 480)),
    ("(500, 250)", "unit-or-thousand", (320, 120)),
    ("(0.5, 0.25)", "unit-or-thousand", (320, 120)),
    ("(500, 250)", "unit-or-pixels", (500, 250)),
    ("(0.5, 1)", "unit-or-pixels", (320, 480)),
    ("(376, 309)", "pixels", (376, 309)),
    ("(160, 56)", "seen-pixels", (320, 120)),
    ("(319, 223)", "seen-pixels", (638, 477)),
    ("(0, 31)", "cells", (10, 472)),
]


@pytest.mark.parametrize(("text", "convention", "pixel"), CONVERTED)
def test_coordinates(text: str, convention: str, pixel: tuple[int, int]) -> None:
    (spot,) = spots_in(text, "pairs")
    assert to_pixel(spot, convention, SIZE, (320, 224), SIZE) == pixel


def test_a_mask_of_another_size_is_the_same_image() -> None:
    assert to_pixel(Spot(320, 240, True), "pixels", SIZE, SIZE, (64, 48)) == (32, 24)
    assert to_pixel(Spot(639, 479, True), "pixels", SIZE, SIZE, SIZE) == (639, 479)


@given(st.integers(0, 4095), st.integers(0, 4095))
def test_every_pixel_of_an_image_stays_itself(x: int, y: int) -> None:
    spot = Spot(float(x), float(y), True)
    assert to_pixel(spot, "pixels", (4096, 4096), SIZE, (4096, 4096)) == (x, y)


@given(st.text(alphabet='0123456789.-+,()[] \n{}":pointbx_2d`', max_size=80))
def test_no_text_breaks_a_parser(text: str) -> None:
    for form in get_args(PointForm):
        for spot in spots_in(text, form):
            for convention in CONVENTIONS:
                to_pixel(spot, convention, SIZE, SIZE, SIZE)
                to_fraction(spot, convention, SIZE, SIZE)
        boxes_in(text, form)
    for read in LETTER_RULES.values():
        assert len(read(text, "ABCD")) <= len(text)


def test_a_number_of_400_digits_is_outside() -> None:
    (spot,) = spots_in(f"({'9' * 400}, 1)", "tuples")
    assert outside([to_pixel(spot, "unit", SIZE, SIZE, SIZE)], SIZE) == 1


def test_the_score_of_points_under_a_mask() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:5] = True
    points = [(0, 0), (2, 1), (4, 2), (6, 1), (-1, 1)]
    assert mask_score(mask, points, "mean") == 2 / 5
    assert mask_score(mask, points, "any") == 1.0
    assert mask_score(mask, points, "first") == 0.0
    assert mask_score(mask, points[1:], "first") == 1.0
    assert mask_score(mask, [], "mean") == mask_score(mask, [], "any") == 0.0
    assert outside(points, (6, 4)) == 2
    # a box of 2 x 3 pixels of which 2 x 1 are inside the mask, and one that is cut at the edge
    assert mask_score(mask, [], "mean", [(2, 0, 4, 2)]) == 2 / 4
    assert mask_score(mask, [(0, 0)], "mean", [(4, 2, 99, 3)]) == 1 / 3
    assert mask_score(mask, [], "mean", [(5, 3, 2, 1)]) == 0.0


def test_a_point_in_a_polygon() -> None:
    diamond = [(0.5, 0.1), (0.9, 0.5), (0.5, 0.9), (0.1, 0.5)]
    assert in_polygon(0.5, 0.5, diamond) and in_polygon(0.3, 0.4, diamond)
    assert not in_polygon(0.2, 0.2, diamond) and not in_polygon(1.2, 0.5, diamond)
    square = [(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)]
    assert in_polygon(0.25, 0.25, square) and not in_polygon(0.75, 0.75, square)


# reply, style, mode, label, answer, reason
SPOKEN = [
    ("B", PAPER, "direct", "letter", "B", "ok"),
    ("<think>It is near.</think><answer>B</answer>", PAPER, "think", "letter", "B", "ok"),
    ("<think>It is near.</think>\nB", PAPER, "think", "letter", "B", "ok"),
    ("It is near.</think>B", PAPER, "think", "letter", "B", "ok"),
    ("<think></think><answer>(0.1, 0.2)</answer>", PAPER, "direct", "point", "(0.1, 0.2)", "ok"),
    ("<think>a</think><answer>[(1, 2)]", PAPER, "think", "point", "[(1, 2)]", "ok"),
    ("<think>A or B, I wonder", PAPER, "think", "letter", None, "a reasoning without an end"),
    ("", PAPER, "direct", "letter", None, "an empty answer"),
    ("<think>A.</think>", PAPER, "think", "letter", None, "an empty answer"),
    ("<ACTION_START><FAST_3><ACTION_END>", PAPER, "direct", "letter", None, "action tokens"),
    ("<think></think><answer>letter B</answer>", LABELLED, "direct", "letter", "B", "ok"),
    ("<think>x</think><answer>point 12 7</answer>", LABELLED, "think", "point", "12 7", "ok"),
    (
        "<think></think><answer>verdict yes</answer>",
        LABELLED,
        "direct",
        "letter",
        None,
        "not opened with `letter`, as the model's prompt style asks",
    ),
]


@pytest.mark.parametrize(("text", "style", "mode", "label", "answer", "reason"), SPOKEN)
def test_the_answer_of_a_reply(text, style, mode, label, answer, reason) -> None:
    found = spoken(text, style, mode, label)
    assert (found.answer, found.reason) == (answer, reason)


def test_letters_of_options_that_do_not_exist_are_unreadable() -> None:
    item = BenchItem("1", "letter", (), "?", "A", letters="AB")
    protocol = Protocol("test", as_written, letter="leading")
    found = grade("The first", item, protocol, PAPER, "direct", SIZE, SIZE)
    assert (found.read, found.score, found.reason) == ("", 0.0, "no letter of an option")
    right = grade("A", item, protocol, PAPER, "direct", SIZE, SIZE)
    assert (right.read, right.score, right.reason) == ("A", 1.0, "ok")


def test_there_are_sixty_golden_replies() -> None:
    assert len({row[0] for row in (*LETTERS, *YES_NO, *POINTS, *SPOKEN)}) >= 60
