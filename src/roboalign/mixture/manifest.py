"""Check a mixture on disk: it matches its manifest, and contains no evaluation data."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from roboalign.conversations.conversation import (
    SPLITS,
    image_hash,
    read_conversations,
    read_table,
    shards,
)
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file, read_json
from roboalign.mixture.demonstrations import Tally


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
