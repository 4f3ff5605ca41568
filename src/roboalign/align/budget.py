"""Leave out conversations that are longer than the token budget of SFT, before the first update."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from roboalign.align.dataset import naming
from roboalign.conversations.conversation import Conversation
from roboalign.core.distributed import each_by_one, leads, rank, world_size
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_text
from roboalign.core.progress import Progress, say
from roboalign.episodes.pictures import size_of_file
from roboalign.mllm.encode import encode_conversation
from roboalign.mllm.load import Mllm

COUNTED = 100
"""Conversations that a process counts at a time: about a row group of their shards."""
TOO_LONG = "too-long.txt"
"""The file with the conversations that are left out: one a line, tokens and id."""


def token_counts(
    mllm: Mllm, conversations: Sequence[Conversation]
) -> Int[np.ndarray, " conversations"]:
    """Tokens of each conversation, its images included; only the headers of images are decoded.

    Processes that train together count a share each. All must call this.
    """
    total = len(conversations)
    blocks = [range(first, min(first + COUNTED, total)) for first in range(0, total, COUNTED)]
    with Progress("tokens", total=len(blocks[rank() :: world_size()]), shown=leads()) as progress:

        def count(block: range) -> list[int]:
            progress.advance(1)
            return [_tokens(mllm, conversations[number]) for number in block]

        counted = each_by_one(count, blocks)
    return np.array([tokens for block in counted for tokens in block], dtype=np.int64)


def _tokens(mllm: Mllm, conversation: Conversation) -> int:
    turns = [vars(turn) for turn in conversation.turns]
    with naming(conversation):
        sizes = [size_of_file(image) for image in conversation.images]
        # Only the sizes matter; an array of zeros takes no memory until it is written.
        blanks = [np.zeros((height, width, 3), np.uint8) for width, height in sizes]
        return len(encode_conversation(mllm, turns, blanks).input_ids)


def fitting(
    conversations: Sequence[Conversation],
    counts: Int[np.ndarray, " conversations"] | None,
    most: int | None,
    out_dir: Path,
    label: str,
) -> Int[np.ndarray, " kept"]:
    """Numbers of the conversations of at most `most` tokens; all of them for None.

    `counts` are their tokens. The others are written to `out_dir`/too-long.txt, and their number is printed. Raises
    RoboAlignError if none is left.
    """
    if most is None or counts is None:
        return np.arange(len(conversations))
    kept = np.flatnonzero(counts <= most)
    long = np.flatnonzero(counts > most)
    if not len(kept):
        raise RoboAlignError(
            f"all {len(long)} conversations have more than {most} tokens, the shortest {counts.min()}",
            where=f"{label}.max_tokens",
            fix="raise it, or set backbone.images.max_pixels",
        )
    if len(long) and leads():
        lines = [f"{counts[number]} {conversations[int(number)].id}\n" for number in long]
        write_text(out_dir / TOO_LONG, "".join(lines))
        say(
            f"{len(long)} of {len(counts)} conversations have more than {most} tokens and are left out, the longest "
            f"{counts.max()}: {out_dir / TOO_LONG}",
            label,
        )
    return kept
