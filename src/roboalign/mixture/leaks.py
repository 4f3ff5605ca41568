"""Read evaluation sets, to compare training samples with them."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.conversations.conversation import ROW
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, read_json, write_json
from roboalign.core.hub import resolve
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode, content_id
from roboalign.episodes.open import format_of, open_robot_data
from roboalign.mixture.holdout import HoldoutConfig, NearConfig
from roboalign.mixture.keys import first_bytes, key_of
from roboalign.mixture.looks import LOOK_DTYPE, SeenImages, look_of, thumbnail
from roboalign.mixture.parts import STREAMED
from roboalign.mixture.sources.read import ROWS, SLICES

EVALUATED = "evaluation"


def evaluation_tasks(work: Path, number: int, config: HoldoutConfig) -> list[tuple[Any, ...]]:
    """Return the tasks that read one evaluation set.

    There is one per conversation shard, or several that share a robot data set.
    """
    folder = resolve(config.path, "data set", where="evaluation")
    found = sorted(folder.glob("*.parquet"))
    held = [path for path in found if path.name == "heldout.parquet"]
    if found:
        return [(work, number, path, config, 0, 1) for path in held or found]
    slices = 1 if (config.format or format_of(folder)) == "rlds" else SLICES
    open_robot_data(
        folder, config.format, options=config.read
    )  # reports errors of the whole data set now
    return [(work, number, folder, config, k, slices) for k in range(slices)]


def read_evaluation(
    work: Path, number: int, path: Path, config: HoldoutConfig, part: int, of: int
) -> None:
    """Read the images (SEEN) and episodes (hashes) of one task, and write them to two files.

    A task covers a shard, or every `of`-th episode.
    """
    stem = f"{number}-{path.stem}-{part}"
    told, found = work / EVALUATED / f"{stem}.json", work / EVALUATED / f"{stem}.bin"
    if told.exists():
        return
    shard = path.suffix == ".parquet"
    images = shard_images(path) if shard else robot_images(config, part, of)
    episodes: set[int] = set()
    actions: set[int] = set()
    faults, batch = 0, []
    with atomic_path(found) as temporary, temporary.open("wb") as file:
        for episode, digest, data in images:
            if episode:
                episodes.add(key_of("recorded" if digest else "stored", episode))
            if digest:
                actions.add(key_of("actions", digest))
            if data is None:
                faults += 1
                continue
            if not data and shard:  # a conversation without images
                continue
            try:
                thumb = thumbnail(data)
            except RoboAlignError:
                faults += 1
                continue
            batch.append(
                (first_bytes(hashlib.sha256(data).digest()), look_of(thumb), thumb.reshape(-1))
            )
            if len(batch) == ROWS:
                np.array(batch, dtype=LOOK_DTYPE).tofile(file)
                batch.clear()
        np.array(batch, dtype=LOOK_DTYPE).tofile(file)
    write_json(
        told,
        {
            "number": number,
            "episodes": sorted(episodes),
            "actions": sorted(actions),
            "faults": faults,
        },
    )


def shard_images(path: Path) -> Iterator[tuple[str, str, bytes | None]]:
    """Yield (episode id, "", image file) of a conversation shard, which has no actions.

    The file of a conversation without images is empty.
    """
    try:
        schema = pa.schema([ROW.field("episode_id"), ROW.field("images")])
        for batch in pq.ParquetFile(path, **STREAMED).iter_batches(ROWS, columns=schema.names):
            for row in batch.select(schema.names).cast(schema).to_pylist():
                for image in row["images"] or [{"bytes": b""}]:
                    yield row["episode_id"] or "", "", (image or {}).get("bytes")
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise RoboAlignError(
            f"not a readable conversation shard ({error})", where=str(path), fix="write it again"
        ) from None


def robot_images(
    config: HoldoutConfig, part: int, of: int
) -> Iterator[tuple[str, str, bytes | None]]:
    """Yield (episode id, digest of its actions, image file) of every frame of every camera."""
    for number, episode in enumerate(
        open_robot_data(config.path, config.format, options=config.read).read()
    ):
        if number % of != part:
            continue
        if isinstance(episode, Fault):
            yield "", "", None
            continue
        assert isinstance(episode, Episode)
        digest = content_id("", episode.actions)
        for camera in episode.images:
            for t in range(len(episode)):
                try:
                    yield episode.episode_id, digest, episode.png(camera, t)
                except RoboAlignError:
                    yield episode.episode_id, digest, None


def join_evaluation(work: Path, sets: Sequence[HoldoutConfig]) -> None:
    """Combine what the tasks found with the manifest entry of each evaluation set."""
    files = sorted((work / EVALUATED).glob("*-*.json"))
    told = [
        (file.with_name(f"{file.name.removesuffix('.json')}.bin"), read_json(file))
        for file in files
    ]
    summary = []
    episodes: set[int] = set()
    actions: set[int] = set()
    with atomic_path(work / "evaluation.bin") as temporary, temporary.open("wb") as out:
        for number, one in enumerate(sets):
            own = [(file, facts) for file, facts in told if facts["number"] == number]
            for file, _ in own:
                out.write(file.read_bytes())
            episodes |= {episode for _, facts in own for episode in facts["episodes"]}
            actions |= {digest for _, facts in own for digest in facts["actions"]}
            images = sum(file.stat().st_size for file, _ in own) // LOOK_DTYPE.itemsize
            summary.append(
                {
                    "name": Path(one.path).name,
                    "images": images,
                    "faults": sum(f["faults"] for _, f in own),
                    "episodes": len({e for _, facts in own for e in facts["episodes"]}),
                }
            )
    found = {"sets": summary, "episodes": sorted(episodes), "actions": sorted(actions)}
    write_json(work / "evaluation.json", found)


class Evaluated:
    """The evaluation sets, for comparing samples with them."""

    def __init__(self, work: Path, near: NearConfig) -> None:
        told = read_json(work / "evaluation.json")
        self.names = [one["name"] for one in told["sets"]]
        self.ends = np.cumsum([one["images"] for one in told["sets"]])
        self.episodes, self.actions = set(told["episodes"]), set(told["actions"])
        empty = not self.ends.size or self.ends[-1] == 0  # an empty file cannot be mapped
        images = (
            np.zeros(0, LOOK_DTYPE)
            if empty
            else np.memmap(work / "evaluation.bin", dtype=LOOK_DTYPE, mode="r")
        )
        self.images = SeenImages(images, near.distance, near.difference)

    def leak(
        self, sha: int, look: int, thumb: np.ndarray, episode: str, actions: str = ""
    ) -> tuple[str, str] | None:
        """Return how a sample leaks, and the evaluation set that has it; None if it does not.

        It can have the same image, the same picture or the same episode.
        """
        for what, found in (
            ("same image", self.images.exact(sha)),
            ("same picture", self.images.near(look, thumb)),
        ):
            if found.size:
                return what, self.names[int(np.searchsorted(self.ends, found.min(), side="right"))]
        return ("same episode", "") if self.has_episode(episode, actions) else None

    def has_episode(self, episode: str, actions: str) -> bool:
        """Return whether an episode is evaluated on.

        It is compared by its actions if both are known, because folders of the same name give
        different episodes the same id; otherwise by its id.
        """
        if actions and key_of("actions", actions) in self.actions:
            return True
        kinds = ("stored",) if actions else ("stored", "recorded")
        return bool(episode) and any(key_of(kind, episode) in self.episodes for kind in kinds)
