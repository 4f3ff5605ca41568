"""Files that are cut short, changed or made up: one error that names the file, or a whole mixture without them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mixing_sources import encoded, picture, settings, write_qa, write_robot, write_talks

from roboalign.conversations.conversation import ROW, read_conversations
from roboalign.core.errors import RoboAlignError
from roboalign.mixture.builder import build
from roboalign.mixture.config import load_mixture
from roboalign.mixture.parts import Part
from roboalign.mixture.sources.read import conversation_rows

TOKENS = {"fit": True, "horizon": 4, "scale": 2.0, "vocab_size": 256}
EXAMPLES = hypothesis_settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PLACES = st.floats(0, 1, exclude_max=True)
CHANGES = st.lists(st.tuples(PLACES, st.integers(0, 255)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for suffix in (".json", ".jsonl"):
        write_qa(folder / "qa", 8, suffix=suffix)
    write_talks(folder / "talks", [encoded(picture(n, (24, 18))) for n in range(8)])
    write_robot(folder / "robot", 2, steps=6)
    return folder


def attempt(source: dict, folder: Path, **more) -> RoboAlignError | None:
    """The error of a build; without one, the mixture must be whole."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    try:
        told = build(settings(source, **more), folder / "out")
    except RoboAlignError as error:
        assert not (folder / "out").exists() and error.where
        return error
    row = told["sources"][source["name"]]
    assert (
        len(read_conversations(folder / "out", "train"))
        == row["kept"]
        == row["asked"] - row["short"]
    )
    return None


def changed(data: bytes, changes: list[tuple[float, int]]) -> bytes:
    """The file with some bytes replaced; places are shares of its length."""
    found = bytearray(data)
    for place, value in changes:
        found[int(place * len(found))] = value
    return bytes(found)


def with_file(original: Path, data: bytes, folder: Path) -> Path:
    """A copy of the source of `original`, its images too, with this content in the place of it."""
    if not (folder / "copy").exists():
        shutil.copytree(original.parent, folder / "copy")
    (folder / "copy" / original.name).write_bytes(data)
    return folder / "copy" / original.name


@pytest.mark.parametrize("name", ["qa/qa.json", "qa/qa.jsonl", "talks/train-00000.parquet"])
@given(share=PLACES)
@example(share=0.0)
@EXAMPLES
def test_a_file_cut_anywhere_is_named(sources: Path, tmp_path: Path, name: str, share: float):
    data = (sources / name).read_bytes().rstrip()  # without the last line's end nothing is lost
    file = with_file(sources / name, data[: int(share * len(data))], tmp_path)
    place = str(file) if name.startswith("qa") else str(file.parent)
    error = attempt(
        {"name": "a", name.split("/")[0].replace("talks", "conversations"): place, "count": 8},
        tmp_path,
    )
    # Lines that are whole are samples all the same; there are fewer than asked then, which says why.
    assert error is not None and (
        file.name in str(error) or "8 samples are asked and it has" in str(error)
    )


@pytest.mark.parametrize("name", ["qa/qa.json", "qa/qa.jsonl", "talks/train-00000.parquet"])
@given(changes=CHANGES)
@EXAMPLES
def test_a_file_with_other_bytes_is_read_or_named(
    sources: Path, tmp_path: Path, name: str, changes: list[tuple[float, int]]
):
    file = with_file(sources / name, changed((sources / name).read_bytes(), changes), tmp_path)
    place = str(file) if name.startswith("qa") else str(file.parent)
    attempt(
        {"name": "a", name.split("/")[0].replace("talks", "conversations"): place, "count": 5},
        tmp_path,
    )


@given(which=st.integers(0, 100), share=PLACES)
@EXAMPLES
def test_robot_data_with_a_file_cut_anywhere_is_read_without_it_or_named(
    sources: Path, tmp_path: Path, which: int, share: float
):
    shutil.rmtree(tmp_path / "robot", ignore_errors=True)
    shutil.copytree(sources / "robot", tmp_path / "robot")
    files = sorted(path for path in (tmp_path / "robot").rglob("*") if path.is_file())
    file = files[which % len(files)]
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    error = attempt(
        {"name": "acts", "robot": str(tmp_path / "robot"), "count": 3}, tmp_path, tokenizer=TOKENS
    )
    assert error is None or str(tmp_path / "robot") in str(error) or "source acts" in str(error)


@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"", lambda data: data[:-40], lambda data: b"PAR1" + data[4:-4] + b"RAP1"],
    ids=["empty", "cut", "no end"],
)
def test_an_evaluation_set_that_is_broken_is_named(
    sources: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]
):
    folder = write_talks(tmp_path / "eval", [encoded(picture(0))], split="heldout")
    (folder / "heldout.parquet").write_bytes(spoil((folder / "heldout.parquet").read_bytes()))
    source = {"name": "qa", "qa": str(sources / "qa/qa.json"), "count": 3}
    error = attempt(source, tmp_path, evaluation=[str(folder)])
    assert error is not None and "heldout.parquet" in str(error)


@given(
    st.one_of(
        st.text(max_size=60),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(max_size=8)
            | st.dates(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3)
            ),
            max_leaves=10,
        ).map(yaml.safe_dump),
    )
)
@example("a: 2026-13-01")
@example("[" * 3000)
@example("sources: [{name: a, qa: x, count: 1}]\nname: a\n1: 2")
@EXAMPLES
def test_what_is_no_mixture_file_is_an_error_with_its_name(tmp_path: Path, text: str):
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(RoboAlignError, match=r"mine.yaml"):
        load_mixture(tmp_path / "mine.yaml")


@given(cut=PLACES, changes=CHANGES)
@EXAMPLES
def test_a_manifest_that_is_spoilt_is_an_error_or_still_one(
    sources: Path, tmp_path: Path, cut: float, changes: list[tuple[float, int]]
):
    if not (tmp_path / "made").exists():
        build(
            settings({"name": "qa", "qa": str(sources / "qa/qa.json"), "count": 5}),
            tmp_path / "made",
        )
    data = (tmp_path / "made/manifest.json").read_bytes()
    (tmp_path / "cut.json").write_bytes(data[: int(cut * (len(data) - 1))])
    with pytest.raises(RoboAlignError, match=r"cut.json"):
        load_mixture(tmp_path / "cut.json")
    (tmp_path / "changed.json").write_bytes(changed(data, changes))
    try:
        config, expected = load_mixture(tmp_path / "changed.json")
    except RoboAlignError as error:
        assert "changed.json" in str(error)
    else:
        assert config.sources and expected is not None


def test_conversations_of_another_schema_are_named_by_file(tmp_path: Path):
    for number, columns in enumerate([{"id": ["a"], "turns": ["text"]}, {"id": ["a"]}]):
        folder = tmp_path / str(number)
        folder.mkdir()
        pq.write_table(pa.table(columns), folder / "train-00000.parquet")
        error = attempt({"name": "t", "conversations": str(folder), "count": 1}, tmp_path)
        assert error is not None and "train-00000.parquet" in str(error)


def test_empty_fields_of_stored_conversations_are_refused(tmp_path: Path):
    folder = write_talks(tmp_path / "talks", [encoded(picture(n)) for n in range(6)])
    shard = folder / "train-00000.parquet"
    rows = pq.read_table(shard).to_pylist()
    rows[0]["turns"] = None
    rows[1]["turns"] = [None]
    rows[2]["chat"][0]["content"] = None
    rows[3]["images"] = None
    rows[4]["id"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=ROW), shard)
    told = build(
        settings({"name": "t", "conversations": str(folder), "count": 2}), tmp_path / "out"
    )["sources"]["t"]
    assert (told["found"], told["kept"], told["refused"], told["faults"], told["short"]) == (
        6,
        1,
        4,
        1,
        1,
    )
    assert [
        json.loads(line)["what"]
        for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()
    ].count("refused") == 4


def test_reading_a_shard_holds_some_rows_at_a_time(tmp_path: Path):
    chance = np.random.default_rng(0)
    folder = write_talks(tmp_path / "talks", [chance.bytes(30_000) for _ in range(800)])
    shard = folder / "train-00000.parquet"
    pq.write_table(pq.read_table(shard), shard, row_group_size=100)
    before = pa.total_allocated_bytes()
    most = max(
        pa.total_allocated_bytes() for _ in conversation_rows(Part(0, 0, shard, ""), ROW.names)
    )
    assert most - before < 12e6  # the file has 24e6, a group of rows 3e6
