"""Read recorded demonstrations of the user's own robot: data sets of any format, as a recipe names
them.

Nothing about a data set is guessed: cameras are mapped by name, and what the actions mean is said.
"""

import difflib
import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from roboalign.actions.known_spaces import KNOWN, known_space
from roboalign.actions.spaces import ActionSpace
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file
from roboalign.core.hub import hub_id, resolve
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode, LazyFrames, content_id, recording_id
from roboalign.episodes.open import open_robot_data, with_name
from roboalign.episodes.rewrite import in_space
from roboalign.episodes.robot_data import RobotData
from roboalign.episodes.survey.meaning import Samples

SMALL_FILE = 1 << 20
"""Bytes of a file up to which its content counts toward `data_key`, not only its size."""


def _space(value: Any) -> Any:
    """Replace the name of a known action space by its settings."""
    if not isinstance(value, str):
        return value
    try:
        return known_space(value)
    except RoboAlignError as error:
        raise ValueError(f"{error.problem}; {error.fix}") from None


class DataSetConfig(Config):
    """One data set of recorded demonstrations. The fields that `roboalign data mix` has too mean
    the same there."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """Its name in this recipe; it begins the ids of its episodes."""
    robot: str = Field(min_length=1)
    """Its folder or file, or its Hub id."""
    format: str | None = None
    """lerobot, rlds, robomimic (any HDF5 file of demonstrations) or calvin. Default: the files show
    it."""
    read: dict[str, Any] = Field({})
    """Options of the format's reader, for example {state: [NAME], instruction: NAME, fps: 5}."""
    space: Annotated[
        ActionSpace,
        BeforeValidator(_space),
        WithJsonSchema({"type": "string", "enum": [*KNOWN, "..."]}),
    ]
    """What the actions mean: the name of a known space, or the fields of one written out
    (docs/reference/data-formats.md)."""
    cameras: dict[str, str] = Field(min_length=1)
    """Name of a camera in this recipe -> its name in the data set; others are not read."""
    instruction: str = ""
    """Instruction of the episodes that record none."""
    episodes: tuple[str, ...] = ()
    """Patterns of episode ids, such as `*/episode-00001*`: only these are read. One that begins
    with `!` leaves episodes out. Default: all."""
    idle: float = Field(0.0, ge=0, lt=1)
    """Leave out frames in which no action and no state moves by more than this share of its
    range. 0: keep all. DROID-like recordings need it: idle frames teach standing still."""

    @field_validator("cameras")
    @classmethod
    def _distinct(cls, cameras: dict[str, str]) -> dict[str, str]:
        if len(set(cameras.values())) < len(cameras):
            raise ValueError(f"two names are of one camera of the data set: {cameras}")
        return cameras


@dataclass
class OwnEpisodes:
    """The episodes of one data set that are used, and what was left out."""

    config: DataSetConfig
    episodes: list[Episode]
    action_names: tuple[str, ...] = ()
    """The data set's own names of the dimensions; () if it has none."""
    state_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    faults: list[Fault] = field(default_factory=list)
    content: dict[str, str] = field(default_factory=dict)
    """Episode id -> a digest of its actions as recorded: before any conversion or filter."""
    unwanted: int = 0
    """Episodes that the patterns leave out."""
    idle_frames: int = 0
    samples: Samples = field(default_factory=Samples)
    """Actions and states as recorded."""

    @property
    def frames(self) -> int:
        return sum(len(episode) for episode in self.episodes)

    def sentences(self) -> list[str]:
        """Return what a user must know about how the set was read, one sentence each."""
        said = [f"{self.config.name}: {len(self.episodes)} episodes, {self.frames:,} frames"]
        if self.unwanted:
            said[0] += f"; {self.unwanted} episodes left out by `episodes`"
        if self.idle_frames:
            said[0] += f"; {self.idle_frames:,} idle frames left out"
        if self.faults:
            first = self.faults[0]
            said.append(
                f"{self.config.name}: {len(self.faults)} episodes cannot be read and are left out; "
                f"the first: {first.where}: {first.problem}"
            )
        doubt = self.samples.fault(self.action_names, self.state_names)
        if doubt:
            said.append(f"{self.config.name}: {doubt}")
        return [*said, *(f"{self.config.name}: {note}" for note in self.notes)]


def opened_set(config: DataSetConfig) -> RobotData:
    """Open a data set. Raises RoboAlignError that names it if that fails."""
    return open_robot_data(config.robot, config.format, options=config.read, space=config.space)


def read_own(config: DataSetConfig, target: ActionSpace | None = None) -> OwnEpisodes:
    """Read the episodes of a data set: cameras renamed, actions in the space `target`.

    Frames stay where they are until one is requested; actions and states are in memory. Raises
    RoboAlignError if no episode is left, a pattern fits no episode, a camera is missing, or an
    episode has no instruction. Episodes that cannot be read are counted.
    """
    data, where = opened_set(config), f"demos.sets, {config.name}"
    found = OwnEpisodes(config, [], data.action_names, data.state_names, data.notes)
    fitting = dict.fromkeys(config.episodes, 0)
    for episode in data:
        named = _renamed(config, episode, where)
        if not _wanted(named.episode_id, config.episodes, fitting):
            found.unwanted += 1
            continue
        found.content[named.episode_id] = content_id("", episode.actions)
        found.samples.add(episode)
        found.episodes.append(_converted(named, target, where))
    found.faults = data.faults
    if unused := [pattern for pattern, count in fitting.items() if not count]:
        raise RoboAlignError(
            f"the pattern {unused[0]!r} fits no episode",
            where=where,
            fix=f"ids are like {found.episodes[0].episode_id}" if found.episodes else "correct it",
        )
    if not found.episodes:
        first = f"; {data.faults[0].where}: {data.faults[0].problem}" if data.faults else ""
        raise RoboAlignError(
            f"no episode is left{first}",
            where=where,
            fix=(data.faults[0].fix if data.faults else "") or "correct `episodes`",
        )
    _without_idle(found)
    return found


def _renamed(config: DataSetConfig, episode: Episode, where: str) -> Episode:
    """Return the episode under this recipe's names, without what only a simulator can know."""
    images, cameras = {}, {}
    for ours, theirs in config.cameras.items():
        if theirs not in episode.images:
            near = difflib.get_close_matches(theirs, episode.images, 1, 0.4)
            raise RoboAlignError(
                f"there is no camera {theirs!r}; the data set has {', '.join(sorted(episode.images))}",
                where=f"{where}, cameras.{ours}",
                fix=f"did you mean {near[0]}?" if near else "name one of them",
            )
        images[ours] = episode.images[theirs]
        cameras[ours] = replace(episode.cameras[theirs], name=ours)
    identity = hub_id(config.robot)
    folder = Path(identity.repository) if identity else Path(config.robot).expanduser().resolve()
    named = with_name(episode, folder, config.name)
    if named is episode:  # the id does not begin with the folder's name
        named = replace(episode, episode_id=f"{config.name}/{episode.episode_id}")
    instruction = episode.instruction.strip() or config.instruction.strip()
    if not instruction:
        raise RoboAlignError(
            f"episode {episode.episode_id} records no instruction",
            where=where,
            fix="give `instruction` for the data set, or its column as read: {instruction: NAME}",
        )
    task = instruction if episode.task == episode.instruction or not episode.task else episode.task
    return replace(
        named,
        task=task,
        instruction=instruction,
        images=images,
        cameras=cameras,
        privileged=None,
        privileged_names=(),
        nouns={},
    )


def _wanted(episode_id: str, patterns: tuple[str, ...], fitting: dict[str, int]) -> bool:
    """Return whether the patterns keep this episode; count those that fit it."""
    kept = not any(not pattern.startswith("!") for pattern in patterns)
    for pattern in patterns:
        if fnmatchcase(episode_id, pattern.removeprefix("!")):
            fitting[pattern] += 1
            kept = not pattern.startswith("!")
    return kept


def _converted(episode: Episode, target: ActionSpace | None, where: str) -> Episode:
    if target is None or episode.action_space == target:
        return episode
    try:
        actions = in_space(episode, target)
    except RoboAlignError as error:
        raise RoboAlignError(
            error.problem, where=f"{where}, {error.where}", fix=error.fix
        ) from None
    return replace(episode, actions=actions, action_space=target)


# Idle frames ----------------------------------------------------------------------------------------------------------


class ChosenFrames(LazyFrames):
    """Some frames of a camera, in order."""

    def __init__(self, frames: Sequence[bytes], steps: Sequence[int]) -> None:
        self.frames, self.steps, self.length = frames, steps, len(steps)

    def file(self, t: int) -> bytes:
        return self.frames[self.steps[t]]


class ChosenPixels(ChosenFrames):
    """The same of a video, which gives pixels without a detour over PNG."""

    def frame(self, t: int) -> np.ndarray:
        """Return uint8 [H, W, 3]."""
        pixels: np.ndarray = self.frames.frame(self.steps[self.step(t)])  # type: ignore[attr-defined]
        return pixels

    def digest(self, steps: Sequence[int]) -> bytes:
        """Return what identifies the frames of these steps."""
        own: bytes = self.frames.digest([self.steps[t] for t in steps])  # type: ignore[attr-defined]
        return own


def idle_steps(
    episode: Episode, spread: np.ndarray, state_spread: np.ndarray, share: float
) -> np.ndarray:
    """Return bool [T]: steps in which nothing moves by more than `share` of its spread.

    `spread` [A] and `state_spread` [S] are the ranges over the data set; dimensions of spread 0 do
    not count. An absolute action moves by its change, a delta or a velocity by its size; a gripper
    always by its change. The state must stand still too: a gripper that closes on one command is
    not idle.
    """
    space, actions = episode.action_space, episode.actions
    moved = np.abs(np.diff(actions, axis=0, prepend=actions[:1]))
    if space is not None and space.mode != "absolute":
        arm = slice(0, space.gripper_part.start)
        moved[:, arm] = np.abs(actions[:, arm])
    still = np.all(moved[:, spread > 0] <= share * spread[spread > 0], axis=1)
    turned = np.abs(np.diff(episode.state, axis=0, append=episode.state[-1:]))
    counts = state_spread > 0
    return still & np.all(turned[:, counts] <= share * state_spread[counts], axis=1)


def _spread(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return q99 - q01 of each dimension, 0 for those below a thousandth of the widest."""
    low, high = np.quantile(np.concatenate(parts), [0.01, 0.99], axis=0)
    spread = high - low
    return np.where(spread < spread.max(initial=0.0) / 1000, 0.0, spread)


def _without_idle(found: OwnEpisodes) -> None:
    """Drop idle frames in place; an episode in which nothing ever moves is dropped as a whole."""
    if not found.config.idle:
        return
    spread = _spread([episode.actions for episode in found.episodes])
    state_spread = _spread([episode.state for episode in found.episodes])
    kept = []
    for episode in found.episodes:
        idle = idle_steps(episode, spread, state_spread, found.config.idle)
        steps = np.flatnonzero(~idle)
        found.idle_frames += int(idle.sum())
        if not len(steps):
            found.faults.append(Fault(f"episode {episode.episode_id}", "nothing moves in it"))
        elif len(steps) < len(episode):
            kept.append(_steps_of(episode, steps))
        else:
            kept.append(episode)
    found.episodes = kept
    if not kept:
        raise RoboAlignError(
            "every frame is idle",
            where=f"demos.sets, {found.config.name}",
            fix="lower `idle`",
        )


def _steps_of(episode: Episode, steps: np.ndarray) -> Episode:
    chosen = steps.tolist()
    images: dict[str, Sequence[bytes]] = {}
    for name, frames in episode.images.items():
        kind = ChosenPixels if hasattr(frames, "frame") else ChosenFrames
        images[name] = kind(frames, chosen)
    return replace(
        episode,
        actions=episode.actions[steps],
        state=episode.state[steps],
        images=images,
        success_step=None,
    )


# Splits and identity --------------------------------------------------------------------------------------------------


def held_out_recordings(episodes: Sequence[Episode], share: float, seed: int) -> set[str]:
    """Return the ids of the episodes of one data set that are held out.

    Whole recordings are drawn, with all their parts and copies: at least one of them if there are
    two and `share` is above 0, and at least one stays for training.
    """
    groups: dict[str, list[str]] = {}
    content: dict[str, str] = {}
    for episode in episodes:
        recording = recording_id(episode.episode_id)
        same = content.setdefault(content_id("", episode.actions), recording)
        groups.setdefault(same, []).append(episode.episode_id)
    names = sorted(groups)
    count = min(max(1, math.floor(share * len(names) + 0.5)), len(names) - 1) if share else 0
    drawn = random.Random(f"{seed}-heldout").sample(names, count)
    return {episode_id for name in drawn for episode_id in groups[name]}


def data_key(config: DataSetConfig) -> str:
    """Return what identifies the files of a data set: a Hub id's commit, else a hash of their names
    and sizes, and of the contents of small ones.

    Large files count by size alone: hashing the videos would take as long as reading them.
    """
    folder = resolve(config.robot, "data set", where=f"demos.sets, {config.name}")
    if hub_id(config.robot):
        return folder.name
    digest = hashlib.sha256()
    for path in _files(folder):
        size = path.stat().st_size
        content = hash_file(path) if size <= SMALL_FILE else ""
        digest.update(repr((str(path.relative_to(folder)), size, content)).encode())
    return digest.hexdigest()[:32]


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path
