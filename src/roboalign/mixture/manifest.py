"""Describe a mixture in its manifest, whatever it is built from, and check it on disk against that.

The mixtures of a run and of `roboalign data mix` have the same keys; what one of them does not have
is empty.
"""

import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc

from roboalign import __version__
from roboalign.conversations.conversation import (
    SPLITS,
    Conversation,
    image_hash,
    read_conversations,
    read_table,
    shards,
)
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file, read_json

SCHEMA = 2
"""Version of the manifest's keys."""
_TALLIED = ("kind", "type", "mode", "source")


class Tally:
    """Counts of conversations and turns on their way to a shard."""

    def __init__(self) -> None:
        self.conversations = self.turns = 0
        self.by: dict[str, Counter[str]] = {name: Counter() for name in _TALLIED}

    def count(self, conversations: Iterable[Conversation]) -> list[Conversation]:
        """Return the conversations as a list, after counting them."""
        counted = list(conversations)
        for one in counted:
            self.conversations += 1
            self.turns += len(one.turns)
            origin = one.id if "/" in one.id else one.episode_id
            self.by["source"][origin.split("/")[0]] += 1
            for turn in one.turns:
                for by in ("kind", "type", "mode"):
                    self.by[by][getattr(turn, by)] += 1
        return counted

    def add(self, summary: Mapping[str, Any]) -> None:
        """Add the `summary` of another part."""
        self.conversations += summary["conversations"]
        self.turns += summary["turns"]
        for name, counter in self.by.items():
            counter.update(summary[name])

    def summary(self) -> dict[str, Any]:
        """Return counts for the manifest.

        They are turns by kind, type and mode, and conversations by source.
        """
        by = {name: dict(sorted(counter.items())) for name, counter in self.by.items()}
        return {"conversations": self.conversations, "turns": self.turns, **by}


def manifest_of(
    *,
    kind: Literal["demonstrations", "sources"],
    prompts: str,
    settings: dict[str, Any],
    sources: dict[str, dict[str, Any]],
    counts: dict[str, dict[str, Any]],
    shards: dict[str, str],
    tokenizer: dict[str, Any] | None,
    rl: dict[str, Any] | None,
    images: dict[str, int],
    files: dict[str, str] | None = None,
    evaluation: dict[str, Any] | None = None,
    splits: dict[str, list[str]] | None = None,
) -> dict[str, Any]:
    """Return the manifest of a mixture; its keys are these, `lengths` and `versions`.

    `sources` says what became of the samples of each, and which questions did not apply. `counts`
    are `Tally.summary` of each split, `shards` the sha256 of each file. `splits` are the ids of the
    episodes of demonstrations; data mixed from `sources` has them in its shards alone.
    """
    return {
        "mixture": SCHEMA,
        "kind": kind,
        "prompts": prompts,
        "settings": settings,
        "files": files or {},
        "evaluation": evaluation,
        "sources": sources,
        "images": images,
        "tokenizer": tokenizer,
        "rl": rl,
        "counts": counts,
        "splits": splits or {"train": [], "heldout": []},
        "shards": shards,
        "lengths": {},
        "versions": {
            "roboalign": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
            "pillow": PIL.__version__,
        },
    }


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return manifest.json of a mixture."""
    return read_json(Path(folder) / "manifest.json", fix="build the mixture first")


def verify_manifest(folder: str | Path) -> dict[str, Any]:
    """Recompute every hash and count of a mixture; return the manifest.

    Raises RoboAlignError naming the shard or split that differs.
    """
    folder, fix = Path(folder), "build the mixture again"
    manifest = read_manifest(folder)
    found = {path.name for path in folder.glob("*.parquet")}
    if found != set(manifest["shards"]):
        problem = f"shards {sorted(found)}, the manifest lists {sorted(manifest['shards'])}"
        raise RoboAlignError(problem, where=str(folder), fix=fix)
    for name, digest in manifest["shards"].items():
        if hash_file(folder / name) != digest:
            raise RoboAlignError(
                "its sha256 is not the one in manifest.json", where=str(folder / name), fix=fix
            )
    for split in SPLITS:
        tally = Tally()
        tally.count(read_conversations(folder, split))
        if tally.summary() != manifest["counts"][split]:
            raise RoboAlignError(
                f"the counts of {split} are not those in manifest.json", where=str(folder), fix=fix
            )
    assert_disjoint(folder, manifest["splits"]["heldout"])
    return manifest


def assert_disjoint(
    folder: str | Path,
    evaluation_episode_ids: Iterable[str],
    evaluation_images: Iterable[bytes] = (),
) -> None:
    """Raise RoboAlignError if an evaluation episode or image (PNG) is in the training data.

    Training data are the training episodes in the manifest and every row of the train and rl
    shards, so that a row missing from the manifest is found too. Images are compared by the sha256
    of their PNG file.
    """
    evaluated = set(evaluation_episode_ids)
    image_hashes = {image_hash(png) for png in evaluation_images}
    trained, fix = (
        set(read_manifest(folder)["splits"]["train"]),
        "evaluate on other seeds, or build the mixture again",
    )
    if leaked := sorted(evaluated & trained):
        problem = f"{len(leaked)} evaluation episodes are in the training split, first {leaked[0]}"
        raise RoboAlignError(problem, where=str(Path(folder) / "manifest.json"), fix=fix)
    for path in [*shards(folder, "train"), *shards(folder, "rl")]:
        table = read_table(path, columns=["episode_id", "image_sha256"])
        if leaked := sorted(evaluated & set(table["episode_id"].to_pylist())):
            raise RoboAlignError(
                f"it holds frames of evaluation episode {leaked[0]}", where=str(path), fix=fix
            )
        hashes = pc.list_flatten(table["image_sha256"]).to_pylist()
        if image_hashes & set(hashes):
            raise RoboAlignError("it holds an image that is evaluated on", where=str(path), fix=fix)
