"""Pack conversations: turn frames into turns about one image, in random order."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from pydantic import Field, model_validator

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.conversations.conversation import Conversation, Turn, image_hash
from roboalign.conversations.prompts import MODES, Mode
from roboalign.conversations.styles.base import PromptStyle
from roboalign.core.config import Config, Seed, Weight
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Refused
from roboalign.episodes.episode import Episode
from roboalign.mixture.packing import FrameFacts, Packer, action_turn, question_turn
from roboalign.questions.ask import ask
from roboalign.questions.facts.scene import EpisodeScenes
from roboalign.questions.registry import asked_types, types_from
from roboalign.questions.types import World


class MixConfig(Config):
    """The contents of the mixture."""

    conversations: int = Field(20_000, ge=1)
    """Number of training conversations."""
    min_turns: int = Field(4, ge=1, le=1000)
    """Minimum turns of a conversation."""
    max_turns: int = Field(8, ge=1, le=1000)
    """Maximum turns of a conversation."""
    action_share: float = Field(0.8, ge=0, le=1)
    """Share of the conversations with one action turn."""
    think_share: float = Field(0.45, ge=0, le=1)
    """Share of the question turns asked in think mode."""
    weights: dict[str, Weight] = Field(
        {"general": 1.0, "spatial": 3.0, "state": 1.0, "planning": 3.0}
    )
    """Relative weights of the question groups; the types of a group are equally likely. `trace`,
    the gripper's path in the image, is asked and measured only if it is listed."""
    rl_share: float = Field(0.0056, ge=0, lt=0.01)
    """RL samples as a share of the SFT samples (turns); the paper uses 12.8K of 2.28M."""
    heldout_episode_share: float = Field(0.1, ge=0, lt=1)
    """Share of each task's episodes excluded from training and used for the held-out questions."""
    heldout_questions: int = Field(40, ge=0)
    """Held-out questions of each type; each is asked in both modes."""
    heldout_actions: int = Field(400, ge=0)
    """Held-out action samples; each is asked in both modes."""
    camera: str = "workspace"
    """The camera whose image the model sees."""
    grid: int = Field(32, ge=4, le=1000)
    """Cells per side of the image for point coordinates."""
    seed: Seed = 0
    """Fixes every random draw: the same episodes and settings give the same bytes."""
    shard_size: int = Field(5_000, ge=1)
    """Conversations per parquet file."""

    @model_validator(mode="after")
    def _consistent(self) -> "MixConfig":
        if self.min_turns > self.max_turns:
            raise ValueError(f"min_turns {self.min_turns} is above max_turns {self.max_turns}")
        groups = {kind.group for kind in types_from("scene").values()}
        if set(self.weights) - groups or not sum(self.weights.values()):
            raise ValueError(
                f"weights must be non-negative, not all 0, and name some of {sorted(groups)}"
            )
        return self


@dataclass
class PackedSource:
    """The source of samples: the episodes of one split and what turns a frame into samples."""

    episodes: list[Episode]
    world: World
    fast: FastTokenizer
    stats: ActionStats
    config: MixConfig
    style: PromptStyle
    asks: bool = True
    """Whether questions are asked, from the simulator's state that the episodes then need."""
    scenes: dict[str, EpisodeScenes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.packer = Packer(self.config.weights, self.config.think_share, self.style)
        if not self.asks:
            return
        settings = (self.config.camera, self.config.grid, self.fast.horizon)
        self.scenes = {
            episode.episode_id: EpisodeScenes(episode, *settings) for episode in self.episodes
        }

    def facts(self, episode: Episode, t: int) -> FrameFacts | None:
        """Return what is asked about a frame; None if no questions are asked."""
        if not self.asks:
            return None
        return FrameFacts("scene", (self.scenes[episode.episode_id].at(t), self.world))

    def targets(self, frames: Sequence[tuple[Episode, int]]) -> tuple[np.ndarray, list[list[int]]]:
        """Return normalized clean chunks [N, H, A] of these frames and their FAST ids."""
        horizon = self.fast.horizon
        chunks = self.stats.normalize(
            np.stack([episode.chunk(t, horizon) for episode, t in frames])
        )
        return chunks, self.fast.encode(chunks)


def training_conversations(
    source: PackedSource,
    frames: Sequence[tuple[Episode, int]],
    with_action: Sequence[bool],
    numbers: range,
) -> Iterator[Conversation]:
    """Yield the training conversations of these numbers, in order; their actions are encoded at once."""
    config = source.config
    acting = [i for i in numbers if with_action[i]]
    ids = dict(zip(acting, source.targets([frames[i] for i in acting])[1])) if acting else {}
    for i in numbers:
        episode, t = frames[i]
        rng = random.Random(f"{config.seed}-train-{i}")
        action = None
        if i in ids:
            action = partial(_direct, source, episode.instruction, ids[i])
        span = (config.min_turns, config.max_turns)
        turns = source.packer.pack(source.facts(episode, t), action, span, rng)
        yield Conversation(
            f"train-{i:07d}",
            episode.episode_id,
            t,
            episode.task,
            (episode.png(config.camera, t),),
            tuple(turns),
        )


def _direct(source: PackedSource, instruction: str, ids: list[int], rng: random.Random) -> Turn:
    return action_turn(instruction, ids, "direct", source.style, rng)


def rl_conversations(
    source: PackedSource,
    frames: Sequence[tuple[Episode, int]],
    with_action: Sequence[bool],
    sft_turns: int,
) -> list[Conversation]:
    """Return the RL subset: action samples of the training set with target ids and chunk.

    They are asked in think mode.
    """
    acting = [i for i, acts in enumerate(with_action) if acts]
    count = min(int(source.config.rl_share * sft_turns), len(acting))
    if source.config.rl_share > 0 and not count:
        problem = f"rl_share {source.config.rl_share} of {sft_turns} turns ({len(acting)} of them actions) is no sample"
        raise RoboAlignError(
            problem, where="mixture", fix="raise conversations, or set rl_share to 0"
        )
    chosen = sorted(random.Random(f"{source.config.seed}-rl").sample(acting, count))
    return (
        list(action_samples(source, [frames[i] for i in chosen], ("think",), "rl"))
        if chosen
        else []
    )


def action_samples(
    source: PackedSource, frames: Sequence[tuple[Episode, int]], modes: Sequence[Mode], prefix: str
) -> Iterator[Conversation]:
    """Yield single-turn action conversations with target ids and chunk, one per mode and frame."""
    chunks, ids = source.targets(frames)
    for number, ((episode, t), chunk, target) in enumerate(zip(frames, chunks, ids)):
        for mode in modes:
            turn = action_turn(episode.instruction, target, mode, source.style)
            yield Conversation(
                f"{prefix}-{number:06d}-{mode}",
                episode.episode_id,
                t,
                episode.task,
                (episode.png(source.config.camera, t),),
                (turn,),
                tuple(target),
                tuple(map(tuple, chunk.tolist())),
                source.style.action_question(episode.instruction, "direct"),
            )


def unseen_frames(
    episodes: Sequence[Episode], camera: str, training_hashes: set[str]
) -> tuple[list[tuple[Episode, int]], int]:
    """Return the frames whose image is not a training image, and how many were dropped."""
    frames = [(episode, t) for episode in episodes for t in range(len(episode))]
    kept = [
        (episode, t)
        for episode, t in frames
        if image_hash(episode.png(camera, t)) not in training_hashes
    ]
    return kept, len(frames) - len(kept)


def heldout_conversations(
    source: PackedSource, frames: Sequence[tuple[Episode, int]]
) -> Iterator[Conversation]:
    """Yield single-turn questions of every type and action samples from held-out frames.

    Each is asked in both modes.
    """
    config = source.config
    if not frames:
        return
    for name in asked_types(config.weights) if source.asks else ():
        rng = random.Random(f"{config.seed}-heldout-{name}")
        found = 0
        for attempt in range(20 * config.heldout_questions):
            if found == config.heldout_questions:
                break
            episode, t = rng.choice(frames)
            scene = source.scenes[episode.episode_id].at(t)
            for mode in MODES:
                # Use the same seed, so that both modes ask the same question.
                question = ask(
                    name,
                    mode,
                    (scene, source.world),
                    random.Random(f"{config.seed}-{name}-{attempt}"),
                )
                if isinstance(question, Refused):
                    source.packer.undrawn[name] += 1
                    break
                yield Conversation(
                    f"heldout-{name}-{found:05d}-{mode}",
                    episode.episode_id,
                    t,
                    episode.task,
                    (episode.png(config.camera, t),),
                    (question_turn(question, mode, source.style),),
                )
            else:
                found += 1
    chosen = random.Random(f"{config.seed}-heldout-actions").sample(
        frames, min(config.heldout_actions, len(frames))
    )
    if chosen:
        yield from action_samples(source, chosen, tuple(MODES), "heldout-action")
