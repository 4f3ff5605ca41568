"""Encode actions as FAST tokens (arXiv 2501.09747): DCT along time, rounding, byte-level BPE.

A chunk [H, D] of normalized actions becomes DCT coefficients, `round(scale * c)`, flattened low
frequency first (all dimensions of frequency 0, then of frequency 1, ...). Each integer minus
`min_token` is written as the Unicode character of that number, and a byte-level BPE turns the
string into ids. Folders have the layout of `physical-intelligence/fast`, so the published FAST+
loads here and tokenizers saved here load there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, read_json, write_json

LARGEST_OFFSET = 0xD7FF  # the next code points are surrogates, which no text can hold
REPLACEMENT = "\ufffd"  # what a byte-level decoder writes for invalid UTF-8
LAYOUT_FIX = "give a folder with the layout of physical-intelligence/fast"

Chunks = Num[np.ndarray, "chunks horizon action"]
"""Normalised actions of many chunks."""
Chunk = Float[np.ndarray, "horizon action"]
Coefficients = Int[np.ndarray, " coefficients"]
"""Quantised, of the DCT; low frequency first."""


@dataclass(frozen=True)
class DecodeFailure:
    """Ids that do not decode to a chunk: why, and how many of the coefficients they gave.

    It is a value rather than an error, so that callers can count failures.
    """

    reason: str
    n_coefficients: int
    expected: int


class FastTokenizer:
    """Encode chunks of `horizon` x `action_dim` normalized actions as FAST ids, and decode them.

    Ids are in [0, vocab_size). `clipped` counts the coefficients that `encode` had to clip into
    [min_token, max_token], since construction.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        horizon: int,
        action_dim: int,
        scale: float,
        min_token: int,
        max_token: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.horizon, self.action_dim, self.scale = horizon, action_dim, scale
        self.min_token, self.max_token = min_token, max_token
        self.vocab_size: int = tokenizer.get_vocab_size()
        self.clipped = 0

    @classmethod
    def fit(cls, chunks: Chunks, *, scale: float, vocab_size: int) -> "FastTokenizer":
        """Train the BPE on normalized `chunks` [N, H, D].

        `vocab_size` is an upper bound: merging stops when no pair of symbols occurs twice any more,
        and the attribute `vocab_size` is then smaller. Raises RoboAlignError if it is too small for
        the single symbols.
        """
        chunks = _finite(chunks)
        if len(chunks) == 0:
            raise RoboAlignError("no chunk to fit the FAST tokenizer on", where="chunks")
        quantised = _quantise(chunks, scale)
        low, high = int(quantised.min()), int(quantised.max())
        if high - low > LARGEST_OFFSET:
            raise RoboAlignError(
                f"coefficients span {low}..{high}, too wide for text", fix="lower the FAST scale"
            )
        alphabet = _byte_symbols(high - low)
        if len(alphabet) > vocab_size:
            raise RoboAlignError(
                f"coefficients span {low}..{high}, which takes {len(alphabet)} symbols of a vocabulary of {vocab_size}",
                where="FAST vocab_size",
                fix="raise vocab_size or lower the scale",
            )
        tokenizer = Tokenizer(BPE())
        # The published processor keeps GPT-2's word-splitting pattern here, which cuts runs of
        # coefficients wherever their characters happen to be letters or digits. The strings are not
        # language, so no pattern is used.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            initial_alphabet=alphabet,
            show_progress=False,
            special_tokens=[],
        )
        tokenizer.train_from_iterator(_to_texts(quantised - low), trainer=trainer)
        _, horizon, action_dim = chunks.shape
        return cls(
            tokenizer,
            horizon=horizon,
            action_dim=action_dim,
            scale=scale,
            min_token=low,
            max_token=high,
        )

    def encode(self, chunks: Chunks) -> list[list[int]]:
        """Return FAST ids of each of the normalized `chunks` [N, H, D].

        Raises RoboAlignError on NaN or another shape.
        """
        chunks = _finite(chunks)
        if chunks.shape[1:] != (self.horizon, self.action_dim):
            raise RoboAlignError(
                f"chunks are {chunks.shape[1]} x {chunks.shape[2]}, the tokenizer's {self.horizon} x {self.action_dim}",
                where="chunks",
                fix="cut chunks of the tokenizer's horizon, or fit a tokenizer on these",
            )
        quantised = _quantise(chunks, self.scale)
        inside = np.clip(quantised, self.min_token, self.max_token)
        self.clipped += int((inside != quantised).sum())
        texts = _to_texts(inside - self.min_token)
        return [
            encoding.ids
            for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def coefficients(self, ids: Sequence[int]) -> Coefficients | DecodeFailure:
        """Return the quantized DCT coefficients that `ids` spell: int [n], low frequency first.

        They may not fill a chunk.
        """
        return self._coefficients_batch([ids])[0]

    def decode(
        self, ids: Sequence[int]
    ) -> Float[np.ndarray, "{self.horizon} {self.action_dim}"] | DecodeFailure:
        """Return normalized actions float32 [H, D], or why `ids` are not a chunk.

        The reason is an unknown id, broken text, or a wrong count.
        """
        return self.decode_batch([ids])[0]

    def decode_batch(
        self, batch: Sequence[Sequence[int]]
    ) -> list[Float[np.ndarray, "{self.horizon} {self.action_dim}"] | DecodeFailure]:
        """Return `decode` of each, using one inverse DCT for all that decode."""
        results = [self._complete(found) for found in self._coefficients_batch(batch)]
        good = [found for found in results if isinstance(found, np.ndarray)]
        if not good:
            return results
        stacked = np.stack(good).reshape(-1, self.horizon, self.action_dim)
        chunks = iter(idct(stacked / self.scale, axis=1, norm="ortho").astype(np.float32))
        return [found if isinstance(found, DecodeFailure) else next(chunks) for found in results]

    def _coefficients_batch(
        self, batch: Sequence[Sequence[int]]
    ) -> list[Coefficients | DecodeFailure]:
        # `Tokenizer.decode` skips unknown ids, so check for them first.
        known = [all(0 <= i < self.vocab_size for i in ids) for ids in batch]
        texts = self.tokenizer.decode_batch(
            [list(ids) if ok else [] for ids, ok in zip(batch, known, strict=True)],
            skip_special_tokens=False,
        )
        results: list[Coefficients | DecodeFailure] = []
        for text, ok in zip(texts, known, strict=True):
            if not ok:
                results.append(DecodeFailure("unknown id", 0, self.horizon * self.action_dim))
            elif REPLACEMENT in text:
                results.append(
                    DecodeFailure("invalid text", len(text), self.horizon * self.action_dim)
                )
            else:
                results.append(
                    np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64)
                    + self.min_token
                )
        return results

    def _complete(self, found: Coefficients | DecodeFailure) -> Coefficients | DecodeFailure:
        expected = self.horizon * self.action_dim
        if isinstance(found, np.ndarray) and len(found) != expected:
            return DecodeFailure("wrong number of coefficients", len(found), expected)
        return found

    def save(self, folder: str | Path) -> None:
        """Write `folder` in the layout of physical-intelligence/fast; replace an existing one."""
        # The part before `--` tells transformers which repository has the processor's code; no code
        # is copied with the data.
        auto_map = {
            "AutoProcessor": "physical-intelligence/fast--processing_action_tokenizer.UniversalActionProcessor"
        }
        common = {"auto_map": auto_map, "processor_class": "UniversalActionProcessor"}
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            self.tokenizer.save(str(temporary / "tokenizer.json"))
            write_json(
                temporary / "tokenizer_config.json",
                {
                    **common,
                    "clean_up_tokenization_spaces": False,
                    "tokenizer_class": "PreTrainedTokenizerFast",
                },
            )
            write_json(
                temporary / "processor_config.json",
                {
                    **common,
                    "scale": self.scale,
                    "vocab_size": self.vocab_size,
                    "min_token": self.min_token,
                    "max_token": self.max_token,
                    "time_horizon": self.horizon,
                    "action_dim": self.action_dim,
                },
            )

    @classmethod
    def load(
        cls, folder: str | Path, *, horizon: int | None = None, action_dim: int | None = None
    ) -> "FastTokenizer":
        """Read a folder written by `save` or by physical-intelligence/fast.

        The published FAST+ fits any chunk, so it needs `horizon` and `action_dim`; a folder that
        states its own must agree with the given ones. Raises RoboAlignError on a missing, broken or
        inconsistent file.
        """
        folder = Path(folder)
        where = str(folder / "processor_config.json")
        config = read_json(folder / "processor_config.json", fix=LAYOUT_FIX)
        tokenizer_file = folder / "tokenizer.json"
        if not tokenizer_file.is_file():
            raise RoboAlignError(
                "the file does not exist", where=str(tokenizer_file), fix=LAYOUT_FIX
            )
        try:
            tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # tokenizers raises bare Exception on a broken file
            raise RoboAlignError(
                f"not a tokenizer ({error})", where=str(tokenizer_file), fix=LAYOUT_FIX
            ) from None
        scale = _number(config, "scale", where)
        if scale <= 0:
            raise RoboAlignError(f"scale must be above 0, got {scale}", where=where, fix=LAYOUT_FIX)
        min_token = int(_number(config, "min_token", where))
        vocab_size = int(_number(config, "vocab_size", where))
        if vocab_size != tokenizer.get_vocab_size():
            raise RoboAlignError(
                f"vocab_size is {vocab_size}, tokenizer.json holds {tokenizer.get_vocab_size()}",
                where=where,
                fix="take both files from one folder",
            )
        # The published layout has no upper bound: its alphabet is all bytes, which can spell any
        # character.
        max_token = (
            int(_number(config, "max_token", where))
            if "max_token" in config
            else min_token + LARGEST_OFFSET
        )
        return cls(
            tokenizer,
            scale=scale,
            min_token=min_token,
            max_token=max_token,
            horizon=_agreed(horizon, config.get("time_horizon"), "horizon", where),
            action_dim=_agreed(action_dim, config.get("action_dim"), "action_dim", where),
        )


def _finite(chunks: np.ndarray) -> np.ndarray:
    chunks = np.asarray(chunks)
    if chunks.ndim != 3:
        raise RoboAlignError(
            f"chunks must have shape [N, H, D], got {list(chunks.shape)}", where="chunks"
        )
    broken = ~np.isfinite(chunks).all(axis=(1, 2))
    if broken.any():
        raise RoboAlignError(
            f"NaN or infinite values in {broken.sum()} of {len(chunks)} chunks", where="chunks"
        )
    return chunks


def _quantise(
    chunks: Num[np.ndarray, "chunks horizon action"], scale: float
) -> Int[np.ndarray, "chunks horizon action"]:
    """Quantize normalized [N, H, D] to int64 [N, H, D], frequency along axis 1."""
    return np.around(dct(chunks, axis=1, norm="ortho") * scale).astype(np.int64)


def _to_texts(offsets: Int[np.ndarray, "chunks horizon action"]) -> list[str]:
    """Convert offsets [N, H, D] from `min_token` to one string per chunk.

    Each has H * D characters, low frequency first.
    """
    width = offsets[0].size if len(offsets) else 0
    text = offsets.astype("<u4").tobytes().decode("utf-32-le")
    return [text[start : start + width] for start in range(0, len(text), width)] if width else []


def _byte_symbols(largest: int) -> list[str]:
    """Return the byte-level symbols that the characters 0..largest need.

    Not all 256 are used, so that small vocabularies work.
    """
    text = "".join(map(chr, range(largest + 1)))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return sorted(set("".join(piece for piece, _ in level.pre_tokenize_str(text))))


def _number(config: dict, field: str, where: str) -> float:
    value = config.get(field)
    if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
        raise RoboAlignError(
            f"`{field}` must be a number, got {value!r}", where=where, fix=LAYOUT_FIX
        )
    return value


def _agreed(given: int | None, stored: int | None, field: str, where: str) -> int:
    if given is not None and stored is not None and given != stored:
        raise RoboAlignError(
            f"{field} is {stored} in the file, {given} was asked for",
            where=where,
            fix=f"use {field}={stored} or fit a tokenizer for {given}",
        )
    value = stored if given is None else given
    if not isinstance(value, int) or value < 1:
        raise RoboAlignError(
            f"{field} is not known ({value!r})", where=where, fix=f"give {field} when loading"
        )
    return value
