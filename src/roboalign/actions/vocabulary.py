"""Add action tokens to an MLLM's own vocabulary, for any Hugging Face tokenizer and model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from roboalign.core.errors import RoboAlignError

ACTION_START, ACTION_END = "<ACTION_START>", "<ACTION_END>"
FAST_TOKEN = re.compile(r"<FAST_(\d+)>")


@dataclass(frozen=True)
class ActionVocabulary:
    """The MLLM's ids of the action tokens: `fast_ids[i]` is FAST token i; gaps are allowed."""

    start_id: int
    end_id: int
    fast_ids: tuple[int, ...]

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, n_fast: int) -> "ActionVocabulary":
        """Derive the ids from the tokenizer; check that text -> ids -> text loses no action token.

        Raises RoboAlignError if a token is missing, is special (`skip_special_tokens=True` would
        strip it), is split, or does not decode to its own text.
        """
        tokens = _action_tokens(n_fast)
        added = tokenizer.get_added_vocab()
        missing = [token for token in tokens if token not in added]
        fix = "add the tokens with roboalign.actions.vocabulary.extend_tokenizer"
        if missing:
            problem = f"{len(missing)} action tokens are missing, first {missing[0]}"
            raise RoboAlignError(problem, where="tokenizer", fix=fix)
        ids = [added[token] for token in tokens]
        decoder = tokenizer.added_tokens_decoder
        special = [token for token, i in zip(tokens, ids, strict=True) if decoder[i].special]
        if special:
            raise RoboAlignError(
                f"{special[0]} is a special token and would be stripped", where="tokenizer", fix=fix
            )
        _assert_round_trip(tokenizer, tokens, ids)
        return cls(start_id=ids[0], end_id=ids[1], fast_ids=tuple(ids[2:]))

    @cached_property
    def fast_of(self) -> dict[int, int]:
        """MLLM id -> FAST id."""
        return {llm_id: fast for fast, llm_id in enumerate(self.fast_ids)}

    @cached_property
    def ids(self) -> frozenset[int]:
        """Every action id: start, end and FAST."""
        return frozenset((self.start_id, self.end_id, *self.fast_ids))

    def text(self, fast: Sequence[int]) -> str:
        """Return FAST ids as `<ACTION_START><FAST_3>...<ACTION_END>`.

        Raises ValueError on a FAST id out of range.
        """
        for i in fast:
            if not 0 <= i < len(self.fast_ids):
                raise ValueError(f"FAST id {i} is outside [0, {len(self.fast_ids)})")
        return ACTION_START + "".join(f"<FAST_{i}>" for i in fast) + ACTION_END

    def to_fast(self, ids: Sequence[int]) -> list[int]:
        """Convert MLLM ids to FAST ids. Raises ValueError on an id that is not a FAST token."""
        try:
            return [self.fast_of[i] for i in ids]
        except KeyError as error:
            raise ValueError(f"id {error} is no FAST token") from None


def _action_tokens(n_fast: int) -> list[str]:
    """Return the tokens' text, in the order start, end, FAST 0, FAST 1, ..."""
    return [ACTION_START, ACTION_END, *(f"<FAST_{i}>" for i in range(n_fast))]


def count_fast_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many FAST tokens the tokenizer has; 0 before `extend_tokenizer`."""
    return sum(FAST_TOKEN.fullmatch(token) is not None for token in tokenizer.get_added_vocab())


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, n_fast: int) -> ActionVocabulary:
    """Add the action tokens as ordinary tokens; existing ones are kept, so repeating is safe.

    Raises RoboAlignError if the tokenizer already has FAST tokens of another vocabulary size.
    """
    held = count_fast_tokens(tokenizer)
    if held not in (0, n_fast):
        raise RoboAlignError(
            f"the tokenizer already holds {held} FAST tokens, {n_fast} are asked for",
            where="tokenizer",
            fix="start from a tokenizer without action tokens, or use the FAST tokenizer it was extended for",
        )
    present = tokenizer.get_added_vocab()
    tokenizer.add_tokens(
        [
            AddedToken(
                token,
                single_word=False,
                lstrip=False,
                rstrip=False,
                normalized=False,
                special=False,
            )
            for token in _action_tokens(n_fast)
            if token not in present
        ]
    )
    return ActionVocabulary.from_tokenizer(tokenizer, n_fast)


@torch.no_grad()
def extend_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: ActionVocabulary,
    *,
    start_like: Sequence[str] = (),
) -> None:
    """Give every action token a row in the embeddings: the mean of the rows of the real tokens.

    This covers the input and output embeddings. If `start_like` lists words, <ACTION_START> gets
    the mean of the rows of their tokens instead.

    The table never shrinks: Qwen's is padded beyond its tokenizer, and action tokens that fall
    inside the padding get the mean too. `model.config.action_token_ids` records what was done, so
    that calling it again, even on a trained model, changes nothing. Raises RoboAlignError if the
    model was extended for other ids.
    """
    wanted = sorted(vocabulary.ids)
    done = getattr(model.config, "action_token_ids", None)
    if done is not None:
        if list(done) != wanted:
            raise RoboAlignError(
                "the model was extended for other action tokens than the tokenizer holds",
                where="model",
                fix="load model and tokenizer from one folder",
            )
        return
    old_rows = len(_weight(model.get_input_embeddings()))
    real = [
        i
        for i in sorted(set(tokenizer.get_vocab().values()))
        if i < old_rows and i not in vocabulary.ids
    ]
    rows = max(old_rows, len(tokenizer), wanted[-1] + 1)
    if rows > old_rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    new = sorted({*wanted, *range(old_rows, rows)})
    like = [i for word in start_like for i in tokenizer.encode(word, add_special_tokens=False)]
    inputs, outputs = _weight(model.get_input_embeddings()), model.get_output_embeddings()
    tables = [inputs]
    if outputs is not None and _weight(outputs) is not inputs:  # otherwise tied: one table
        tables.append(_weight(outputs))
    if (bias := getattr(outputs, "bias", None)) is not None:
        tables.append(bias)
    for table in tables:
        _fill_with_mean(table, new, real)
        if like:
            _fill_with_mean(table, [vocabulary.start_id], like)
    model.config.action_token_ids = wanted


def _weight(layer: nn.Module) -> torch.Tensor:
    """Return the table [rows, width] of an embedding or of an output layer."""
    return layer.get_parameter("weight")


def _fill_with_mean(table: torch.Tensor, new: list[int], old: list[int]) -> None:
    table[new] = table[old].float().mean(dim=0).to(table.dtype)


def _assert_round_trip(
    tokenizer: PreTrainedTokenizerBase, tokens: list[str], ids: list[int]
) -> None:
    """Check that each token alone, and all in running text, keep their ids and text.

    They must encode to their own ids, and decode to their own text.
    """
    start, end, *fast = tokens
    text = f"Reach.<answer>{start}{''.join(fast)}{end}</answer> done"
    encoded = tokenizer.encode(text, add_special_tokens=False)
    known = set(ids)
    if [i for i in encoded if i in known] != [ids[0], *ids[2:], ids[1]]:
        raise RoboAlignError(
            "action tokens inside running text do not keep their ids", where="tokenizer"
        )
    decoded = str(tokenizer.decode(encoded, skip_special_tokens=True))
    if re.findall(r"<ACTION_START>|<ACTION_END>|<FAST_\d+>", decoded) != [start, *fast, end]:
        raise RoboAlignError(
            "action tokens are lost when ids are decoded to text", where="tokenizer"
        )
    for token, token_id in zip(tokens, ids, strict=True):
        if tokenizer.convert_ids_to_tokens(token_id) != token:
            raise RoboAlignError(f"id {token_id} is not that of {token}", where="tokenizer")
