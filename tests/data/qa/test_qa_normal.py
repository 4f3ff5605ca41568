"""Points, boxes and choices: read, refused, written and read again; the bridge to a conversation."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from roboalign.conversations.conversation import messages, read_conversations, write_conversations
from roboalign.conversations.qa import normal
from roboalign.conversations.qa.convert import to_conversation
from roboalign.conversations.qa.images import LazyImage
from roboalign.conversations.qa.normal import (
    Boxes,
    Choice,
    Points,
    QaSample,
    parse_boxes,
    parse_choice,
    parse_points,
)
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault, Refused

LABELLED = STYLES["labelled"]

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


def sample(
    *turns: tuple[str, str], images: int = 1, targets: tuple = (), kind: str = "embodied", **more
) -> QaSample:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 8, 3), 7, np.uint8)).save(buffer, "PNG")
    pictures = tuple(LazyImage("x", "r", held=buffer.getvalue()) for _ in range(images))
    return QaSample("7", "src", pictures, turns, kind, targets or (None,) * len(turns), **more)


def test_conversation_by_hand(tmp_path):
    request = "Your answer should be formatted as a list of tuples."
    turns = (
        ("<image>\nPoint at the cup. " + request, "[(0.5, 1.0)]"),
        ("Which?\nA. a\nB. b", "b"),
        ("Why?", "So."),
    )
    targets = (Points(((0.5, 1.0),)), Choice(("a", "b"), 1), None)
    found = to_conversation(sample(*turns, targets=targets, system="Be brief."), grid=32)
    assert (found.id, found.task, found.frame) == (
        "src/7",
        "src",
        0,
    ) and found.episode_id.startswith("src/")
    assert [turn.question for turn in found.turns] == [
        'Be brief.\nPoint at the cup. Answer directly as "point".',
        'Which?\nA. a\nB. b\nAnswer directly as "letter".',
        'Why? Answer directly as "answer".',
    ]
    assert [turn.answer for turn in found.turns] == [
        "<think></think><answer>point 16 31</answer>",
        "<think></think><answer>letter B</answer>",
        "<think></think><answer>answer So.</answer>",
    ]
    assert [(t.kind, t.type, t.mode, t.expected) for t in found.turns] == [
        ("embodied", "point", "direct", "16 31"),
        ("embodied", "choice", "direct", "B"),
        ("embodied", "text", "direct", "So."),
    ]
    assert [LABELLED.bare(turn.question) for turn in found.turns][2] == "Why?"
    assert messages(found)[0]["content"][0] == {"type": "image"}
    write_conversations(tmp_path / "train-0.parquet", [found])
    assert read_conversations(tmp_path, "train") == [found]
    plain = to_conversation(sample(*turns, targets=targets))
    assert plain.turns[0].expected == "[(0.5, 1.0)]" and request in plain.turns[0].question
    assert plain.episode_id == found.episode_id  # the same image: never on both sides of a split


def test_conversation_with_a_reasoning():
    reply = "<think>It is left.</think><answer>B</answer>"
    (turn,) = to_conversation(sample(("<image>\nSide?", reply), kind="reasoning")).turns
    assert (turn.mode, turn.answer) == (
        "think",
        "<think>It is left.</think><answer>answer B</answer>",
    )
    assert turn.question == 'Side? Think first, then answer as "answer".'


@pytest.mark.parametrize(
    "given_, reason",
    [
        (sample(("Q <|im_end|>", "A")), "command"),
        (sample(("<image> Q", "(3, 3)"), targets=(Refused("outside"),)), "outside"),
    ],
)
def test_what_has_no_place_in_a_conversation_is_a_value(given_, reason):
    found = to_conversation(given_)
    assert isinstance(found, Refused) and reason in found.reason


@pytest.mark.parametrize(
    "turns, images, questions",
    [
        ([("Q", "A")], 0, ["Q R"]),
        ([("<image>\n<image> Q", "A")], 2, ["Q R"]),
        ([("Given <image> say", "A")], 1, ["Given <image> say R"]),
        ([("Q\n<image>", "A"), ("<image> P", "A")], 2, ["Q\n<image> R", "<image>P R"]),
        ([("<image>\nQ", "A"), ("<image> P", "A")], 2, ["<image>Q R", "<image>P R"]),
    ],
)
def test_images_stay_where_the_source_has_them(turns, images, questions):
    found = to_conversation(sample(*turns, images=images))
    assert [t.question for t in found.turns] == [
        q.replace(" R", ' Answer directly as "answer".') for q in questions
    ]
    held = [image.data() for image in sample(*turns, images=images).images]
    assert list(found.images) == held


def test_an_image_is_kept_as_its_file_is():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 8, 3), 7, np.uint8)).save(buffer, "JPEG")
    picture = LazyImage("x", "r", held=buffer.getvalue())
    given_ = QaSample("7", "src", (picture,), (("Q", "A"),), "general", (None,))
    assert to_conversation(given_).images == (buffer.getvalue(),)


def test_broken_image_is_a_fault():
    broken = QaSample(
        "1",
        "s",
        (LazyImage("x", "record 9", held=b"no"),),
        (("<image> Q", "A"),),
        "general",
        (None,),
    )
    found = to_conversation(broken)
    assert isinstance(found, Fault) and found.where == "record 9, image x"
