"""The recipe's section on recorded demonstrations, and how a run reads and splits them.

Without data sets the demonstrations are those of a benchmark's experts (`collect`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from roboalign.actions.relative import Relative, resolve_relative
from roboalign.actions.spaces import ActionSpace, check_convertible, same_arm
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.hub import pinned
from roboalign.episodes.episode import Episode, content_id
from roboalign.episodes.own_data import (
    DataSetConfig,
    OwnEpisodes,
    data_key,
    held_out_recordings,
    read_own,
)

DemosPart = Literal["align", "downstream"]
"""What demonstrations are for: the alignment of the MLLM, or the head."""


class DemosConfig(Config):
    """Recorded demonstrations to learn from, in place of those of a benchmark's experts.

    Several data sets, of several robots, may be learned from together: their actions are converted
    to the space of the first one. A share of the episodes of each (`mix.heldout_episode_share`) is
    held out, the same for alignment and head.
    """

    sets: tuple[DataSetConfig, ...] = ()
    """The data sets. None: the demonstrations are those of `collect`."""
    align: tuple[str, ...] | Literal["experts"] | None = None
    """Names of the sets that align the MLLM, or `experts`: those of `collect.align_benchmark`.
    Default: all sets."""
    head: tuple[str, ...] | Literal["experts"] | None = None
    """Names of the sets on which the head is trained, or `experts`: those of `collect.benchmark`.
    Default: all sets."""
    head_cameras: tuple[str, ...] = ()
    """Cameras that the head sees, in order. Default: all cameras of its first set."""
    relative: dict[str, str | tuple[str, ...]] = Field({})
    """Action dimensions that the head learns relative to the state at the start of a chunk -> the
    state's names, such as `{joints: same}` or `{x: x, y: y, z: z, quaternion_xyzw: [qx, qy, qz,
    qw]}`. Absolute actions only; undone by the policy (docs/tutorials/your-robot.md)."""

    def of(self, part: DemosPart) -> tuple[DataSetConfig, ...]:
        """Return the data sets of a part; () if its demonstrations are the experts'."""
        chosen = self.align if part == "align" else self.head
        if chosen == "experts":
            return ()
        return tuple(one for one in self.sets if chosen is None or one.name in chosen)

    def shown_cameras(self) -> tuple[str, ...]:
        """Return the cameras that the head sees, where it learns from data sets."""
        return self.head_cameras or tuple(self.of("downstream")[0].cameras)

    @model_validator(mode="after")
    def _consistent(self) -> "DemosConfig":
        names = [one.name for one in self.sets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sets are called {twice[0]}")
        for field, chosen in (("align", self.align), ("head", self.head)):
            if isinstance(chosen, tuple) and (unknown := sorted({*chosen} - {*names})):
                raise ValueError(f"{field} names {unknown[0]}, which is none of the sets {names}")
            if chosen == ():
                raise ValueError(f"{field} is empty; name sets, or give `experts`")
        if self.relative and not self.of("downstream"):
            raise ValueError("relative is for the head's data sets, and it has none")
        self._require_one_space("align")
        self._require_one_space("downstream")
        self._require_cameras()
        return self

    def _require_one_space(self, part: DemosPart) -> None:
        sets = self.of(part)
        for one in sets[1:]:
            try:
                check_convertible(one.space, sets[0].space)
            except RoboAlignError as error:
                problem = error.problem
            else:
                if same_arm(one.space, sets[0].space):
                    continue
                problem = "it would need the poses before the actions, which are not named"
            raise ValueError(
                f"the actions of {one.name} cannot be converted to those of {sets[0].name}: "
                f"{problem}; align or train the head on one of them"
            )

    def _require_cameras(self) -> None:
        for one in self.of("downstream"):
            if missing := sorted({*self.shown_cameras()} - {*one.cameras}):
                raise ValueError(
                    f"set {one.name} has no camera {missing[0]}, which the head sees; map one of its "
                    "cameras to that name, or give head_cameras"
                )

    def pinned(self) -> "DemosConfig":
        """Return the settings with Hub ids pinned to their commits."""
        sets = tuple(
            one.model_copy(
                update={"robot": pinned(one.robot, "data set", where=f"demos.sets, {one.name}")}
            )
            for one in self.sets
        )
        return self.model_copy(update={"sets": sets})

    def identity(self, part: DemosPart) -> list[dict[str, Any]]:
        """Return what the results of a part depend on: its settings, and its files by content, not
        by place."""
        rows = []
        for one in self.of(part):
            row = one.model_dump(mode="json", exclude={"robot"})
            rows.append({**row, "content": data_key(one)})
        if self.relative and part == "downstream":
            rows.append({"relative": self.relative})
        return rows


class OwnDemonstrations:
    """The recorded demonstrations of one part: data sets in order, split by episode."""

    def __init__(self, config: DemosConfig, part: DemosPart, share: float, seed: int) -> None:
        """Read the sets. Raises RoboAlignError if one cannot be read, or they do not fit together:
        another rate, another number of state dimensions, one episode twice."""
        self.space: ActionSpace = config.of(part)[0].space
        self.sets: list[OwnEpisodes] = [read_own(one, self.space) for one in config.of(part)]
        self.held_out: set[str] = set()
        for one in self.sets:
            self.held_out |= held_out_recordings(one.episodes, share, seed)
        self._require_alike(part)
        self.relative = self._relative(config) if part == "downstream" else None

    def _relative(self, config: DemosConfig) -> Relative | None:
        """Return how the head's actions are counted from the state; None if they are not."""
        found: Relative | None = None
        for one in self.sets if config.relative else ():
            where = f"demos.relative (set {one.config.name})"
            width = one.episodes[0].state.shape[1]
            meant = resolve_relative(
                config.relative, self.space, self.action_names(), one.state_names, width, where
            )
            if found not in (None, meant):
                raise RoboAlignError(
                    "the sets have these numbers of the state in different places",
                    where=where,
                    fix="give both the same columns in the same order: read: {state: [NAME, ...]}",
                )
            found = meant
        return found

    def _require_alike(self, part: DemosPart) -> None:
        first = self.sets[0].episodes[0]
        seen: set[str] = set()
        for one in self.sets:
            where = f"demos.sets, {one.config.name}"
            for episode in one.episodes:
                if episode.episode_id in seen:
                    raise RoboAlignError(f"episode {episode.episode_id} occurs twice", where=where)
                seen.add(episode.episode_id)
                if episode.fps != first.fps:
                    raise RoboAlignError(
                        f"{episode.fps:g} actions a second, others have {first.fps:g}: a chunk would "
                        "last as long as two different times",
                        where=f"{where}, episode {episode.episode_id}",
                        fix="align or train the head on data of one rate",
                    )
                if part == "downstream" and episode.state.shape[1] != first.state.shape[1]:
                    raise RoboAlignError(
                        f"a state of {episode.state.shape[1]} numbers, others have "
                        f"{first.state.shape[1]}",
                        where=f"{where}, episode {episode.episode_id}",
                        fix="name the columns that both have: read: {state: [NAME, ...]}",
                    )

    @property
    def episodes(self) -> list[Episode]:
        return [episode for one in self.sets for episode in one.episodes]

    def split(self) -> tuple[list[Episode], list[Episode]]:
        """Return (training, held-out) episodes."""
        episodes = self.episodes
        return (
            [one for one in episodes if one.episode_id not in self.held_out],
            [one for one in episodes if one.episode_id in self.held_out],
        )

    def action_names(self) -> tuple[str, ...]:
        """Return the names of the action dimensions: the data's own for joints, else the space's."""
        own = self.sets[0].action_names
        return (
            own
            if self.space.control == "joint" and len(own) == self.space.dim
            else self.space.names
        )

    def record(self) -> dict[str, Any]:
        """Return what was read, for collect/PART.json and for the policy."""
        first = self.sets[0].episodes[0]
        return {
            "sets": [_set_record(one, self.held_out) for one in self.sets],
            "fps": float(first.fps),
            "action_space": self.space.model_dump(mode="json"),
            "action_names": list(self.action_names()),
            "state_names": list(self.sets[0].state_names),
            "state_dim": int(first.state.shape[1]),
            "cameras": {name: [c.height, c.width] for name, c in first.cameras.items()},
            "instructions": sorted({e.instruction for e in self.episodes})[:1000],
            "episodes": {e.episode_id: content_id(str(len(e)), e.actions) for e in self.episodes},
            "content": {k: v for one in self.sets for k, v in one.content.items()},
            "heldout": sorted(self.held_out),
        }


def _set_record(one: OwnEpisodes, held_out: set[str]) -> dict[str, Any]:
    return {
        "name": one.config.name,
        "episodes": len(one.episodes),
        "heldout": sum(episode.episode_id in held_out for episode in one.episodes),
        "frames": one.frames,
        "unwanted": one.unwanted,
        "idle_frames": one.idle_frames,
        "unreadable": len(one.faults),
    }


def check_unchanged(
    episodes: Sequence[Episode], record: dict[str, Any], path: Path, data: str
) -> None:
    """Raise RoboAlignError if the episodes are not those that the run began with."""
    now = {e.episode_id: content_id(str(len(e)), e.actions) for e in episodes}
    if now != record["episodes"]:
        changed = sorted(set(now.items()) ^ set(record["episodes"].items()))
        raise RoboAlignError(
            f"the data set has changed since this run began: episode {changed[0][0]}",
            where=data,
            fix=f"restore it, or remove {path.parent}: the same command reads it again",
        )
