"""Build the training mixture: conversations of action, question and reasoning turns.

The turns are in random order. This packing makes the model reason before actions without ever being
shown that (paper, section 3.1). An action turn has no reasoning trace, but shares a conversation
with questions about the same image, asked in both modes.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.conversations.conversation import SPLITS, read_table, shards
from roboalign.conversations.styles.base import DEFAULT_STYLE, StyleName
from roboalign.conversations.styles.registry import style_of
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import Episode
from roboalign.mixture.building import Building, ShardRows, ShardTask, build_folder
from roboalign.mixture.decoding import decoded_once
from roboalign.mixture.manifest import Tally, manifest_of
from roboalign.mixture.packed import (
    MixConfig,
    PackedSource,
    heldout_conversations,
    rl_conversations,
    training_conversations,
    unseen_frames,
)
from roboalign.mixture.write import write_shard
from roboalign.questions.ask import survey_world


def build_mixture(
    episodes: Sequence[Episode],
    fast: FastTokenizer,
    stats: ActionStats,
    config: MixConfig,
    out_dir: str | Path,
    *,
    prompts: StyleName = DEFAULT_STYLE,
    split: tuple[Sequence[Episode], Sequence[Episode]] | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Write train-*.parquet, rl.parquet, heldout.parquet and manifest.json; return the manifest.

    They go to `out_dir`, as `build_folder`. `prompts` is the style of its
    questions and replies. `split` is the (training, held-out) episodes of recorded demonstrations,
    about which a simulator's state tells nothing: they are action samples only. Default:
    `split_episodes`, and questions too. `workers` processes decode videos. Raises RoboAlignError
    if two episodes share an id, if an episode lacks what the questions need, or if the RL subset would be
    empty although `rl_share` is not 0.
    """
    plan = DemonstrationFrames(episodes, fast, stats, config, prompts, split)
    plan.workers = workers
    return build_folder(plan, out_dir)


class DemonstrationFrames:
    """The plan of a run's mixture: one frame of a training episode for each conversation."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        fast: FastTokenizer,
        stats: ActionStats,
        config: MixConfig,
        prompts: StyleName,
        split: tuple[Sequence[Episode], Sequence[Episode]] | None,
    ) -> None:
        _check_ids(episodes)
        self.workers = 1
        """Processes that decode videos."""
        self.episodes, self.fast, self.stats = episodes, fast, stats
        self.config, self.prompts = config, prompts
        self.settings = config.model_dump(mode="json")
        self.sources: list[str] = []
        self.train, self.heldout = (
            split_episodes(episodes, config) if split is None else map(list, split)
        )
        world, asks = survey_world(episodes), split is None
        self.source, self.held = (
            PackedSource(part, world, fast, stats, config, style_of(prompts), asks)
            for part in (self.train, self.heldout)
        )
        self.frames = sample_frames(self.train, config)
        draw = random.Random(f"{config.seed}-action")
        self.with_action = [draw.random() < config.action_share or not asks for _ in self.frames]

    @property
    def splits(self) -> dict[str, list[str]]:
        """The ids of the training and held-out episodes."""
        parts = {"train": self.train, "heldout": self.heldout}
        return {name: [episode.episode_id for episode in part] for name, part in parts.items()}

    def is_of(self, manifest: dict[str, Any]) -> bool:
        """Return whether a finished mixture has the same settings and episodes."""
        same = {"settings": self.settings, "prompts": self.prompts, "splits": self.splits}
        return all(manifest.get(name) == value for name, value in same.items())

    def fingerprint(self) -> str:
        """Return a digest of the episodes, without their images, and of the action tokens."""
        digest = hashlib.sha256(f"{self.prompts} {self.splits} {self.stats.to_dict()}".encode())
        digest.update(f"{self.fast.horizon} {self.fast.scale} {self.fast.vocab_size}".encode())
        for episode in self.episodes:
            digest.update(f"{episode.instruction}\0".encode())
            digest.update(episode.actions.tobytes())
        return digest.hexdigest()

    def prepare(self, building: Building) -> None:
        """Decode the frames of videos once, in the order of their files."""
        train = list({episode.episode_id: episode for episode, _ in self.frames}.values())
        held = [(episode, t) for episode in self.heldout for t in range(len(episode))]
        needed, folder = [*self.frames, *held], building.work / "frames"
        shown = decoded_once(
            [*train, *self.heldout], self.config.camera, needed, folder, self.workers
        )
        own = {episode.episode_id: episode for episode in shown}
        self.frames = [(own[episode.episode_id], t) for episode, t in self.frames]
        self.heldout = shown[len(train) :]

    def shards(self, building: Building, split: str, written: ShardRows) -> list[ShardTask]:
        """Return the shards of a split. RL is a share of the turns of `train`."""
        if split == "train":
            numbers, size = range(len(self.frames)), self.config.shard_size
            ends = [numbers[first : first + size] for first in range(0, len(numbers), size)]
            return [
                ShardTask(f"train-{n:05d}.parquet", self._write_train, (part,))
                for n, part in enumerate(ends)
            ]
        if split == "rl":
            turns = sum(row["counts"]["turns"] for row in written.values())
            return [ShardTask("rl.parquet", self._write_rl, (turns,))]
        return [ShardTask("heldout.parquet", self._write_heldout, ())]

    def _write_train(self, work: Path, name: str, numbers: range) -> dict[str, Any]:
        clipped = self.fast.clipped
        self.source.packer.reasons.clear()

        def facts() -> dict[str, Any]:
            asked = dict(self.source.packer.reasons)
            return {"clipped": self.fast.clipped - clipped, "not_asked": asked}

        made = training_conversations(self.source, self.frames, self.with_action, numbers)
        return write_shard(work, name, made, facts)

    def _write_rl(self, work: Path, name: str, turns: int) -> dict[str, Any]:
        clipped = self.fast.clipped
        made = rl_conversations(self.source, self.frames, self.with_action, turns)
        return write_shard(work, name, made, lambda: {"clipped": self.fast.clipped - clipped})

    def _write_heldout(self, work: Path, name: str) -> dict[str, Any]:
        clipped, hashes = self.fast.clipped, _trained_images(work / "out")
        kept, seen = unseen_frames(self.heldout, self.config.camera, hashes)
        return write_shard(
            work,
            name,
            heldout_conversations(self.held, kept),
            lambda: {
                "clipped": self.fast.clipped - clipped,
                "heldout": len(kept),
                "heldout_seen": seen,
            },
        )

    def describe(self, building: Building, written: ShardRows) -> dict[str, Any]:
        """Return the manifest."""
        counts = {split: Tally() for split in SPLITS}
        not_asked: Counter[str] = Counter()
        for name, row in written.items():
            counts[re.split(r"[-.]", name)[0]].add(row["counts"])
            not_asked.update(row.get("not_asked", {}))
        held, rl = written["heldout.parquet"], counts["rl"].conversations
        drawn = len({(episode.episode_id, t) for episode, t in self.frames})
        return manifest_of(
            kind="demonstrations",
            prompts=self.prompts,
            settings=self.settings,
            sources={
                "demonstrations": {
                    "asked": len(self.frames),
                    "found": sum(map(len, self.episodes)),
                    "kept": drawn,
                    "repeats": len(self.frames) - drawn,
                    "heldout": held["heldout"],
                    "heldout_seen": held["heldout_seen"],
                    "not_drawn": sum(map(len, self.train)) - drawn,
                    "not_asked": dict(sorted(not_asked.items())),
                }
            },
            images={"different": len(_trained_images(building.work / "out"))},
            tokenizer={
                "horizon": self.fast.horizon,
                "action_dim": self.fast.action_dim,
                "scale": self.fast.scale,
                "vocab_size": self.fast.vocab_size,
                "clipped_coefficients": sum(row["clipped"] for row in written.values()),
                "statistics": self.stats.to_dict(),
            },
            rl={"samples": rl, "share": rl / max(counts["train"].turns, 1)} if rl else None,
            counts={split: tally.summary() for split, tally in counts.items()},
            splits=self.splits,
            shards={name: row["sha256"] for name, row in sorted(written.items())},
        )


def _check_ids(episodes: Sequence[Episode]) -> None:
    """Raise RoboAlignError if there is no episode, or two share an id."""
    ids = [episode.episode_id for episode in episodes]
    if not ids or len(set(ids)) != len(ids):
        problem = (
            f"two episodes are called {Counter(ids).most_common(1)[0][0]!r}"
            if ids
            else "there is no episode"
        )
        raise RoboAlignError(problem, where="episodes", fix="collect the data set again")


def _trained_images(folder: Path) -> set[str]:
    """Return the sha256 of every image in the training shards."""
    tables = (read_table(path, ["image_sha256"]) for path in shards(folder, "train"))
    return {
        digest for table in tables for row in table["image_sha256"].to_pylist() for digest in row
    }


def split_episodes(
    episodes: Sequence[Episode], config: MixConfig
) -> tuple[list[Episode], list[Episode]]:
    """Return (training, held-out) episodes.

    The held-out share is taken per task and rounded; at least one episode remains for training.
    """
    by_task: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_task.setdefault(episode.task, []).append(episode)
    held: set[str] = set()
    for task, members in sorted(by_task.items()):
        ids = sorted(episode.episode_id for episode in members)
        count = min(int(config.heldout_episode_share * len(ids) + 0.5), len(ids) - 1)
        held |= set(random.Random(f"{config.seed}-split-{task}").sample(ids, count))
    return [e for e in episodes if e.episode_id not in held], [
        e for e in episodes if e.episode_id in held
    ]


def sample_frames(episodes: Sequence[Episode], config: MixConfig) -> list[tuple[Episode, int]]:
    """Return one frame per conversation: a random episode, then a random frame of it.

    No frame repeats before its episode is used up.
    """
    rng = random.Random(f"{config.seed}-frames")
    waiting: dict[str, list[int]] = {}
    frames = []
    for _ in range(config.conversations):
        episode = rng.choice(episodes)
        left = waiting.setdefault(episode.episode_id, [])
        if not left:
            left.extend(range(len(episode)))
            rng.shuffle(left)
        frames.append((episode, left.pop()))
    return frames
