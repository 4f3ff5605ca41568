"""Conversations of 0 to N images: where images are shown, and what the shards hold for other tools."""

import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from roboalign.conversations.conversation import (
    Conversation,
    Turn,
    messages,
    read_conversations,
    write_conversations,
)
from roboalign.conversations.stored import StoredConversations
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.placement import IMAGE_MARK, kept_images, leading_images, marked, unmarked


def image(level: int, kind: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (level, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def talk(name: str, questions: list[str], images: list[bytes], kinds: str = "") -> Conversation:
    kinds = kinds or "g" * len(questions)
    names = {"g": "general", "a": "action"}
    turns = tuple(
        Turn(names[kind], "text", "direct", question, f"answer {number}", "x")
        for number, (kind, question) in enumerate(zip(kinds, questions))
    )
    return Conversation(name, "episode", 0, "task", tuple(images), turns)


TALKS = [
    talk("none", ["Why?", "How?"], []),
    talk("one", ["What?", "Where?"], [image(1)]),
    talk("two", ["Which?"], [image(1), image(2, "JPEG")]),
    talk("inside", ["Is <image> like <image>?"], [image(3, "WEBP"), image(4)]),
    talk("late", ["Hello.", "And <image>?"], [image(5, "JPEG", (40, 30))]),
    talk("mixed", [f"{IMAGE_MARK}First?", "Then <image>"], [image(6), image(7)]),
]


def test_markers_by_hand() -> None:
    assert marked(["a", "b"], 2) == ["<image><image>a", "b"]
    assert marked(["a", "b <image>"], 1) == ["a", "b <image>"]
    assert marked(["a"], 0) == ["a"]
    assert unmarked(["<image><image>a", "b"]) == ("a", "b")
    assert unmarked(["<image>a", "<image>b"]) == ("<image>a", "<image>b")
    assert unmarked(["a <image>"]) == ("a <image>",)
    assert leading_images(" <image>\n <image> a <image>") == (2, "a <image>")
    assert leading_images("a <image>") == (0, "a <image>")


@pytest.mark.parametrize(("questions", "images"), [(["a <image>"], 2), (["<image>", "<image>"], 1)])
def test_other_numbers_of_markers_are_refused(questions: list[str], images: int) -> None:
    count = sum(question.count(IMAGE_MARK) for question in questions)
    problem = f"its questions have {count} <image> markers and it has {images} images"
    with pytest.raises(RoboAlignError, match=problem):
        marked(questions, images)


def test_a_literal_marker_never_becomes_a_picture() -> None:
    for style in STYLES.values():
        with pytest.raises(RoboAlignError, match="spells <image>"):
            style.action_question("push the <image> button", "direct")
    one = Conversation(
        "c", "e", 0, "t", (image(1),), (Turn("general", "text", "direct", "Q", "an <image>", "x"),)
    )
    with pytest.raises(RoboAlignError, match="conversation c: an answer spells <image>"):
        messages(one)


def test_images_of_turns_left_out_come_before_the_next() -> None:
    questions = ["<image>a", "b", "c <image>", "d <image>"]
    assert kept_images(questions, [False, True, False, True]) == (
        ("<image>b", "<image>d <image>"),
        (0, 1, 2),
    )
    assert kept_images(questions, [True, False, False, False]) == (("<image>a",), (0,))
    assert kept_images(questions, [False] * 4) == ((), ())


TEXT = st.text(st.sampled_from("ab \n"), max_size=4)


@given(st.lists(st.lists(TEXT, min_size=1, max_size=4), min_size=1, max_size=4))
def test_each_image_is_marked_once_whatever_is_left_out(pieces: list[list[str]]) -> None:
    questions = [IMAGE_MARK.join(one) for one in pieces]
    images = sum(question.count(IMAGE_MARK) for question in questions)
    plain = unmarked(questions)
    assert marked(plain, images) == questions
    for number in range(1, len(questions) + 1):
        keep = [place % number == 0 for place in range(len(questions))]
        kept, numbers = kept_images(questions, keep)
        assert sum(question.count(IMAGE_MARK) for question in kept) == len(numbers)
        assert list(numbers) == list(range(len(numbers)))
        texts = [
            question.replace(IMAGE_MARK, "") for question, wanted in zip(questions, keep) if wanted
        ]
        assert [question.replace(IMAGE_MARK, "") for question in kept] == texts


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_conversations(tmp_path / "train-00000.parquet", TALKS)
    assert read_conversations(tmp_path, "train") == TALKS
    stored = StoredConversations(tmp_path, "train")
    assert list(stored) == TALKS
    # The characters of the texts, and 1,000 for each image.
    assert stored.lengths.tolist()[:4] == [24, 1027, 2014, 2018]
    assert stored.spelling([IMAGE_MARK]) is None and stored.spelling(["Hello"]) == ("late", "Hello")


def test_kinds_left_out_keep_the_images_before_the_next_turn(tmp_path: Path) -> None:
    mixed = talk("c", ["<image>a", "b", "c <image>"], [image(1), image(2)], "aga")
    write_conversations(tmp_path / "train-00000.parquet", [mixed])
    for found in (
        read_conversations(tmp_path, "train", ["general"]),
        list(stored := StoredConversations(tmp_path, "train", ["general"])),
    ):
        assert [(turn.question, turn.answer) for turn in found[0].turns] == [("b", "answer 1")]
        assert found[0].images == (image(1),)
    assert stored.lengths.tolist() == [1 + len("answer 1") + 1_000]
    (found,) = read_conversations(tmp_path, "train", ["action"])
    assert [turn.question for turn in found.turns] == ["<image>a", "c <image>"]


def test_messages_have_an_image_where_the_marker_is() -> None:
    kinds = [
        [part.get("text", part["type"]) for part in message["content"]]
        for message in messages(TALKS[3]) + messages(TALKS[2])
    ]
    assert kinds == [
        ["Is ", "image", " like ", "image", "?"],
        ["answer 0"],
        ["image", "image", "Which?"],
        ["answer 0"],
    ]


def test_the_datasets_library_reads_a_shard_and_decodes_its_images(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "train-00000.parquet"
    write_conversations(path, TALKS)
    found = datasets.load_dataset(
        "parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"), split="train"
    )
    for row, wanted in zip(found, TALKS, strict=True):
        assert [one.size for one in row["images"]] == [
            Image.open(io.BytesIO(data)).size for data in wanted.images
        ]
        whole = [
            {
                "role": one["role"],
                "content": [{"type": None, "text": None} | p for p in one["content"]],
            }
            for one in messages(wanted)
        ]
        assert row["messages"] == whole
        assert sum(one["content"].count(IMAGE_MARK) for one in row["chat"]) == len(wanted.images)
    assert np.asarray(found[1]["images"][0].convert("RGB"))[0, 0].tolist() == [1, 0, 0]


def test_a_mixture_of_an_earlier_version_is_refused_with_a_fix(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.parquet"
    row = {"id": "a", "image": {"bytes": b"x", "path": None}, "turns": []}
    pq.write_table(pa.Table.from_pylist([row]), path)
    for read in (read_conversations, StoredConversations):
        with pytest.raises(RoboAlignError, match="earlier version, with one image") as caught:
            read(tmp_path, "train")
        assert caught.value.where == str(path) and "remove its folder" in caught.value.fix
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(RoboAlignError, match=re.escape("it has no column episode_id, frame")):
        read_conversations(tmp_path, "train")
