"""Samples of questions become conversations, with their images as their files are."""

import io

import numpy as np
import pytest
from PIL import Image

from roboalign.conversations.conversation import messages, read_conversations, write_conversations
from roboalign.conversations.qa.convert import to_conversation
from roboalign.conversations.qa.images import LazyImage
from roboalign.conversations.qa.normal import (
    Choice,
    Points,
    QaSample,
)
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.outcomes import Fault, Refused

LABELLED = STYLES["labelled"]


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
