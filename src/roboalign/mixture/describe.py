"""Describe a mixture of sources: what rebuilds it, and the outcome of every sample."""

import re
import shutil
from pathlib import Path
from typing import Any

from roboalign.conversations.conversation import SPLITS
from roboalign.core.files import atomic_path, hash_file
from roboalign.mixture import account
from roboalign.mixture.config import MixtureConfig
from roboalign.mixture.manifest import Tally, manifest_of
from roboalign.mixture.store import SampleStore


def dump(config: MixtureConfig) -> dict[str, Any]:
    """Return the settings in the form of the manifest."""
    return config.model_dump(mode="json")


def describe_mixture(
    config: MixtureConfig,
    work: Path,
    index: SampleStore,
    files: dict[str, str],
    evaluation: dict[str, Any] | None,
    tokens: dict[str, Any] | None,
    shards: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Write the files that accompany the shards; return the manifest."""
    out = work / "out"
    if not index.is_done("duplicates"):
        with index.transaction("duplicates"):
            index.note_duplicates(config.asked())
    account.list_dropped(index, config, out / "dropped.jsonl")
    if tokens and not (out / "tokenizer").exists():
        with atomic_path(out / "tokenizer") as temporary:
            shutil.copytree(work / "tokenizer", temporary)
    counts = {split: Tally() for split in SPLITS}
    for name, row in shards.items():
        counts[re.split(r"[-.]", name)[0]].add(row["counts"])
    return manifest_of(
        kind="sources",
        prompts=config.prompts,
        settings=dump(config),
        files=files,
        evaluation=evaluation,
        sources=account.account(index, config),
        images=account.images(index),
        tokenizer=tokens,
        rl=_rl_subset(index, config, out) if config.rl else None,
        counts={split: tally.summary() for split, tally in counts.items()},
        shards={name: row["sha256"] for name, row in sorted(shards.items())},
    )


def _rl_subset(index: SampleStore, config: MixtureConfig, out: Path) -> dict[str, Any]:
    """Write the ids of the RL subset; return its entry in the manifest."""
    assert config.rl
    with atomic_path(out / "rl-ids.txt") as temporary, temporary.open("w") as file:
        file.writelines(f"{name}\n" for name in index.placed_ids("rl"))
    return {
        "ids": "rl-ids.txt",
        "sha256": hash_file(out / "rl-ids.txt"),
        "samples": config.rl.count,
        "share": config.rl.count / index.kept(),
    }
