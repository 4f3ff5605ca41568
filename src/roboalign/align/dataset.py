"""Provide conversations as a training set, and the order in which a run sees them."""

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch.utils.data import Dataset

from roboalign.conversations.conversation import IMAGE_LENGTH, Conversation
from roboalign.conversations.stored import StoredConversations
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.pictures import rgb_of_file
from roboalign.mllm.encode import Encoded, collate, encode_conversation, special_tokens
from roboalign.mllm.load import Mllm
from roboalign.mllm.placement import IMAGE_MARK

_WINDOW = 50  # batches per window in which conversations of similar length are grouped


class Conversations(Dataset):
    """Conversations, tokenized on access."""

    def __init__(self, mllm: Mllm, conversations: Sequence[Conversation]) -> None:
        self.mllm, self.conversations = mllm, conversations

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Encoded:
        conversation = self.conversations[index]
        turns = [{"question": turn.question, "answer": turn.answer} for turn in conversation.turns]
        with naming(conversation):
            return encode_conversation(self.mllm, turns, pictures(conversation))


def pictures(conversation: Conversation) -> tuple[UInt8[np.ndarray, "_ _ 3"], ...]:
    """Return the images of a conversation, in the order in which they are shown.

    Raises RoboAlignError naming the conversation if a file is not an image.
    """
    found = []
    for number, image in enumerate(conversation.images, start=1):
        try:
            found.append(rgb_of_file(image))
        except RoboAlignError as error:
            which = "its image" if len(conversation.images) == 1 else f"its image {number}"
            raise RoboAlignError(
                f"{which} is {error.problem}",
                where=f"conversation {conversation.id}",
                fix="build the mixture again.",
            ) from None
    return tuple(found)


@contextmanager
def naming(conversation: Conversation) -> Iterator[None]:
    """Make errors without a `where` name this conversation, within this context."""
    try:
        yield
    except RoboAlignError as error:
        if error.where:
            raise
        where = f"conversation {conversation.id}"
        raise RoboAlignError(error.problem, where=where, fix=error.fix) from None


def check_texts(mllm: Mllm, conversations: Sequence[Conversation]) -> None:
    """Raise RoboAlignError naming the conversation if a text spells a special token of the model.

    Runs before the first update, since such a text would be read as other tokens.
    """
    tokens = special_tokens(mllm)
    if isinstance(conversations, StoredConversations):
        found = conversations.spelling(tokens)
    else:
        found = next(
            (
                (c.id, token)
                for c in conversations
                for turn in c.turns
                for token in tokens
                if token in turn.question.replace(IMAGE_MARK, "") or token in turn.answer
            ),
            None,
        )
    if found:
        raise RoboAlignError(
            f"a question or answer spells the special token {found[1]}",
            where=f"conversation {found[0]}",
            fix="remove the token from the text, or build the mixture with `model:` set to this model's folder",
        )


def collate_conversations(
    mllm: Mllm, batch: Sequence[Encoded], *, neutral: bool
) -> dict[str, torch.Tensor]:
    """Return the model's arguments and, with `neutral`, "words_only", bool [B, L]: True on answers
    in words after a reasoning.

    For these tokens `logits_at_answers` leaves the action tokens out of the softmax
    (`TrainConfig.neutral_reasoning`).
    """
    arguments = collate(mllm, batch, blank=True)
    if neutral and mllm.vocabulary:
        labels = arguments["labels"]
        words_only = torch.zeros_like(labels, dtype=torch.bool)
        for row, one in enumerate(batch):
            words_only[row, : len(one.input_ids)] = torch.from_numpy(one.after_reasoning)
        # A worker process forked from one that has used a GPU must not touch the GPU, so these ids
        # stay on the CPU.
        arguments["words_only"] = words_only & ~torch.isin(
            labels, torch.tensor(sorted(mllm.vocabulary.ids))
        )
    return arguments


def action_ids(mllm: Mllm) -> Int[torch.Tensor, " actions"]:
    """Return the ids of the action tokens, int64, on the model's device; of length 0 if the model
    has none."""
    ids = sorted(mllm.vocabulary.ids) if mllm.vocabulary else []
    return torch.tensor(ids, dtype=torch.int64, device=mllm.device)


def lengths_of(
    conversations: Sequence[Conversation],
) -> tuple[Int[np.ndarray, " conversations"], Int[np.ndarray, " conversations"]]:
    """Return the characters (an image counts as IMAGE_LENGTH) and turns of each conversation; reads
    no stored image."""
    if isinstance(conversations, StoredConversations):
        return conversations.lengths, conversations.turns
    lengths = [
        sum(len(turn.question.replace(IMAGE_MARK, "") + turn.answer) for turn in c.turns)
        + IMAGE_LENGTH * len(c.images)
        for c in conversations
    ]
    return np.array(lengths), np.array([len(c.turns) for c in conversations])


def digest_of(*parts: Sequence[Conversation]) -> str:
    """Return the sha256 over the ids of all conversations, one per line, without reading images of
    stored conversations."""
    ids = (
        part.ids() if isinstance(part, StoredConversations) else (c.id for c in part)
        for part in parts
    )
    digest = hashlib.sha256()
    for number, one in enumerate(itertools.chain.from_iterable(ids)):
        digest.update(("\n" if number else "").encode() + one.encode())
    return digest.hexdigest()


@contextmanager
def worker_errors() -> Iterator[None]:
    """Within this context, errors in a DataLoader's worker process are raised as they would be
    without workers.

    torch passes an error on as text with its traceback; for a killed worker it raises RuntimeError
    with the reason. Both become one RoboAlignError.
    """
    try:
        yield
    except RoboAlignError as error:
        told = str(error)
        if not told.startswith("Caught RoboAlignError in DataLoader worker"):
            raise
        raise RoboAlignError(told.rpartition("RoboAlignError: ")[2].strip()) from None
    except RuntimeError as error:
        if not re.search(r"DataLoader worker \(pid(\(s\))? .*(killed|exited)", str(error)):
            raise
        raise RoboAlignError(
            f"a process that prepares samples has ended ({' '.join(str(error).split())[:160]})",
            where="sft.workers",
            fix="give fewer workers, or more memory (in a container, of /dev/shm too: docker run --shm-size 16g); the "
            "same command resumes from the last checkpoint.",
        ) from None


def sample_order(
    lengths: Sequence[int] | np.ndarray, batch: int, updates: int, seed: int
) -> list[int]:
    """Return the indices of the items of `updates` batches, in sequence.

    The order is a stream of random permutations, each with every item once. Each window of _WINDOW
    batches is sorted by length, and its batches are then shuffled. This reduces padding while the
    order stays random at the scale of the run.
    """
    rng = np.random.default_rng(seed)
    size = np.asarray(lengths)
    passes = math.ceil(batch * updates / len(size))
    stream = np.concatenate([rng.permutation(len(size)) for _ in range(passes)])[: batch * updates]
    ordered = []
    for start in range(0, len(stream), _WINDOW * batch):
        window = stream[start : start + _WINDOW * batch]
        window = window[np.argsort(size[window], kind="stable")].reshape(-1, batch)
        ordered.append(rng.permutation(window).reshape(-1))
    return np.concatenate(ordered).tolist()
