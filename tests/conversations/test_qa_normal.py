"""Points, boxes and choices: read, refused, written and read again; the bridge to a conversation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.conversations.qa import normal
from roboalign.conversations.qa.normal import (
    Boxes,
    Choice,
    Points,
    parse_boxes,
    parse_choice,
    parse_points,
)
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Refused

UNIT = st.floats(0, 1)
STYLES = st.sampled_from(
    [("fraction", None), ("percent", None), ("per-mille", None), ("pixels", (640, 480))]
)
FORMS = st.sampled_from(["tuple", "list", "tag", "json"])
HALF_STEP = {"fraction": 0.0005, "percent": 0.0005, "per-mille": 0.0005, "pixels": 0.5 / 480}


@pytest.mark.parametrize(
    "text, style, size, expected",
    [
        ("[(0.461, 0.527), (0.5, .25)]", "fraction", None, ((0.461, 0.527), (0.5, 0.25))),
        ("(0.1, 0.2)", "fraction", None, ((0.1, 0.2),)),
        ("[0.1,0.2]", "fraction", None, ((0.1, 0.2),)),
        (" [[10, 20], [30, 40]]\n", "percent", None, ((0.1, 0.2), (0.3, 0.4))),
        ("(500, 1000) (0, 250)", "per-mille", None, ((0.5, 1.0), (0.0, 0.25))),
        ("(320, 120)", "pixels", (640, 480), ((0.5, 0.25),)),
        ('<point x="61.5" y="40.4" alt="mug">mug</point>', "percent", None, ((0.615, 0.404),)),
        (
            "<point x=50 y=25></point><point y='75' x='50'>",
            "percent",
            None,
            ((0.5, 0.25), (0.5, 0.75)),
        ),
        (
            '```json\n[{"point_2d": [500, 250], "label": "cup"}]\n```',
            "per-mille",
            None,
            ((0.5, 0.25),),
        ),
        ('{"point_2d": [500, 250]}', "per-mille", None, ((0.5, 0.25),)),
        ("[(5e-1, +0.25)]", "fraction", None, ((0.5, 0.25),)),
    ],
)
def test_points_by_hand(text, style, size, expected):
    found = parse_points(text, style, size)
    assert isinstance(found, Points)
    assert np.allclose(found.xy, expected, atol=1e-12) and len(found.xy) == len(expected)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[(1.2, 0.5)]", "1.2 is outside 0 to 1"),
        ("(-0.1, 0.5)", "outside"),
        ("(1e999, 0.5)", "outside"),
        ("[(0.1, 0.2), (0.3, 7)]", "outside"),
        ("", "no coordinates"),
        ("[]", "no coordinates"),
        ("[[]]", "not made of"),
        ("the cup", "not made of"),
        ("at (0.1, 0.2) or so", "not made of"),
        ("[(0.1, 0.2), 0.3]", "not made of"),
        ("(0.1, 0.2]", "not made of"),
        ("(0.1, 0.2, 0.3)", "not made of"),
        ("(0.1, 0.2, 0.3, 0.4)", "not made of"),
        ("(nan, 0.2)", "not made of"),
        ("(0.1 0.2)", "not made of"),
        ('[{"point_2d": [0.1]}]', "without 2 numbers"),
        ('[{"point_2d": [0.1, NaN]}]', "outside"),
        ('[{"point_2d": [0.1, true]}]', "without 2 numbers"),
        ('[{"bbox_2d": [0, 0, 1, 1]}]', "without 2 numbers"),
        ('[{"point_2d": [0.1, 0.2]', "not valid JSON"),
        ('{"point_2d": [1' + "0" * 400 + ", 0]}", "beyond every image"),
        ("[" * 100_000 + "{", "not"),
        ('<point x="0.1">a</point>', "not made of"),
        ('<point x="0.1" y="0.2cm">', "not made of"),
        ('<point x="0.1" y="0.2">a</point> there', "not made of"),
        ("<points>", "not made of"),
    ],
)
def test_points_refused_with_a_reason(text, reason):
    found = parse_points(text, "fraction")
    assert isinstance(found, Refused) and reason in found.reason and len(found.reason) < 200


@pytest.mark.parametrize(
    "text, style, size, expected",
    [
        ("[0.1, 0.2, 0.3, 0.4]", "fraction", None, ((0.1, 0.2, 0.3, 0.4),)),
        (
            "[[100, 200, 300, 400], [0, 0, 1000, 1000]]",
            "per-mille",
            None,
            ((0.1, 0.2, 0.3, 0.4), (0, 0, 1, 1)),
        ),
        ("<box>(100,200),(300,400)</box>", "per-mille", None, ((0.1, 0.2, 0.3, 0.4),)),
        ("<box>[[64, 48, 128, 96]]</box>", "pixels", (640, 480), ((0.1, 0.1, 0.2, 0.2),)),
        (
            '[{"bbox_2d": [64, 48, 128, 96], "label": "a"}]',
            "pixels",
            (640, 480),
            ((0.1, 0.1, 0.2, 0.2),),
        ),
    ],
)
def test_boxes_by_hand(text, style, size, expected):
    found = parse_boxes(text, style, size)
    assert isinstance(found, Boxes) and np.allclose(found.corners, expected)


@pytest.mark.parametrize(
    "text",
    [
        "[0.3, 0.2, 0.1, 0.4]",
        "[0.1, 0.4, 0.3, 0.2]",
        "[0.1, 0.2]",
        "<box>1, 0, 1</box>",
        "<box>a 0, 0, 1, 1</box>",
        "[0, 0, 2, 2]",
        "<box>",
        "[[0, 0], [1, 1]]",
    ],
)
def test_boxes_refused(text):
    assert isinstance(parse_boxes(text, "fraction"), Refused)


def test_the_style_is_never_guessed():
    assert parse_points("(500, 250)", "per-mille") == Points(((0.5, 0.25),))
    assert parse_points("(500, 250)", "pixels", (1000, 1000)) == Points(((0.5, 0.25),))
    assert isinstance(parse_points("(500, 250)", "fraction"), Refused)
    for style, size in (("pixels", None), ("pixels", (0, 5)), ("inches", None)):
        with pytest.raises(RoboAlignError):
            parse_points("(1, 1)", style, size)


@given(st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=5), STYLES, FORMS)
def test_points_survive_writing_within_rounding(xy, styled, form):
    style, size = styled
    found = parse_points(normal.write_points(Points(tuple(xy)), style, form, size), style, size)
    assert isinstance(found, Points) and np.shape(found.xy) == np.shape(xy)
    assert np.abs(np.array(found.xy) - xy).max() <= HALF_STEP[style] + 1e-9


@given(st.lists(st.tuples(UNIT, UNIT, UNIT, UNIT), min_size=1, max_size=4), STYLES, FORMS)
def test_boxes_survive_writing_within_rounding(values, styled, form):
    style, size = styled
    corners = tuple((min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in values)
    found = parse_boxes(normal.write_boxes(Boxes(corners), style, form, size), style, size)
    assert isinstance(found, Boxes) and np.shape(found.corners) == np.shape(corners)
    assert np.abs(np.array(found.corners) - corners).max() <= HALF_STEP[style] + 1e-9


def test_written_by_hand():
    points = Points(((0.5, 0.25), (0.1234, 1.0)))
    assert normal.write_points(points, "fraction") == "[(0.500, 0.250), (0.123, 1.000)]"
    assert normal.write_points(points, "per-mille", "list") == "[[500, 250], [123, 1000]]"
    assert (
        normal.write_points(points, "pixels", "json", (640, 480))
        == '[{"point_2d": [320, 120]}, {"point_2d": [79, 480]}]'
    )
    assert (
        normal.write_points(Points(((0.5, 0.25),)), "percent", "tag")
        == '<point x="50.0" y="25.0"></point>'
    )
    assert (
        normal.write_boxes(Boxes(((0.1, 0.2, 0.3, 0.4),)), "per-mille", "tag")
        == "<box>100, 200, 300, 400</box>"
    )
    for wrong in (Points(()), Points(((1.1, 0),)), Points(((float("nan"), 0),))):
        with pytest.raises(RoboAlignError, match="not fractions"):
            normal.write_points(wrong, "fraction")
    with pytest.raises(RoboAlignError, match="written form"):
        normal.write_points(points, "fraction", "yaml")


@given(st.text(alphabet="[](){}<>/,.0123456789eE-+ pointbx=\"'_2d:\n`", max_size=60))
def test_any_text_is_read_or_refused(text):
    for parse, kind in ((parse_points, Points), (parse_boxes, Boxes)):
        found = parse(text, "per-mille")
        values = np.ravel(getattr(found, "xy", None) or getattr(found, "corners", None) or [])
        assert isinstance(found, Refused) or (
            isinstance(found, kind) and (values >= 0).all() and (values <= 1).all()
        )


def test_reading_long_garbage_takes_no_time():
    for text in (
        "1" * 200_000,
        "[" * 200_000,
        "(1," * 70_000,
        "<point " * 30_000,
        "(" + " " * 200_000,
    ):
        assert isinstance(parse_points(text, "fraction"), Refused)


QUESTION = "<image>\nWhat next?\nA. take the cup\n{}\nC. wait."


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "B.",
        "(B)",
        "B)",
        "B. Open the door.",
        "(B) open the door",
        "open the door",
        "Open  the door.",
        "B open the door",
        " B \n",
    ],
)
def test_choice_by_hand(answer):
    expected = Choice(("take the cup", "open the door", "wait."), 1)
    assert parse_choice(QUESTION.format("B. open the door"), answer) == expected
    for form in (
        "(A) take the cup\r\n(B) open the door\n(C) wait.",
        "A) take the cup\n  B) open the door\nC) wait.",
    ):
        assert parse_choice("What next?\n" + form, answer) == expected


@pytest.mark.parametrize(
    "question, answer, reason",
    [
        (QUESTION.format("B. open"), "D", "fits 0"),
        (QUESTION.format("B. open"), "B. wait", "fits 0"),
        (QUESTION.format("B. open"), "I would open", "fits 0"),
        (QUESTION.format("B. open"), "", "fits 0"),
        (QUESTION.format("B. take the cup"), "take the cup", "fits 2"),
        ("A. B\nB. A", "A", "fits 2"),
        (QUESTION.format("D. open"), "A", "lettered ADC"),
        (QUESTION.format("open"), "A", "lettered AC"),
        ("What next?", "A", "no lettered"),
        ("Take vitamin A. It is good.", "A", "no lettered"),
        ("A. b\n(B) c", "A", "no lettered"),
    ],
)
def test_choice_refused(question, answer, reason):
    found = parse_choice(question, answer)
    assert isinstance(found, Refused) and reason in found.reason


OPTION = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=2, max_size=12)


@given(
    st.lists(OPTION, min_size=2, max_size=26, unique_by=normal._plain),
    st.data(),
    st.sampled_from(normal.MARKERS),
    st.booleans(),
)
def test_choice_survives_writing(options, data, marker, text):
    choice = Choice(tuple(options), data.draw(st.integers(0, len(options) - 1)))
    lines, answer = normal.write_choice(choice, marker, text=text)
    found = parse_choice(f"Which?\n{lines}", answer)
    if isinstance(found, Refused):  # only where another option's text reads as this very answer
        assert sum(normal._plain(option) == normal._plain(answer) for option in options) == 1
    else:
        assert found == choice


def test_choice_that_cannot_be_written():
    for wrong in (
        Choice(("a",), 0),
        Choice(("a", "b"), 2),
        Choice(("a\nb", "c"), 0),
        Choice(("", "c"), 0),
    ):
        with pytest.raises(RoboAlignError):
            normal.write_choice(wrong)
    with pytest.raises(RoboAlignError, match="marker"):
        normal.write_choice(Choice(("a", "b"), 0), "{}: ")
