"""A split on disk as a sequence: the same conversations as read at once, whatever the shards and row groups."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from roboalign.align.dataset import digest_of, lengths_of
from roboalign.conversations import stored
from roboalign.conversations.conversation import (
    Conversation,
    Turn,
    read_conversations,
    write_conversations,
)
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
    assert len(found.cache) == (1 if cache == 0 else len(found.groups)) > 0
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
        stored, "read_group", lambda path, group: (read.append(group), inner(path, group))[1]
    )
    found = StoredConversations(mixture, "train")
    list(found.ids())
    assert not read and found.groups == [(0, 0), (1, 0), *((2, group) for group in range(5))]
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
