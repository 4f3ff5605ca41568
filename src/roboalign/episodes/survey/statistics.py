"""Survey a robot data set: its contents and what looks wrong, in one pass with bounded memory.

Exact: counts, lengths, minimum, maximum, mean, std, the worst episodes. From seeded samples:
quantiles, histograms and shares (`rows` rows), action tokens (CHUNKS chunks per half), cameras
(three frames per episode; each of the first EPISODES_LOOKED_AT episodes, then fewer and fewer).
Repeats are found by hash among the first DISTINCT contents; if there are more, among a share of
them, which is reported.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ARRAYS, ActionStats
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode
from roboalign.episodes.robot_data import RobotData
from roboalign.episodes.survey.meaning import Samples
from roboalign.episodes.survey.measures import (
    CameraSurvey,
    CameraTally,
    Column,
    Dimension,
    TokenSurvey,
    dimensions,
    measure_tokens,
)
from roboalign.episodes.survey.sampling import (
    Duplicates,
    Highest,
    Moments,
    Reservoir,
    SeenContents,
    Spread,
)

CHUNKS = 2_000
EPISODES_LOOKED_AT = 300  # one frame of a video may take a second
DISTINCT = 200_000
INSTRUCTIONS = 100_000
_FIRST = 20  # faults kept verbatim
WIDEST_WITH_HISTOGRAMS = 64  # state dimensions
REPAIR = "drop or repair this episode"


@dataclass(frozen=True)
class Survey:
    """The numbers of a data set; `dataclasses.asdict` prepares them for JSON."""

    name: str
    format: str
    episodes: int
    steps: int
    action_spaces: dict[str, int]
    """What the actions mean ("not stated" if the source does not say) -> episodes."""
    fps: dict[str, int]
    """Frames per second ("unknown" if not recorded) -> episodes."""
    length_min: int
    length_median: float
    length_max: int
    instructions: int
    """Number of distinct nonempty instructions, counted up to INSTRUCTIONS."""
    without_instruction: int
    frequent: list[tuple[str, int]]
    """The 10 most frequent instructions and their number of episodes."""
    cameras: list[CameraSurvey]
    rows: int
    """Size of the sample for quantiles, shares and histograms; `steps` if it is all of them."""
    action: list[Dimension]
    state: list[Dimension]
    same_actions: Duplicates
    """Episodes whose actions are equal byte for byte."""
    same_frames: Duplicates
    """Examined frames, neither black nor flat, that are equal in different episodes."""
    left_out: int
    """Episodes left out by the reader or because of their numbers."""
    faults: int
    """These, and the broken frames of episodes that are kept."""
    first_faults: list[Fault]
    """At most 20."""
    horizon: int
    """Steps of a chunk."""
    tokens: TokenSurvey | None
    tokens_problem: str
    """Why there are no tokens; empty if there are."""
    doubt: str = ""
    """Why the actions are not what is stated, or a double delta; empty if nothing speaks against
    it."""

    @property
    def action_stats(self) -> ActionStats:
        """Return statistics that normalize these actions; the quantiles are of the sample."""
        return self._stats(self.action)

    @property
    def sparse(self) -> list[str]:
        """Return a sentence per dimension whose quantiles coincide although its values differ."""
        return [
            f"{vector} {note}"
            for vector, found in (("Action", self.action), ("State", self.state))
            if found
            for note in self._stats(found).sparse_notes([d.name for d in found])
        ]

    def _stats(self, found: list[Dimension]) -> ActionStats:
        columns: dict[str, Any] = {
            name: np.array([getattr(d, name) for d in found]) for name in ARRAYS
        }
        return ActionStats(**columns, count=self.steps)


def survey_episodes(
    data: RobotData,
    *,
    camera: str | None = None,
    horizon: int = 16,
    fast: FastTokenizer | None = None,
    rows: int = 20_000,
    seed: int = 0,
) -> Survey:
    """Read `data` once and describe it.

    With `camera` only that one is examined; with `fast` its horizon replaces `horizon`. An episode
    that the reader left out, or whose numbers are missing, not finite or of another width than the
    first episode's, is counted and left out. A broken frame is counted, and its episode is kept.
    Raises RoboAlignError if `data.strict` and any of these occurs, if no episode can be read, if no
    episode has `camera`, or if `fast` is for another number of action dimensions.
    """
    if rows < 1 or horizon < 1:
        raise RoboAlignError(
            f"rows is {rows}, horizon {horizon}: both must be 1 or more", where="survey"
        )
    tally: _Tally | None = None
    own: list[Fault] = []
    odd = 0
    for episode in data:
        problem = _problem(episode, tally.widths if tally else None)
        if problem:
            odd += 1
            found = [Fault(f"episode {episode.episode_id}", problem, REPAIR)]
        else:
            tally = tally or _start(data, episode, camera, horizon, fast, rows, seed)
            found = tally.add(episode)
        if found and data.strict:
            raise RoboAlignError(found[0].problem, where=found[0].where, fix=found[0].fix)
        own = [*own, *found][:_FIRST]
    faults, left_out = [*data.faults[:_FIRST], *own][:_FIRST], len(data.faults) + odd
    if tally is None:
        first = (
            f"; the first of {left_out} faults is {faults[0].where}: {faults[0].problem}"
            if faults
            else ""
        )
        raise RoboAlignError(
            f"no episode could be read{first}",
            where=data.name,
            fix=(faults[0].fix if faults else "") or "check that this is the whole data set",
        )
    if camera is not None and camera not in tally.cameras:
        raise RoboAlignError(
            f"no camera {camera!r}; it has {sorted(tally.camera_names)}",
            where=data.name,
            fix="name one of these cameras",
        )
    return tally.survey(data, fast, faults, left_out)


def keep_episodes(
    data: RobotData, kept: list[Episode], *, count: int = 6, seed: int = 0
) -> RobotData:
    """Return the same data; reading it fills `kept` with up to `count` of its episodes, in order.

    They have as many different instructions as possible, and are drawn at random from those.
    """

    def read() -> Iterator[Episode | Fault]:
        chosen: Spread[Episode] = Spread(count, seed)
        kept.clear()
        for item in data.read():
            if isinstance(item, Episode) and not _problem(item, None):
                chosen.add(item.instruction.strip(), item)
                kept[:] = chosen.items
            yield item

    return data.through(read)


def _start(
    data: RobotData,
    first: Episode,
    camera: str | None,
    horizon: int,
    fast: FastTokenizer | None,
    rows: int,
    seed: int,
) -> "_Tally":
    width = first.actions.shape[1]
    if fast and fast.action_dim != width:
        raise RoboAlignError(
            f"the FAST tokenizer is for {fast.action_dim} action dimensions, the data has {width}",
            where="fast",
            fix="give a tokenizer for this data, or none",
        )
    found = (width, first.state.shape[1])
    return _Tally(
        found,
        _names(data, first.action_space, found),
        camera,
        fast.horizon if fast else horizon,
        rows,
        seed,
    )


def _problem(episode: Episode, widths: tuple[int, int] | None) -> str:
    """Return why the numbers of this episode cannot be used; empty if they can."""
    actions, state = np.asarray(episode.actions), np.asarray(episode.state)
    if actions.ndim != 2 or state.ndim != 2 or len(actions) != len(state) or 0 in actions.shape:
        return f"actions are {list(actions.shape)} and state {list(state.shape)}, expected [T, A] and [T, S] with T > 0"
    for name, values in (("action", actions), ("state", state)):
        if values.dtype.kind not in "fiub":
            return f"the {name} is {values.dtype}, not a number"
        with np.errstate(over="ignore"):
            broken = ~np.isfinite(values.astype(np.float32))
        if broken.any():
            step, column = np.argwhere(broken)[0]
            return f"the {name} is not finite at step {step}, dimension {column}"
    found = (actions.shape[1], state.shape[1])
    if widths and found != widths:
        return f"{found[0]} action and {found[1]} state dimensions, the first episode has {widths[0]} and {widths[1]}"
    return ""


def _names(data: RobotData, space: ActionSpace | None, widths: tuple[int, int]) -> list[str]:
    """Return dimension names; for actions, of the stated space, else the data set, else numbers."""
    given = (space.names if space else data.action_names, data.state_names)
    names = [
        own if len(own) == width else [f"{kind} {d}" for d in range(width)]
        for kind, own, width in zip(("action", "state"), given, widths, strict=True)
    ]
    return [*names[0], *names[1]]


class _Tally:
    """What is remembered of the episodes seen so far."""

    def __init__(
        self,
        widths: tuple[int, int],
        names: list[str],
        camera: str | None,
        horizon: int,
        rows: int,
        seed: int,
    ) -> None:
        """`widths`: dimensions of the action and of the state; `names`: of all of them."""
        self.widths, self.names = widths, names
        self.camera, self.horizon, self.seed = camera, horizon, seed
        self.lengths: Counter[int] = Counter()
        self.spaces: Counter[str] = Counter()
        self.fps: Counter[str] = Counter()
        self.instructions: Counter[str] = Counter()
        self.without_instruction = 0
        width = sum(self.widths)
        self.moments, self.highest, self.lowest = Moments(width), Highest(width), Highest(width)
        self.sample = Reservoir(rows, (width,), np.random.default_rng([seed, 0]))
        chunk = (horizon, self.widths[0])
        self.halves = [
            Reservoir(CHUNKS, chunk, np.random.default_rng([seed, 1, half])) for half in (0, 1)
        ]
        self.same_actions, self.same_frames = SeenContents(DISTINCT), SeenContents(DISTINCT)
        self.cameras: dict[str, CameraTally] = {}
        self.camera_names: set[str] = set()
        self.looks = np.random.default_rng([seed, 2])
        self.samples = Samples()

    def add(self, episode: Episode) -> list[Fault]:
        """Count one episode with valid numbers; return what is broken about its frames."""
        number = self.lengths.total()
        self.lengths[len(episode)] += 1
        self.spaces[str(episode.action_space or "not stated")] += 1
        self.fps[
            f"{episode.fps:g}" if np.isfinite(episode.fps) and episode.fps > 0 else "unknown"
        ] += 1
        text = episode.instruction.strip()
        self.without_instruction += not text
        if text and (text in self.instructions or len(self.instructions) < INSTRUCTIONS):
            self.instructions[text] += 1
        self._add_numbers(episode)
        self.samples.add(episode)
        return self._look(
            episode,
            number < EPISODES_LOOKED_AT or self.looks.random() < EPISODES_LOOKED_AT / number,
        )

    def _add_numbers(self, episode: Episode) -> None:
        values = np.concatenate([episode.actions, episode.state], axis=1).astype(np.float32)
        self.moments.add(values)
        self.highest.add(values.max(axis=0), episode.episode_id)
        self.lowest.add(-values.min(axis=0), episode.episode_id)
        kept, places = self.sample.places(len(values))
        self.sample.store[places] = values[kept]
        content = (
            repr((episode.actions.dtype, episode.actions.shape)).encode()
            + episode.actions.tobytes()
        )
        half = self.halves[self._half(self.same_actions.add(content, episode.episode_id))]
        for t, place in zip(*half.places(len(episode)), strict=True):
            half.store[place] = episode.chunk(int(t), self.horizon)

    def _half(self, order: int) -> int:
        """Return 0 or 1 for the `order`-th distinct episode; a copy goes to the same half.

        A coin decides which of each two consecutive ones is held out: the halves are even, whatever
        the order of tasks.
        """
        coin = hashlib.blake2b(f"{self.seed} {order // 2}".encode(), digest_size=1).digest()[0] % 2
        return (order + coin) % 2

    def _look(self, episode: Episode, decode: bool) -> list[Fault]:
        contents: set[bytes] = set()
        faults: list[Fault] = []
        self.camera_names |= set(episode.images)
        for name in episode.images:
            if self.camera not in (None, name):
                continue
            camera = self.cameras.setdefault(name, CameraTally())
            camera.episodes += 1
            if decode:
                hashes, broken = camera.look(episode, name)
                contents |= hashes
                faults += broken
        for content in sorted(contents):
            self.same_frames.add(content, episode.episode_id)
        return faults

    def survey(
        self, data: RobotData, fast: FastTokenizer | None, faults: list[Fault], left_out: int
    ) -> Survey:
        """Return the numbers after the last episode."""
        lengths = np.repeat(sorted(self.lengths), [self.lengths[n] for n in sorted(self.lengths)])
        columns, actions = self._columns(), self.widths[0]
        # A state's own names say which action dimension it belongs to, numbers in their place not.
        state_names = self.names[actions:] if data.state_names else ()
        doubt = self.samples.fault(self.names[:actions], state_names)
        tokens, tokens_problem = measure_tokens(self.halves[0].rows, self.halves[1].rows, fast)
        return Survey(
            name=data.name,
            format=data.format,
            episodes=len(lengths),
            steps=int(lengths.sum()),
            action_spaces=dict(self.spaces),
            fps=dict(self.fps),
            length_min=int(lengths[0]),
            length_median=float(np.median(lengths)),
            length_max=int(lengths[-1]),
            instructions=len(self.instructions),
            without_instruction=self.without_instruction,
            frequent=self.instructions.most_common(10),
            cameras=[camera.survey(name) for name, camera in sorted(self.cameras.items())],
            rows=len(self.sample.rows),
            action=dimensions(columns[:actions], histograms=True),
            state=dimensions(
                columns[actions:], histograms=self.widths[1] <= WIDEST_WITH_HISTOGRAMS
            ),
            same_actions=self.same_actions.duplicates(),
            same_frames=self.same_frames.duplicates(),
            left_out=left_out,
            faults=left_out + sum(camera.unreadable for camera in self.cameras.values()),
            first_faults=faults,
            horizon=self.horizon,
            tokens=tokens,
            tokens_problem=tokens_problem,
            doubt=doubt,
        )

    def _columns(self) -> list[Column]:
        sample, moments = self.sample.rows.astype(np.float64), self.moments
        return [
            Column(
                name,
                sample[:, d],
                float(moments.minimum[d]),
                float(moments.maximum[d]),
                float(moments.mean[d]),
                float(moments.std[d]),
                [
                    *self.highest.found[d],
                    *((-value, owner) for value, owner in self.lowest.found[d]),
                ],
            )
            for d, name in enumerate(self.names)
        ]
