"""Robot data as a source: every frame of an episode is an action sample."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path

import numpy as np

from roboalign.actions.axes import KNOWN_AXES
from roboalign.actions.known_spaces import known_space
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.styles.base import PromptStyle
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault, Refused
from roboalign.episodes.episode import Episode, content_id, recording_id
from roboalign.episodes.frame_file import stored_frame
from roboalign.episodes.open import open_robot_data
from roboalign.episodes.robot_data import RobotData
from roboalign.mixture.config import SourceConfig
from roboalign.mixture.keys import key_of
from roboalign.mixture.packing import FrameFacts, Packer, action_turn
from roboalign.mixture.parts import FRAME_BITS, Candidate, Dropped, Fate, Wanted, changed
from roboalign.mixture.sources.pack import frame_facts, has_scenes
from roboalign.mixture.tokens import RawChunks, Tokens
from roboalign.mllm.placement import IMAGE_MARK
from roboalign.questions.ask import survey_world
from roboalign.questions.types import World


def opened_robot(source: SourceConfig) -> RobotData:
    """Open the data set of a robot source. Raises RoboAlignError if that fails."""
    assert source.robot is not None
    space = known_space(source.space) if source.space else None
    return open_robot_data(source.robot, source.format, options=source.read, space=space)


def read_robot(source: SourceConfig) -> Iterator[tuple[int, Episode | Fault]]:
    """Yield the episodes of a robot source, numbered from 1."""
    assert source.robot is not None
    found = opened_robot(source).read()
    if source.named is not None:
        found = (renamed(one, Path(source.robot), Path(source.named)) for one in found)
    return enumerate(found, start=1)


def renamed(episode: Episode | Fault, there: Path, named: Path) -> Episode | Fault:
    """Return the episode with the folder names in its id replaced.

    Names of the folder `there` at the start of the id become those of `named`.
    """
    if isinstance(episode, Episode):
        for most in (2, 1):  # CALVIN's ids contain two names, those of other formats one or none
            own, other = ("/".join(path.absolute().parts[-most:]) for path in (there, named))
            if episode.episode_id.startswith(f"{own}/"):
                return replace(episode, episode_id=other + episode.episode_id.removeprefix(own))
    return episode


def _cameras_of(source: SourceConfig, episode: Episode) -> tuple[str, ...]:
    """Return the cameras whose frames are shown, in order.

    Raises RoboAlignError if there are several and none is named.
    """
    if source.camera is None and len(episode.images) != 1:
        raise RoboAlignError(
            f"its cameras are {', '.join(sorted(episode.images))}",
            where=f"source {source.name}",
            fix="name one of them as `camera`, or several as a list",
        )
    if source.camera is None:
        return (next(iter(episode.images)),)
    return (source.camera,) if isinstance(source.camera, str) else source.camera


def scan_robot(source: SourceConfig) -> Iterator[tuple[int, str] | Dropped]:
    for number, episode in read_robot(source):
        first = number << FRAME_BITS
        if isinstance(episode, Fault):
            yield Dropped(
                first, f"{source.name}/episode number {number}", Fate.FAULT, episode.problem
            )
        elif missing := [c for c in _cameras_of(source, episode) if c not in episode.images]:
            yield Dropped(
                first,
                f"{source.name}/{episode.episode_id}",
                Fate.REFUSED,
                f"the episode lacks the camera {missing[0]}",
            )
        elif not episode.instruction.strip() or IMAGE_MARK in episode.instruction:
            yield Dropped(
                first,
                f"{source.name}/{episode.episode_id}",
                Fate.REFUSED,
                f"its instruction spells {IMAGE_MARK}"
                if episode.instruction.strip()
                else "the episode has no instruction",
            )
        else:
            yield from (
                (first + t, f"{source.name}/{episode.episode_id}#{t}") for t in range(len(episode))
            )


def fetch_robot(
    source: SourceConfig,
    wanted: Iterable[Wanted],
    tokens: Tokens,
    seed: int,
    style: PromptStyle,
) -> Iterator[tuple[Wanted, Candidate | Dropped]]:
    for episode, those in wanted_episodes(source, wanted):
        frames = [frame_of(one) for one in those]
        cameras = _cameras_of(source, episode)
        drafts = drafts_of(tokens, episode, frames, source, seed, style)
        for one, t, draft in zip(those, frames, drafts):
            if isinstance(draft, Refused):
                name = name_of(source, episode, t)
                yield one, Dropped(one.place, name, Fate.REFUSED, draft.reason)
                continue
            try:
                images = tuple(stored_frame(episode, c, t, source.frames) for c in cameras)
            except RoboAlignError as error:
                yield one, Dropped(one.place, draft.conversation.id, Fate.FAULT, error.problem)
            else:
                yield (
                    one,
                    replace(draft, conversation=replace(draft.conversation, images=images)),
                )


def frame_of(wanted: Wanted) -> int:
    """Return the number of the frame in its episode."""
    return wanted.place & ((1 << FRAME_BITS) - 1)


def wanted_episodes(
    source: SourceConfig, wanted: Iterable[Wanted]
) -> Iterator[tuple[Episode, list[Wanted]]]:
    """Yield the episodes with wanted frames, and those frames in order.

    `wanted` is held in memory for one episode at a time.
    """
    episodes = read_robot(source)
    for wanted_number, those in groupby(wanted, lambda one: one.place >> FRAME_BITS):
        episode = next((episode for number, episode in episodes if number == wanted_number), None)
        if not isinstance(episode, Episode):
            raise changed(f"source {source.name}")
        yield episode, list(those)


def name_of(source: SourceConfig, episode: Episode, t: int) -> str:
    """Return the id of an action sample."""
    return f"{source.name}/{episode.episode_id}#{t}"


def drafts_of(
    tokens: Tokens,
    episode: Episode,
    frames: list[int],
    source: SourceConfig,
    seed: int,
    style: PromptStyle,
) -> Iterator[Candidate | Refused]:
    """Yield the action samples of these frames, without their images.

    They are asked in direct mode, in a wording determined by the sample's name, with the target and
    chunk that RL and the held-out set need. A packed source adds questions about the same frame, in
    random order. Refused if it is packed and its images show nothing.
    """
    chunks, ids = tokens.of(episode, frames)
    digest, ask = content_id("", episode.actions), _asking(source, episode, tokens.fast.horizon)
    for t, chunk, target in zip(frames, chunks, ids):
        name, facts = name_of(source, episode, t), ask(t)
        if isinstance(facts, Refused):
            yield facts
            continue
        act = partial(_direct, episode.instruction, target, style)
        turns, unasked = [], Counter[str]()
        if source.pack and facts:
            packer = Packer(source.pack.weights, source.pack.think_share, style)
            span = (source.pack.min_turns, source.pack.max_turns)
            turns = packer.pack(facts, act, span, random.Random(key_of(seed, "pack", name)))
            unasked = packer.reasons
        else:
            turns = [act(random.Random(key_of(seed, "wording", name)))]
        yield (
            Candidate(
                Conversation(
                    name,
                    episode.episode_id,
                    t,
                    episode.task,
                    (),
                    tuple(turns),
                    tuple(target),
                    tuple(map(tuple, chunk.tolist())),
                    style.action_question(episode.instruction, "direct"),
                ),
                group=recording_id(episode.episode_id),
                actions=digest,
                unasked=unasked,
            )
        )


def _direct(instruction: str, ids: list[int], style: PromptStyle, rng: random.Random) -> Turn:
    return action_turn(instruction, ids, "direct", style, rng)


def _asking(
    source: SourceConfig, episode: Episode, horizon: int
) -> Callable[[int], FrameFacts | Refused | None]:
    """Return a function from a frame to what a packed source asks about it; else to None."""
    if source.pack is None:
        return lambda t: None
    pack, cameras = source.pack, _cameras_of(source, episode)
    if pack.axes is None and source.space:
        pack = pack.model_copy(update={"axes": KNOWN_AXES.get(source.space)})
    world = World({}, {})
    if has_scenes(episode, cameras):
        world = _world_of(source.model_dump_json())
    return frame_facts(episode, cameras, pack, horizon, world)


@lru_cache(maxsize=4)
def _world_of(source: str) -> World:
    """Return what the questions of a whole source may name; reads its episodes once more."""
    read = read_robot(SourceConfig.model_validate_json(source))
    return survey_world(episode for _, episode in read if isinstance(episode, Episode))


def chunks_at(
    source: SourceConfig, wanted: Iterable[Wanted], horizon: int, held_out: Callable[[str], bool]
) -> RawChunks:
    """Return the wanted chunks in the order of their places, without those of held-out episodes.

    Raises RoboAlignError if episodes differ in the number of dimensions, their rate or the meaning
    of their actions, and if nothing is left.
    """
    chunks: list[np.ndarray] = []
    meanings: set[tuple[float, str]] = set()
    space = None
    for episode, those in wanted_episodes(source, wanted):
        if held_out(episode.episode_id):
            continue
        chunks += [episode.chunk(frame_of(one), horizon) for one in those]
        space = episode.action_space
        meanings.add((episode.fps, str(space)))
        if len(meanings) > 1:
            raise RoboAlignError(
                f"its actions are of several kinds: {' and '.join(described(*m) for m in sorted(meanings))}",
                where=f"source {source.name}, episode {episode.episode_id}",
                fix="split the data set, and name each part as a source",
            )
        if chunks[-1].shape != chunks[0].shape:
            problem = (
                f"actions of {chunks[-1].shape[1]} dimensions, others have {chunks[0].shape[1]}"
            )
            raise RoboAlignError(
                problem,
                where=f"source {source.name}, episode {episode.episode_id}",
                fix="split the data set",
            )
    if not chunks:
        raise RoboAlignError(
            "none of the drawn samples is left to fit the tokenizer on",
            where=f"source {source.name}",
            fix="draw more samples, or lower heldout.share",
        )
    return RawChunks(
        source.name,
        np.stack(chunks),
        space.model_dump(mode="json") if space else None,
        opened_robot(source).action_names,
        next(iter(meanings))[0],
    )


def described(fps: float, space: str) -> str:
    """Return a rate and a meaning, for a message."""
    return (
        f"{fps:g} steps a second in the space {space}"
        if space != "None"
        else f"{fps:g} steps a second"
    )
