"""The verb `data mix`: a mixture from any sources, or one rebuilt from its manifest."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from transformers import GenerationConfig

from roboalign.actions.vocabulary import extend_tokenizer
from roboalign.conversations.conversation import Turn, turns_of
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, read_json
from roboalign.core.hub import resolve
from roboalign.episodes.pictures import size_of_file
from roboalign.mixture.account import account_text
from roboalign.mixture.builder import build
from roboalign.mixture.config import MixtureConfig, load_mixture, pin_mixture
from roboalign.mixture.parts import STREAMED
from roboalign.mllm.encode import encode_conversation
from roboalign.mllm.load import Mllm, find_vocabulary
from roboalign.mllm.model_folder import config_of
from roboalign.mllm.processors import load_processor

_ROWS = 100
_PART = re.compile(r"(source|rl|heldout|tokenizer(\.path)?|model|evaluation|mixture)(?=[, ]|$)|$")
"""Start of a fault's place if it is a part of the mixture file."""


def mix_data(mixture: str, out: str, *, workers: int, at: Sequence[str] = ()) -> str:
    """Build the mixture of a file, or rebuild that of a manifest.json; return a table of what
    became of the samples."""
    moved = places(at)
    if workers < 1:
        raise RoboAlignError(f"{workers} processes", where="--workers", fix="give 1 or more")
    config, expected = load_mixture(mixture, moved)
    with _naming(mixture):
        manifest = _build(pin_mixture(config), out, workers, expected)
    counts = manifest["counts"]
    rl = manifest["rl"]
    for_rl = f", {rl['samples']} of them for RL ({100 * rl['share']:.2f}%)" if rl else ""
    return (
        f"{account_text(manifest)}\n{counts['train']['conversations']} samples in {len(manifest['shards'])} shards"
        f"{for_rl}, {counts['heldout']['conversations']} held out: {Path(out).resolve()}"
    )


def places(at: Sequence[str]) -> dict[str, str]:
    """Parse NAME=PATH texts of --at."""
    moved = {}
    for setting in at:
        name, equals, path = setting.partition("=")
        if not name or not equals or not path:
            raise RoboAlignError(
                "a place is name=path",
                where=f"--at {setting}",
                fix="for example --at llava=/data/qa",
            )
        moved[name] = path
    return moved


@contextmanager
def _naming(mixture: str) -> Iterator[None]:
    """Add the file's name to a fault in a part of the mixture."""
    try:
        yield
    except RoboAlignError as error:
        if not _PART.match(error.where):
            raise
        where = f"{mixture}, {error.where}" if error.where else mixture
        raise RoboAlignError(error.problem, where=where, fix=error.fix) from error


def _build(
    config: MixtureConfig, out: str, workers: int, expected: dict[str, Any] | None
) -> dict[str, Any]:
    """Build the mixture and return its manifest."""
    lengths = None
    if config.model is not None:
        # Report a problem with the folder now, not after everything else is done.
        load_words(
            config.model,
            config.tokenizer.vocab_size if config.tokenizer and config.tokenizer.fit else None,
        )
        lengths = partial(write_lengths, model=config.model)
    return build(config, out, workers=workers, lengths=lengths, expected=expected)


def write_lengths(shard: Path, path: Path, *, model: str) -> None:
    """Write the length in tokens of every sample of a shard, image included: uint32 [N], in the
    shard's order."""
    tokenizer = (
        shard.parent.parent / "tokenizer" / "tokenizer.json"
    )  # where a mixture keeps it during the build
    words = load_words(model, read_json(tokenizer)["vocab_size"] if tokenizer.exists() else None)
    lengths = []
    for batch in pq.ParquetFile(shard, **STREAMED).iter_batches(
        _ROWS, columns=["images", "turns", "chat"]
    ):
        for row in batch.to_pylist():
            images = [image["bytes"] for image in row["images"]]
            lengths.append(token_length(words, turns_of(row), images))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(lengths, dtype=np.uint32))


def token_length(words: Mllm, turns: Sequence[Turn], images: Sequence[bytes]) -> int:
    """Return the tokens of a conversation of these turns and image files."""
    sizes = [size_of_file(image) for image in images]
    # Only the sizes matter; an array of zeros takes no memory until it is written.
    blanks = [np.zeros((height, width, 3), dtype=np.uint8) for width, height in sizes]
    return len(encode_conversation(words, [vars(turn) for turn in turns], blanks).input_ids)


@lru_cache(maxsize=2)
def load_words(model: str, n_fast: int | None) -> Mllm:
    """Load the processor of a model without its weights, with `n_fast` action tokens if it has none
    yet.

    Raises RoboAlignError if the folder is not that of a model, or has fewer action tokens than
    `n_fast`.
    """
    folder = resolve(model, "settings", where="model")
    if not (folder / "config.json").is_file():
        raise RoboAlignError(
            "no model here: config.json does not exist",
            where=str(folder),
            fix="give the folder of a Hugging Face image-text-to-text model as `model`",
        )
    try:
        processor = load_processor(folder)
        settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise RoboAlignError(
            f"its processor cannot be opened ({error})",
            where=str(folder),
            fix="check that the folder is complete",
        ) from None
    vocabulary = find_vocabulary(processor.tokenizer)
    if n_fast and vocabulary is None:
        vocabulary = extend_tokenizer(processor.tokenizer, n_fast)
    if n_fast and vocabulary and len(vocabulary.fast_ids) < n_fast:
        raise RoboAlignError(
            f"it has {len(vocabulary.fast_ids)} action tokens and the mixture's tokenizer {n_fast}",
            where=str(folder),
            fix="give the `tokenizer.path` that it was made with",
        )
    words = SimpleNamespace(generation_config=settings, config=config_of(folder))
    return Mllm(words, processor, vocabulary, folder)
