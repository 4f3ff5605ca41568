"""Read a split of a mixture from disk as a sequence.

Its index is in memory; images and texts are read on request.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from roboalign.conversations.conversation import (
    IMAGE_LENGTH,
    Conversation,
    from_row,
    read_footer,
    read_group,
    read_table,
    row_groups,
    shards,
    wanted_kinds,
)
from roboalign.conversations.row_groups import Footer
from roboalign.mllm.placement import IMAGE_MARK

CACHE = 128 * 2**20
"""Bytes of row groups that a process caches: a small mixture fits and is read only once."""


class StoredConversations(Sequence[Conversation]):
    """The conversations that `iterate_conversations` yields, in its order, by their number.

    Memory holds an index of 16 bytes per conversation, and up to CACHE bytes of the row
    groups read last. Reading one conversation reads its whole row group, which is small
    (`conversation.row_groups_of`). No file stays open, so that forked processes may share an
    instance. Raises RoboAlignError as `iterate_conversations` does.
    """

    def __init__(self, folder: str | Path, split: str, kinds: Sequence[str] | None = None) -> None:
        self.wanted = wanted_kinds(folder, split, kinds)
        self.paths = shards(folder, split)
        sizes = [row_groups(path) for path in self.paths]
        self.firsts = np.cumsum([0, *(len(rows) for rows in sizes)])
        """int64 [shards + 1], number of each shard's first row group among those of all shards."""
        self.starts = np.cumsum([0, *(rows for shard in sizes for rows in shard)])
        """int64 [groups + 1], number of each group's first row among those of all shards."""
        found = [self._survey(path) for path in self.paths]
        turns, lengths = (np.concatenate(parts) for parts in zip(*found))
        self.rows = np.flatnonzero(turns)
        """int64 [N], the row of each conversation; those without a wanted turn are excluded."""
        self.turns = turns[self.rows]
        """int32 [N], number of turns of each conversation."""
        self.lengths = lengths[self.rows]
        """int32 [N], number of characters in its questions and answers, and IMAGE_LENGTH an image."""
        self.footers: dict[int, Footer] = {}
        self.cache: OrderedDict[int, tuple[pa.Table, int]] = OrderedDict()
        """Row group -> its table and that table's bytes, the one read last at the end."""
        self.cached = 0

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = int(self.rows[index])
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        record = self._table(group).slice(row - int(self.starts[group]), 1).to_pylist()[0]
        return from_row(record, self.wanted)

    def ids(self) -> Iterator[str]:
        """Yield the conversations' ids, in order; nothing else is read."""
        first = 0
        for path in self.paths:
            column = read_table(path, ["id"]).column("id")
            low, high = np.searchsorted(self.rows, [first, first + len(column)])
            yield from column.take(pa.array(self.rows[low:high] - first)).to_pylist()
            first += len(column)

    def spelling(self, tokens: Sequence[str]) -> tuple[str, str] | None:
        """Return (id, token) of the first conversation whose text spells one of the tokens.

        No image is read.
        """
        for path in self.paths:
            table = read_table(path, ["id", "chat"])
            chat = table.column("chat").combine_chunks()
            row, flat = pc.list_parent_indices(chat).to_numpy(), pc.list_flatten(chat)
            # The marker is no text, though some models have a special token of that name.
            texts = pc.replace_substring(flat.field("content"), IMAGE_MARK, "")
            for token in tokens:
                spelled = pc.match_substring(texts, token).to_numpy(zero_copy_only=False)
                if spelled.any():
                    place = int(row[np.flatnonzero(spelled)[0]])
                    return table.column("id")[place].as_py(), token
        return None

    def _survey(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Return the wanted turns and their characters of each row of a shard, int32 [rows]."""
        table = read_table(path, ["turns", "chat"])
        turns, chat = (table.column(name).combine_chunks() for name in ("turns", "chat"))
        row, flat = pc.list_parent_indices(turns).to_numpy(), pc.list_flatten(turns)
        kept = pc.is_in(flat.field("kind"), pa.array(sorted(self.wanted))).to_numpy(
            zero_copy_only=False
        )
        content = pc.list_flatten(chat).field("content")
        texts, images = (
            pc.replace_substring(content, IMAGE_MARK, ""),
            pc.count_substring(content, IMAGE_MARK),
        )
        # A question and an answer a turn.
        size, shown = (
            part.to_numpy().reshape(-1, 2).sum(axis=1) for part in (pc.utf8_length(texts), images)
        )
        last = np.full(len(turns), -1)
        last[row[kept]] = np.flatnonzero(kept)
        shown[np.arange(len(row)) > last[row]] = 0  # as `kept_images`
        counts, characters, pictures = (
            np.bincount(row[part], weights=what, minlength=len(turns)).astype(np.int32)
            for part, what in ((kept, None), (kept, size[kept]), (slice(None), shown))
        )
        return counts, characters + IMAGE_LENGTH * pictures

    def _table(self, group: int) -> pa.Table:
        if group not in self.cache:
            shard = int(np.searchsorted(self.firsts, group, side="right")) - 1
            path = self.paths[shard]
            if shard not in self.footers:
                self.footers[shard] = read_footer(path)
            table = read_group(path, self.footers[shard], group - int(self.firsts[shard]))
            self.cache[group] = table, table.get_total_buffer_size()
            self.cached += self.cache[group][1]
            while len(self.cache) > 1 and self.cached > CACHE:
                self.cached -= self.cache.popitem(last=False)[1][1]
        self.cache.move_to_end(group)
        return self.cache[group][0]
