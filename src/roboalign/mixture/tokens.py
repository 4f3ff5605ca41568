"""Find or fit the action tokens of a mixture: statistics and FAST of its robot sources."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.actions.fast import DecodeFailure, FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, read_json, write_json
from roboalign.core.hub import resolve
from roboalign.episodes.episode import Episode
from roboalign.mixture.config import TokensConfig

BLOCK = 4_096
"""Number of chunks encoded at a time: their tokens are Python lists."""


@dataclass(frozen=True)
class Tokens:
    """Converts raw actions to tokens."""

    fast: FastTokenizer
    stats: ActionStats

    def of(self, episode: Episode, frames: Sequence[int]) -> tuple[np.ndarray, list[list[int]]]:
        """Return normalized chunks [N, H, D] of these frames and their FAST ids."""
        chunks = self.stats.normalize(
            np.stack([episode.chunk(t, self.fast.horizon) for t in frames])
        )
        return chunks, self.fast.encode(chunks)


@dataclass(frozen=True)
class RawChunks:
    """The chunks of one source, used to fit the tokenizer, and their known meaning."""

    source: str
    chunks: np.ndarray
    """float32 [N, H, D], raw units."""
    space: dict[str, Any] | None
    """What the actions mean; None if not stated."""
    names: tuple[str, ...]
    """The data set's names of their dimensions; () if it has none."""
    fps: float
    """Steps per second."""


def check_same_actions(found: Sequence[RawChunks], *, mixed: bool = False) -> list[str]:
    """Return notes for the reader about sources that share statistics and tokens.

    Each is one sentence. Raises RoboAlignError if the actions of two sources have different
    dimensions or spaces. Unless `mixed`, also if their names or rates differ and no `space` says
    that they mean the same: one head could not learn both.
    """
    first, *others = found
    notes = []
    for other in others:
        sizes = f"{other.chunks.shape[2]} and {first.chunks.shape[2]} dimensions"
        if other.chunks.shape[1:] != first.chunks.shape[1:] or other.space != first.space:
            raise RoboAlignError(
                f"its actions are not those of the source {first.source}: {sizes}, spaces {other.space} and "
                f"{first.space}",
                where=f"source {other.source}",
                fix="convert one of them with `roboalign data convert`, or name the `space` of both",
            )
        differing = _differences(first, other)
        if differing and first.space is None and not mixed:
            raise RoboAlignError(
                f"its actions are recorded otherwise than those of the source {first.source}: "
                f"{'; '.join(differing)}; they would share statistics",
                where=f"source {other.source}",
                fix="name the `space` of both where they mean the same, or set `tokenizer: {mixed: true}`",
            )
        notes += [
            f"{other.source} and {first.source} share statistics although {d}" for d in differing
        ]
    return notes


def _differences(first: RawChunks, other: RawChunks) -> list[str]:
    """Return how the actions of two sources differ: names of dimensions, steps per second."""
    found = []
    if first.names and other.names and first.names != other.names:
        found.append(f"the dimensions are {', '.join(other.names)} and {', '.join(first.names)}")
    if first.fps != other.fps:
        found.append(f"the rates are {other.fps:g} and {first.fps:g} steps a second")
    return found


def make_tokens(
    config: TokensConfig, raw: np.ndarray, folder: Path, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Fit or load the tokenizer for chunks [N, H, D] of raw actions and write it to `folder`.

    As in a run, this writes fast/, stats.json and tokenizer.json, with `notes` for the reader.
    Returns its entry in the manifest.
    """
    given = resolve(config.path, "tokenizer", where="tokenizer.path") if config.path else None
    inner = given / "fast" if given is not None and (given / "fast").is_dir() else given
    if given is not None and (given / "stats.json").is_file():
        stats = ActionStats.from_dict(
            read_json(given / "stats.json"), where=str(given / "stats.json")
        )
    else:
        stats = ActionStats.fit(
            raw.reshape(-1, raw.shape[2]), method=config.statistics, clip=config.clip
        )
    chunks = stats.normalize(raw)
    if inner is None:
        fast = FastTokenizer.fit(chunks, scale=config.scale, vocab_size=config.vocab_size)
    else:
        fast = FastTokenizer.load(inner, horizon=config.horizon, action_dim=chunks.shape[2])
    row = {
        "chunks": len(chunks),
        "horizon": fast.horizon,
        "action_dim": fast.action_dim,
        "scale": fast.scale,
        "vocab_size": fast.vocab_size,
        "notes": [*notes, *stats.notes()],
        **round_trip(fast, chunks),
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        fast.save(temporary / "fast")
        write_json(temporary / "stats.json", stats.to_dict())
        write_json(
            temporary / "tokenizer.json", {**row, "mean_chunk": chunks.mean(axis=0).tolist()}
        )
    return row


def round_trip(fast: FastTokenizer, chunks: np.ndarray) -> dict[str, float]:
    """Return tokens per chunk and mean absolute error of encoding and decoding chunks [N, H, D].

    Raises RoboAlignError if some do not decode.
    """
    lengths, apart = [], 0.0
    for first in range(0, len(chunks), BLOCK):
        block = chunks[first : first + BLOCK]
        tokens = fast.encode(block)
        lengths += [len(one) for one in tokens]
        decoded = fast.decode_batch(tokens)
        good = [one for one in decoded if not isinstance(one, DecodeFailure)]
        if len(good) < len(block):
            reason = next(one.reason for one in decoded if isinstance(one, DecodeFailure))
            raise RoboAlignError(
                f"{len(block) - len(good)} of {len(block)} chunks do not decode ({reason})",
                where="tokenizer",
                fix="use a finer scale or another tokenizer.path",
            )
        apart += float(np.abs(np.stack(good) - block).mean(axis=(1, 2)).sum())
    return {
        "tokens_per_chunk": round(float(np.mean(lengths)), 2),
        "tokens_per_chunk_max": max(lengths),
        "reconstruction_l1": round(apart / len(chunks), 4),
    }


def load_tokens(folder: Path) -> Tokens:
    """Read what `make_tokens` wrote."""
    described = read_json(folder / "tokenizer.json")
    fast = FastTokenizer.load(
        folder / "fast", horizon=described["horizon"], action_dim=described["action_dim"]
    )
    return Tokens(
        fast,
        ActionStats.from_dict(read_json(folder / "stats.json"), where=str(folder / "stats.json")),
    )
