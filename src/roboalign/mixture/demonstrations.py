"""Build the training mixture: conversations of action, question and reasoning turns.

The turns are in random order. This packing makes the model reason before actions without ever being
shown that (paper, section 3.1). An action turn has no reasoning trace, but shares a conversation
with questions about the same image, asked in both modes.
"""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.conversations.conversation import image_hash, write_conversations
from roboalign.conversations.styles.base import DEFAULT_STYLE, StyleName
from roboalign.conversations.styles.registry import style_of
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, hash_file, write_json
from roboalign.core.progress import Progress
from roboalign.episodes.episode import Episode
from roboalign.mixture.manifest import Tally, manifest_of
from roboalign.mixture.packed import (
    MixConfig,
    PackedSource,
    heldout_conversations,
    rl_conversations,
    training_conversations,
    unseen_frames,
)
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
) -> dict[str, Any]:
    """Write train-*.parquet, rl.parquet, heldout.parquet and manifest.json; return the manifest.

    They go to `out_dir`, which appears complete or not at all. `prompts` is the style of its
    questions and replies. `split` is the (training, held-out) episodes of recorded demonstrations,
    about which a simulator's state tells nothing: they are action samples only. Default:
    `split_episodes`, and questions too. Raises RoboAlignError if two
    episodes share an id, if an episode lacks what the questions need, or if the RL subset would be
    empty although `rl_share` is not 0.
    """
    ids = [episode.episode_id for episode in episodes]
    if not ids or len(set(ids)) != len(ids):
        problem = (
            f"two episodes are called {Counter(ids).most_common(1)[0][0]!r}"
            if ids
            else "there is no episode"
        )
        raise RoboAlignError(problem, where="episodes", fix="collect the data set again")
    train, heldout = split_episodes(episodes, config) if split is None else map(list, split)
    world, asks = survey_world(episodes), split is None
    style = style_of(prompts)
    source, held = (
        PackedSource(part, world, fast, stats, config, style, asks) for part in (train, heldout)
    )
    frames = sample_frames(train, config)
    draw = random.Random(f"{config.seed}-action")
    with_action = [draw.random() < config.action_share or not asks for _ in frames]
    counts: dict[str, dict[str, Any]] = {}
    hashes: set[str] = set()
    with atomic_path(out_dir) as folder:
        folder.mkdir()
        tally = Tally()
        with Progress("mixture", total=len(frames)) as progress:
            stream = training_conversations(source, frames, with_action)
            for number, first in enumerate(range(0, len(frames), config.shard_size)):
                shard = tally.count(islice(stream, config.shard_size))
                write_conversations(folder / f"train-{number:05d}.parquet", shard)
                hashes |= {image_hash(image) for one in shard for image in one.images}
                progress.advance(min(config.shard_size, len(frames) - first))
        counts["train"] = tally.summary()
        rl, rl_tally = rl_conversations(source, frames, with_action, tally.turns), Tally()
        write_conversations(folder / "rl.parquet", rl_tally.count(rl))
        kept, duplicates = unseen_frames(heldout, config.camera, hashes)
        held_tally = Tally()
        write_conversations(
            folder / "heldout.parquet", held_tally.count(heldout_conversations(held, kept))
        )
        counts |= {"rl": rl_tally.summary(), "heldout": held_tally.summary()}
        drawn = len({(episode.episode_id, t) for episode, t in frames})
        manifest = manifest_of(
            kind="demonstrations",
            prompts=prompts,
            settings=config.model_dump(mode="json"),
            sources={
                "demonstrations": {
                    "asked": len(frames),
                    "found": sum(map(len, episodes)),
                    "kept": drawn,
                    "repeats": len(frames) - drawn,
                    "heldout": len(kept),
                    "heldout_seen": duplicates,
                    "not_drawn": sum(map(len, train)) - drawn,
                    "not_asked": dict(sorted(source.packer.reasons.items())),
                }
            },
            images={"different": len(hashes)},
            tokenizer={
                "horizon": fast.horizon,
                "action_dim": fast.action_dim,
                "scale": fast.scale,
                "vocab_size": fast.vocab_size,
                "clipped_coefficients": fast.clipped,
                "statistics": stats.to_dict(),
            },
            rl={"samples": len(rl), "share": len(rl) / max(tally.turns, 1)} if rl else None,
            counts=counts,
            splits={
                "train": [e.episode_id for e in train],
                "heldout": [e.episode_id for e in heldout],
            },
            shards={path.name: hash_file(path) for path in sorted(folder.glob("*.parquet"))},
        )
        write_json(folder / "manifest.json", manifest)
    return manifest


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
