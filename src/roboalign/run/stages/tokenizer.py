"""Stage `tokenizer`: action statistics and FAST, fitted on the training demonstrations of the alignment tasks."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.actions.fast import DecodeFailure, FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_tree, read_json, write_json
from roboalign.core.hub import resolve
from roboalign.core.progress import say
from roboalign.mixture.manifest import read_manifest
from roboalign.run.folder import split_demonstrations
from roboalign.run.stage import Context


def tokenizer(context: Context) -> dict[str, Any]:
    """Write fast/ (the published layout), stats.json, and tokenizer.json with the accuracy that the
    tokens lose."""
    if context.recipe.mixture is not None:
        return _given(context, Path(context.recipe.mixture))
    config = context.recipe.tokenizer
    episodes, _ = split_demonstrations(context.run_dir, context.recipe, "align")
    stats = ActionStats.fit(
        np.concatenate([episode.actions for episode in episodes]),
        method=config.statistics,
        clip=config.clip,
    )
    for note in stats.notes():
        say(note, "tokenizer")
    chunks = stats.normalize(
        np.concatenate([episode.chunks(config.horizon) for episode in episodes])
    )
    if config.path is None:
        fast = FastTokenizer.fit(chunks, scale=config.scale, vocab_size=config.vocab_size)
    else:
        folder = resolve(config.path, "tokenizer", where="tokenizer.path")
        fast = FastTokenizer.load(folder, horizon=config.horizon, action_dim=chunks.shape[-1])
    tokens = fast.encode(chunks)
    decoded = fast.decode_batch(tokens)
    failures = [one for one in decoded if isinstance(one, DecodeFailure)]
    again = [one for one in decoded if isinstance(one, np.ndarray)]
    if failures:
        raise RoboAlignError(
            f"{len(failures)} of {len(chunks)} chunks do not decode ({failures[0].reason})",
            where="tokenizer",
            fix="use a finer tokenizer.scale or another tokenizer.path",
        )
    lengths = np.array([len(one) for one in tokens])
    fast.save(context.folder / "fast")
    write_json(context.folder / "stats.json", stats.to_dict())
    row = {
        "chunks": len(chunks),
        "horizon": config.horizon,
        "action_dim": int(chunks.shape[-1]),
        "scale": fast.scale,
        "vocab_size": fast.vocab_size,
        "tokens_per_chunk": round(float(lengths.mean()), 2),
        "tokens_per_chunk_max": int(lengths.max()),
        "reconstruction_l1": round(float(np.abs(np.stack(again) - chunks).mean()), 4),
    }
    write_json(
        context.folder / "tokenizer.json", {**row, "mean_chunk": chunks.mean(axis=0).tolist()}
    )
    return row


def _given(context: Context, mixture: Path) -> dict[str, Any]:
    """Copy the action tokens of a mixture. Raises RoboAlignError if it has none, or others than its
    manifest says."""
    folder, described = mixture / "tokenizer", read_manifest(mixture)["tokenizer"]
    if not folder.is_dir() or described is None:
        raise RoboAlignError(
            "the mixture has no action tokens",
            where=str(folder),
            fix="give the mixture file a `robot` source and a `tokenizer`, and build it again",
        )
    if hash_tree(folder) != described.get("sha256"):
        raise RoboAlignError(
            "it is not the folder that manifest.json lists",
            where=str(folder),
            fix="build the mixture again with `roboalign data mix`",
        )
    shutil.copytree(folder, context.folder, dirs_exist_ok=True)
    row: dict[str, Any] = read_json(context.folder / "tokenizer.json")
    return {name: value for name, value in row.items() if name != "mean_chunk"}
