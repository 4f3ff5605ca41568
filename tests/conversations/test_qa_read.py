"""Layouts and files of question-answering data: what is read, and that each misfit is named."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.conversations.qa import read as qa
from roboalign.conversations.qa import records
from roboalign.conversations.qa.normal import Choice, Points, QaSample
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault, Refused

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def llava(*values: str, **fields: object) -> dict:
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "a", "conversations": turns, **fields}


def read(
    path: Path, records: list, layout: str = "llava", **options: object
) -> list[QaSample | Fault]:
    path.write_text(json.dumps(records))
    return list(qa.read_qa(path, layout, **options))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.json"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(VALUES, max_size=6), st.integers(1, 40), st.sampled_from([None, 0, 2]), st.booleans()
)
def test_array_in_chunks_equals_json_load(values, chunk, indent, spaced):
    text = json.dumps(values, indent=indent, ensure_ascii=False)
    text = f" \n\t{text}\r\n" if spaced else text
    assert list(records.read_array(io.StringIO(text), chunk)) == json.load(io.StringIO(text))


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=4), st.data(), st.integers(1, 20))
def test_array_that_json_load_refuses_is_refused(values, data, chunk):
    text = json.dumps(values)
    at = data.draw(st.integers(0, len(text) - 1))
    broken = data.draw(
        st.sampled_from([text[:at], text[:at] + data.draw(st.characters()) + text[at + 1 :]])
    )
    try:
        expected = json.loads(broken)
        assert isinstance(expected, list)
    except (ValueError, AssertionError):
        with pytest.raises(RoboAlignError):
            list(records.read_array(io.StringIO(broken), chunk))
    else:
        assert repr(list(records.read_array(io.StringIO(broken), chunk))) == repr(
            expected
        )  # repr: NaN equals itself


@pytest.mark.parametrize(
    "text", ["", "{}", "[1,]", "[,1]", "[1 2]", "[1]x", "[1]]", "[1", "[", "[-]", "[1.]", "]"]
)
def test_no_array(text):
    with pytest.raises(RoboAlignError, match="record"):
        list(records.read_array(io.StringIO(text), 2))


def test_array_holds_one_record_and_a_chunk_not_the_file():
    class Endless(io.StringIO):
        taken = 0

        def read(self, size: int = -1) -> str:  # type: ignore[override]
            self.taken += size
            return super().read(size)

    file = Endless(json.dumps([{"text": "x" * 100}] * 20_000))
    assert next(records.read_array(file, 1000)) == {"text": "x" * 100}
    assert file.taken <= 2000
    assert sum(1 for _ in records.read_array(Endless(file.getvalue()), 1000)) == 20_000


def test_llava_by_hand(path):
    record = llava(
        "<image>\nWhere?", "[(0.461, 0.527), (0.5, 0.25)]", "Is it red?", "Yes.", image="a/b.png"
    )
    (sample,) = read(
        path, [record], source="s", kind="embodied", answers=qa.Answers(("points",), "fraction")
    )
    assert isinstance(sample, QaSample)
    assert (sample.id, sample.source, sample.kind, sample.system) == ("a", "s", "embodied", "")
    assert sample.turns == (
        ("<image>\nWhere?", "[(0.461, 0.527), (0.5, 0.25)]"),
        ("Is it red?", "Yes."),
    )
    assert sample.targets == (Points(((0.461, 0.527), (0.5, 0.25))), None)
    assert [image.name for image in sample.images] == ["a/b.png"]


def test_text_only_and_images_without_marks(path):
    none, two = read(
        path, [llava("Hi", "Ho", image=None), llava("Both?", "Yes", image=["a.png", "b.png"])]
    )
    assert none.images == () and none.turns == (("Hi", "Ho"),)
    assert two.turns[0][0] == "<image>\n<image>\nBoth?" and [i.name for i in two.images] == [
        "a.png",
        "b.png",
    ]


def test_sharegpt_system_and_roles(path):
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "user", "value": "Q"},
        {"from": "model", "value": "A"},
    ]
    (sample,) = read(path, [{"conversations": turns}], "sharegpt")
    assert (sample.system, sample.turns, sample.id) == ("Be brief.", (("Q", "A"),), "data-1")
    (fault,) = read(path, [{"conversations": turns}], "llava")
    assert isinstance(fault, Fault) and "'system'" in fault.problem


def test_messages_with_parts_inline_and_listed_images(path):
    content = [
        {"type": "image"},
        {"type": "text", "text": "and"},
        {"type": "image", "image": "inline.png"},
        {"type": "image_url", "image_url": {"url": "url.png"}},
        {"type": "text", "text": "differ?"},
    ]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
    ]
    (sample,) = read(path, [{"messages": messages, "images": ["listed.png"]}], "messages")
    assert [image.name for image in sample.images] == ["listed.png", "inline.png", "url.png"]
    assert sample.turns == (("<image>\nand\n<image>\n<image>\ndiffer?", "A"),)


def test_columns_are_renamed_and_pairs_read(path):
    columns = qa.QaColumns(
        "dialog", "who", "says", ("U",), ("M",), images=("pic",), id="key", anchor="frames"
    )
    record = {
        "key": 7,
        "pic": "/mnt/x/frames/1.png",
        "dialog": [{"who": "U", "says": "Q"}, {"who": "M", "says": "A"}],
    }
    (sample,) = read(path, [record], columns=columns)
    assert (sample.id, sample.images[0].name) == ("7", "frames/1.png")
    (pair,) = read(path, [{"question": "Q", "answer": "A", "image": "1.png"}], "pairs")
    assert pair.turns == (("<image>\nQ", "A"),)


MISFITS = [
    (llava("Q"), "conversations", "no answer"),
    (llava("Q", "A", "Q"), "conversations", "no answer"),
    (
        {"conversations": [{"from": "human", "value": "Q"}] * 2},
        "conversations",
        "turn 2 is of the role 'human'",
    ),
    ({"conversations": [{"from": "gpt", "value": "A"}] * 2}, "conversations", "turn 1"),
    (
        llava("<image><image> Q", "A", image="a.png"),
        "conversations",
        "2 <image> marks and 1 images",
    ),
    (
        llava("<image> Q", "A", images=["a.png", "b.png"]),
        "conversations",
        "1 <image> marks and 2 images",
    ),
    (llava("<image> Q", "A"), "conversations", "1 <image> marks and 0 images"),
    (llava("Q", "<image>", image="a.png"), "conversations", "empty"),
    (llava("<image> Q", "A <image>", image="a.png"), "conversations", "outside a question"),
    (llava("Q", "  "), "conversations", "text of turn 2 is empty"),
    (llava("<image>\n", "A", image="a.png"), "conversations", "text of turn 1 is empty"),
    (llava("Q", "A", image=3), "image", "int, not a path"),
    (llava("Q", "A", image="http://x.org/a.png"), "image", "nothing is downloaded"),
    (llava("Q", "A", image="../a.png"), "image", "leaves the image folder"),
    ({"conversations": []}, "conversations", "no list of turns"),
    ({"id": 1}, "conversations", "no list of turns"),
    (
        {"conversations": [{"role": "user", "content": "Q"}]},
        "conversations",
        "without from and value",
    ),
    (
        {"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "A"}]},
        "conversations",
        "NoneType",
    ),
    ("text", "record", "not an object"),
]


@pytest.mark.parametrize("record, field, problem", MISFITS)
def test_misfit_is_a_fault_that_names_file_record_and_field(path, record, field, problem):
    first, fault, last = read(path, [llava("Q", "A"), record, llava("Q", "A")])
    assert isinstance(first, QaSample) and isinstance(last, QaSample) and isinstance(fault, Fault)
    assert fault.where == f"{path}, record 2, field {field}"
    assert problem in fault.problem and fault.fix


def test_jsonl_leaves_out_broken_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    line = json.dumps(llava("Q", "A"))
    path.write_bytes(
        f"\ufeff{line}\n\n{line[:-9]}\n{line}\n".encode() + b"\xff\xfe\n" + line[:20].encode()
    )
    found = list(qa.read_qa(path, "llava"))
    assert [type(item) for item in found] == [QaSample, Fault, QaSample, Fault, Fault]
    assert found[1].where == f"{path}, record 2"


def parquet(path: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_with_image_bytes_and_both_list_forms(tmp_path):
    image = {"bytes": b"file", "path": "a.png"}
    turns = llava("<image>\nQ", "A")["conversations"]
    struct = {"from": ["human", "gpt"], "value": ["<image>\nQ", "A"]}
    for turns_column in ([turns] * 40, [struct] * 40):
        path = parquet(
            tmp_path / "data.parquet",
            id=list(range(40)),
            image=[image] * 40,
            conversations=turns_column,
        )
        found = list(qa.read_qa(path, "llava"))
        assert [sample.id for sample in found] == [str(i) for i in range(40)]
        assert found[39].turns == (("<image>\nQ", "A"),) and found[39].images[0].data() == b"file"


def test_broken_parquet(tmp_path):
    path = parquet(
        tmp_path / "data.parquet", conversations=[llava("Q" * 50, "A")["conversations"]] * 50
    )
    with pytest.raises(RoboAlignError, match="no column messages; it has conversations"):
        list(qa.read_qa(path, "messages"))
    whole = path.read_bytes()
    for broken in (whole[:-30], whole[:10], b"", b"\0" * 60 + whole[60:]):
        path.write_bytes(broken)
        with pytest.raises(RoboAlignError, match="not a readable parquet file"):
            list(qa.read_qa(path, "llava"))


@pytest.mark.parametrize(
    "name, layout, problem",
    [
        ("data.json", "alpaca", "unknown layout"),
        ("none.json", "llava", "does not exist"),
        ("data.csv", "llava", "unknown file type"),
    ],
)
def test_bad_call(tmp_path, name, layout, problem):
    (tmp_path / "data.json").write_text("[]")
    (tmp_path / "data.csv").write_text("")
    with pytest.raises(RoboAlignError, match=problem):
        qa.read_qa(tmp_path / name, layout)


def test_bad_file_names_file_and_record(path):
    path.write_text(json.dumps([llava("Q", "A")] * 3)[:-40])
    with pytest.raises(RoboAlignError, match=r"data.json, record 3"):
        list(qa.read_qa(path, "llava"))
    path.write_bytes(b'["\xff"]')
    with pytest.raises(RoboAlignError, match="not UTF-8"):
        list(qa.read_qa(path, "llava"))
    path.write_text("[" * 100_000)
    with pytest.raises(RoboAlignError, match="nested too deeply"):
        list(qa.read_qa(path, "llava"))


def test_answers_are_read_in_the_named_style_only(path):
    records = [
        llava("Where?", "[(500, 250)]"),
        llava("Where?", "[(1500, 250)]"),
        llava("Which?\nA. cup\nB. fork", "B"),
        llava("Where?", "<think>There.</think><answer>[(1, 2)]</answer>"),
        llava("Boxes?", "[[1, 2, 3, 4]]"),
    ]
    targets = [
        s.targets[0]
        for s in read(path, records, answers=qa.Answers(("points", "choice"), "per-mille"))
    ]
    assert targets[0] == Points(((0.5, 0.25),)) and targets[2] == Choice(("cup", "fork"), 1)
    assert isinstance(targets[1], Refused) and "outside 0 to 1000" in targets[1].reason
    assert targets[3:] == [Points(((0.001, 0.002),)), None]
    assert [s.targets[0] for s in read(path, records)] == [None] * 5
    for wrong in (
        {"kinds": ("points",)},
        {"kinds": ("dots",)},
        {"kinds": ("boxes",), "style": "cm"},
    ):
        with pytest.raises(RoboAlignError):
            qa.Answers(**wrong)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        VALUES | st.fixed_dictionaries({"conversations": VALUES, "image": VALUES, "id": VALUES}),
        max_size=4,
    )
)
def test_any_record_is_a_sample_or_a_fault(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "any.json"
    found = read(path, values)
    assert len(found) == len(values) and all(isinstance(item, (QaSample, Fault)) for item in found)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["system", "user", "assistant"]),
                "content": st.text(max_size=3)
                | st.lists(
                    st.fixed_dictionaries(
                        {"type": st.sampled_from(["text", "image", "video"])},
                        optional={
                            "text": st.sampled_from(["<image>", "x", ""]),
                            "image": VALUES | st.just("a.png"),
                        },
                    ),
                    max_size=3,
                ),
            }
        ),
        max_size=5,
    ),
    st.lists(st.just("b.png"), max_size=3),
)
def test_any_messages_keep_one_mark_an_image(tmp_path_factory, messages, images):
    path = tmp_path_factory.getbasetemp() / "any.json"
    (found,) = read(path, [{"messages": messages, "images": images}], "messages")
    if isinstance(found, QaSample):
        assert sum(question.count("<image>") for question, _ in found.turns) == len(found.images)
        assert all(q.replace("<image>", "").strip() and a.strip() for q, a in found.turns)
