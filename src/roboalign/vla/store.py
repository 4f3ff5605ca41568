"""Store hidden states in shards of frames, rounded and packed, and read frames from them
memory-mapped."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, check_readable
from roboalign.mllm.rounding import unpack

SHARD_FORMAT = "1"  # a change makes all existing shards invalid


class FeatureStore:
    """Hidden states of N frames, in the order of the episodes, memory-mapped from shard files."""

    def __init__(self, shards: Sequence[Path]) -> None:
        """Open the shards. Raises RoboAlignError if one is missing, truncated or not of this
        format."""
        read = [_read_shard(path) for path in shards]
        self.tokens = [shard.tokens for shard in read]
        self.exponents = [shard.exponents for shard in read]
        self.lengths = np.concatenate([shard.lengths for shard in read])
        self.starts = np.concatenate([np.cumsum(shard.lengths) - shard.lengths for shard in read])
        self.shard_of = np.repeat(np.arange(len(read)), [len(shard.lengths) for shard in read])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        """W, the width of the backbone."""
        return self.tokens[0].shape[1]

    def gather(
        self, frames: Int[np.ndarray, " batch"], device: torch.device | str = "cpu"
    ) -> tuple[Float[Tensor, "batch tokens {self.width}"], Bool[Tensor, "batch tokens"]]:
        """Return hidden states as `View.encode` does, padded to the longest frame, and their mask.

        They are unpacked on `device`, so that fewer bytes are copied to it.
        """
        lengths = self.lengths[frames][:, None]
        places = np.arange(lengths.max())
        rows = torch.from_numpy(self.starts[frames][:, None] + np.minimum(places, lengths - 1))
        states = torch.empty(*rows.shape, self.width, dtype=self.tokens[0].dtype)
        exponents = None if self.exponents[0] is None else torch.empty(rows.shape, dtype=torch.int8)
        for shard in np.unique(self.shard_of[frames]):
            here = torch.from_numpy(np.flatnonzero(self.shard_of[frames] == shard))
            states[here] = self.tokens[shard][rows[here]]
            if exponents is not None:
                exponents[here] = self.exponents[shard][rows[here]]
        states = unpack(states.to(device), None if exponents is None else exponents.to(device))
        return states, torch.from_numpy(places < lengths).to(device)


class Shard(NamedTuple):
    """One file: frames end to end."""

    tokens: Float[Tensor, "tokens width"]
    """Mapped from the file; the numbers of `rounding.pack`."""
    exponents: Int8[Tensor, " tokens"] | None
    """Only for float8."""
    lengths: Int[np.ndarray, " frames"]
    """Number of tokens in each frame."""


def write_feature_shard(
    path: Path,
    parts: Sequence[tuple[Float[Tensor, "_ width"], Int8[Tensor, " _"] | None]],
    lengths: Sequence[Int[Tensor, " _"]],
) -> None:
    """Write packed tokens, from `rounding.pack` of each batch, and the number of tokens in each
    frame."""
    tensors = {
        "tokens": torch.cat([numbers for numbers, _ in parts]),
        "lengths": torch.cat(list(lengths)),
    }
    exponents = [one for _, one in parts if one is not None]
    if exponents:
        tensors["exponents"] = torch.cat(exponents)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"format": SHARD_FORMAT})


def _read_shard(path: Path) -> Shard:
    fix = "remove the file; it is computed again"
    check_readable(path, fix=fix)
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            found = {name: file.get_tensor(name) for name in names}
            known = (file.metadata() or {}).get("format") == SHARD_FORMAT and {
                "tokens",
                "lengths",
            } <= names
    except (OSError, SafetensorError) as error:
        raise RoboAlignError(
            f"not a readable feature file ({error})", where=str(path), fix=fix
        ) from None
    eight = known and found["tokens"].dtype == torch.float8_e4m3fn
    if (
        not known
        or found["lengths"].sum() != len(found["tokens"])
        or eight != ("exponents" in names)
    ):
        raise RoboAlignError("not a feature file of this version", where=str(path), fix=fix)
    return Shard(found["tokens"], found.get("exponents"), found["lengths"].numpy())
