"""A split on disk as a sequence: the same conversations as read at once, whatever the shards and row groups."""

import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.align.dataset import digest_of, lengths_of
from roboalign.conversations import row_groups as row_groups_module
from roboalign.conversations import stored
from roboalign.conversations.conversation import (
    Conversation,
    Turn,
    read_conversations,
    read_footer,
    row_groups,
    write_conversations,
)
from roboalign.conversations.row_groups import Footer
from roboalign.conversations.stored import StoredConversations
from roboalign.core.errors import RoboAlignError

KINDS = ("general", "embodied", "reasoning", "action")
LANGUAGE = ("general", "embodied", "reasoning")


def conversation(number: int) -> Conversation:
    """One to three turns; every fifth has actions alone, and some texts are not ASCII."""
    rng = np.random.default_rng(number)
    kinds = ["action"] if number % 5 == 0 else list(rng.choice(KINDS, rng.integers(1, 4)))
    texts = [("whäre 🤖 " * int(rng.integers(1, 5)), "x" * int(rng.integers(1, 9))) for _ in kinds]
    turns = tuple(Turn(kind, "words", "direct", *text, "x") for kind, text in zip(kinds, texts))
    target = (1, 2) if number % 3 == 0 else None
    return Conversation(
        f"talk-{number}", "episode", number, "task", (rng.bytes(200),), turns, target=target
    )


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """47 conversations in three shards, the last with row groups of four."""
    folder = tmp_path_factory.mktemp("mixture")
    write_conversations(folder / "train-00000.parquet", map(conversation, range(20)))
    write_conversations(folder / "train-00001.parquet", map(conversation, range(20, 30)))
    write_conversations(folder / "train-00002.parquet", map(conversation, range(30, 47)))
    table = pq.read_table(folder / "train-00002.parquet")
    pq.write_table(table, folder / "train-00002.parquet", row_group_size=4)
    return folder


@pytest.mark.parametrize("kinds", [None, LANGUAGE, ("action",)])
@pytest.mark.parametrize("cache", [0, stored.CACHE])
def test_it_is_what_is_read_at_once(
    mixture: Path, kinds: tuple[str, ...] | None, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "CACHE", cache)
    expected, found = (
        read_conversations(mixture, "train", kinds),
        StoredConversations(mixture, "train", kinds),
    )
    assert len(found) == len(expected) > 9 and (kinds is None or len(found) < 47)
    for number in np.random.default_rng(0).permutation(len(found)):
        assert found[int(number)] == expected[number]
    assert list(found) == expected and found[-1] == expected[-1] and found[2:7:2] == expected[2:7:2]
    with pytest.raises(IndexError):
        found[len(found)]
    assert len(found.cache) == (1 if cache == 0 else len(found.starts) - 1) > 0
    assert found.cached == sum(t.get_total_buffer_size() for t, _ in found.cache.values())
    assert list(found.ids()) == [c.id for c in expected]
    for ours, theirs in zip(lengths_of(found), lengths_of(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    whole = hashlib.sha256("\n".join(c.id for c in [*expected, *expected[:2]]).encode()).hexdigest()
    assert digest_of(found, expected[:2]) == digest_of(expected, expected[:2]) == whole


def test_images_are_read_when_they_are_asked_for(
    mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    inner = stored.read_group
    monkeypatch.setattr(
        stored, "read_group", lambda *asked: (read.append(asked[-1]), inner(*asked))[1]
    )
    found = StoredConversations(mixture, "train")
    list(found.ids())
    assert not read and found.firsts.tolist() == [0, 1, 2, 7]
    assert found.starts.tolist() == [0, 20, 30, 34, 38, 42, 46, 47]
    assert found[40].id == "talk-40" and found[41].id == "talk-41" and read == [2]


def test_a_forked_process_reads_for_itself(mixture: Path) -> None:
    found = StoredConversations(mixture, "train")
    assert found[0].id == "talk-0"
    child = os.fork()
    if child == 0:
        os._exit(0 if [found[i].id for i in (46, 21, 3)] == ["talk-46", "talk-21", "talk-3"] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert found[46].id == "talk-46"


def test_bad_input_is_named(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(RoboAlignError, match="unknown kinds"):
        StoredConversations(mixture, "train", ["words"])
    with pytest.raises(RoboAlignError, match="no rl shard"):
        StoredConversations(mixture, "rl")
    cut = tmp_path / "train-00000.parquet"
    cut.write_bytes((mixture / "train-00000.parquet").read_bytes()[:-50])
    with pytest.raises(
        RoboAlignError,
        match=r"train-00000\.parquet: not a readable mixture shard.*build the mixture",
    ):
        StoredConversations(tmp_path, "train")
    write_conversations(cut, map(conversation, range(20)))
    found = StoredConversations(tmp_path, "train")
    cut.write_bytes(cut.read_bytes()[:-50])  # damaged while a training reads it
    with pytest.raises(RoboAlignError, match="not a readable mixture shard"):
        found[3]
    assert footers_refused(tmp_path, (mixture / "train-00002.parquet").read_bytes())


def footers_refused(folder: Path, shard: bytes) -> bool:
    """Every file that ends as no parquet file does is refused by name."""
    for name, data in {
        "short": b"PAR1",
        "magic": shard[:-1] + b"2",
        "length": shard[-200:],
    }.items():
        path = folder / f"{name}.parquet"
        path.write_bytes(data)
        with pytest.raises(RoboAlignError, match=rf"{name}\.parquet: not a readable mixture shard"):
            read_footer(path)
    return True


@given(
    rows=st.integers(0, 40),
    size=st.integers(1, 12),
    columns=st.integers(1, 20),
    statistics=st.booleans(),
    version=st.sampled_from(["1.0", "2.6"]),
)
@settings(max_examples=25, deadline=None)
def test_a_footer_of_one_group_reads_what_the_whole_footer_does(
    rows: int, size: int, columns: int, statistics: bool, version: str
) -> None:
    draw = np.random.default_rng(rows * size)
    names = [f"column {number}" for number in range(columns)]
    table = pa.table(
        {name: draw.integers(0, 9**9, rows) for name in names} | {"flag": [True] * rows}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.parquet"
        pq.write_table(
            table, path, row_group_size=size, write_statistics=statistics, version=version
        )
        footer, whole = Footer(path), pq.ParquetFile(path)
        assert len(footer.bounds) == whole.num_row_groups + 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(row_groups_module, "_alike", lambda *_: [])
            assert Footer(path).bounds.tolist() == footer.bounds.tolist()
        for group in range(whole.num_row_groups):
            alone = pq.ParquetFile(path, metadata=footer.metadata(group))
            assert alone.num_row_groups == 1
            assert alone.read_row_group(0).equals(whole.read_row_group(group))
            alone.close()
        whole.close()


def test_row_groups_are_small_when_images_are_large(tmp_path: Path) -> None:
    """400 KB an image: two a group. One above the limit has a group of its own. At most 100 rows."""
    path = tmp_path / "train-00000.parquet"
    sizes = [400_000] * 5 + [3_000_000] + [100] * 130
    talks = [replace(conversation(n), images=(bytes(size),)) for n, size in enumerate(sizes)]
    write_conversations(path, talks)
    assert row_groups(path) == [2, 2, 1, 1, 100, 30]
    assert read_conversations(tmp_path, "train") == talks
    stored = StoredConversations(tmp_path, "train")
    assert [stored[place] for place in (135, 5, 4, 0)] == [talks[place] for place in (135, 5, 4, 0)]
    write_conversations(path, [])
    assert row_groups(path) == [0] and read_conversations(tmp_path, "train") == []
