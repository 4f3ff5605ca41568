"""Write the shards: their contents depend on their number and the index, not on the writer."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from roboalign.conversations.conversation import Conversation, turn_alone, write_conversations
from roboalign.conversations.prompts import ACTIONS, MODES, Mode
from roboalign.conversations.row_groups import GROUP_ROWS
from roboalign.conversations.styles.base import StyleName
from roboalign.conversations.styles.registry import style_of
from roboalign.core.files import hash_file, read_json, write_json
from roboalign.mixture.examine import from_text
from roboalign.mixture.manifest import Tally
from roboalign.mixture.store import SampleStore


def write_shard(
    work: Path,
    name: str,
    conversations: Iterable[Conversation],
    facts: Callable[[], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Write a shard; return its sha256, its counts and the `facts` known once it is written.

    A shard that an earlier call finished is not written again.
    """
    told = work / "written" / f"{name}.json"
    if told.exists():
        return read_json(told)
    tally, path = Tally(), work / "out" / name
    write_conversations(path, (one for each in conversations for one in tally.count([each])))
    row = {"sha256": hash_file(path), "counts": tally.summary(), **facts()}
    write_json(told, row)
    return row


def write_placed(
    work: Path, name: str, split: str, first: int, last: int, prompts: StyleName
) -> dict[str, Any]:
    """Write the samples at positions `first` to below `last` of a split, as `write_shard`."""

    def conversations(index: SampleStore) -> Iterator[Conversation]:
        for start in range(first, last, GROUP_ROWS):
            end = min(start + GROUP_ROWS, last)
            yield from group(work, index, split, start, end, prompts)

    with SampleStore.reading(work / "index.sqlite") as index:
        return write_shard(work, name, conversations(index))


def group(
    work: Path, index: SampleStore, split: str, first: int, last: int, prompts: StyleName
) -> list[Conversation]:
    """Return the samples at these positions, in order."""
    entries = index.placed_between(split, first, last)
    items: dict[str, list[int]] = {}
    for item, _, file in entries:
        items.setdefault(file, []).append(item)
    stored: dict[int, Conversation] = {}
    for file, wanted in items.items():
        with SampleStore.reading(work / "examined" / file) as examined:
            stored |= {item: from_text(*examined.example(item)) for item in wanted}
    return [
        one for item, copy, _ in entries for one in as_asked(stored[item], split, copy, prompts)
    ]


def as_asked(
    conversation: Conversation, split: str, copy: int, prompts: StyleName
) -> list[Conversation]:
    """Return the sample in the form of its split.

    Only rl and heldout have targets; rl asks the action alone, in think mode. A held-out sample
    that is packed becomes a conversation for each of its turns, which are asked one by one, and its
    action is asked in both modes.
    """
    if copy > 1:
        conversation = replace(conversation, id=f"{conversation.id}~{copy}")
    if split == "train":
        return [replace(conversation, target=None, chunk=None, direct_question=None)]
    if split == "rl":
        return [_action_in(conversation, "think", prompts)]
    if conversation.target is None:
        return [conversation]
    questions = [
        _question_alone(conversation, number)
        for number, turn in enumerate(conversation.turns)
        if turn.kind != "action"
    ]
    # Both have the id of their sample and their mode, by which the evaluation pairs them.
    actions = [_action_in(conversation, mode, prompts) for mode in MODES]
    return questions + [replace(one, id=f"{one.id}-{one.turns[0].mode}") for one in actions]


def _action_in(conversation: Conversation, mode: Mode, prompts: StyleName) -> Conversation:
    """Return the action of a sample alone, asked in this mode."""
    assert conversation.direct_question is not None
    style, turn = style_of(prompts), next(t for t in conversation.turns if t.kind == "action")
    question = style.asked(conversation.direct_question, mode, ACTIONS)
    reply = style.reply(turn.expected, mode, ACTIONS)
    return replace(conversation, turns=(replace(turn, mode=mode, question=question, answer=reply),))


def _question_alone(conversation: Conversation, number: int) -> Conversation:
    """Return one question of a packed sample, without the target of its action."""
    one = turn_alone(conversation, number)
    name = f"{one.id}~q{number}"
    return replace(one, id=name, target=None, chunk=None, direct_question=None)
