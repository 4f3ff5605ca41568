"""Describe a mixture in its manifest: what rebuilds it, and the outcome of every sample."""

import platform
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa

from roboalign import __version__
from roboalign.core.files import atomic_path, hash_file
from roboalign.mixture import account, write
from roboalign.mixture import index as store
from roboalign.mixture.config import MixtureConfig


def dump(config: MixtureConfig) -> dict[str, Any]:
    """Return the settings in the form of the manifest."""
    return config.model_dump(mode="json")


def describe_mixture(
    config: MixtureConfig,
    work: Path,
    index: sqlite3.Connection,
    files: dict[str, str],
    evaluation: dict[str, Any] | None,
    tokens: dict[str, Any] | None,
    shards: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Write the files that accompany the shards; return the manifest."""
    out = work / "out"
    if not store.is_done(index, "duplicates"):
        with store.transaction(index, "duplicates"):
            account.note_duplicates(index, config)
    account.list_dropped(index, config, out / "dropped.jsonl")
    if tokens and not (out / "tokenizer").exists():
        with atomic_path(out / "tokenizer") as temporary:
            shutil.copytree(work / "tokenizer", temporary)
    kept = store.number(index, "SELECT count(*) FROM kept")
    manifest: dict[str, Any] = {
        "mixture": 1,
        "prompts": config.prompts,
        "settings": dump(config),
        "files": files,
        "evaluation": evaluation,
        "sources": account.account(index, config),
        "images": account.images(index),
        "tokenizer": tokens,
        "rl": None,
        "counts": {
            split: write.sum_of(
                [row["counts"] for name, row in shards.items() if name.startswith(split)]
            )
            for split in ("train", "rl", "heldout")
        },
        "shards": {name: row["sha256"] for name, row in sorted(shards.items())},
        "lengths": {},
        "versions": {
            "roboalign": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
            "pillow": PIL.__version__,
        },
    }
    if config.rl:
        with atomic_path(out / "rl-ids.txt") as temporary, temporary.open("w") as file:
            for (id_,) in index.execute(
                "SELECT d.id FROM placed p JOIN drawn d ON d.item = p.item WHERE split = 'rl' "
                "ORDER BY position"
            ):
                file.write(id_ + "\n")
        manifest["rl"] = {
            "ids": "rl-ids.txt",
            "sha256": hash_file(out / "rl-ids.txt"),
            "samples": config.rl.count,
            "share": config.rl.count / kept,
        }
    return manifest
