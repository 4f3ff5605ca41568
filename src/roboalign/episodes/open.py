"""Open a robot data set whatever its format, told by its files or by name."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats.calvin import read_calvin
from roboalign.episodes.formats.lerobot import iterate_lerobot, lerobot_names
from roboalign.episodes.formats.rlds import read_rlds
from roboalign.episodes.formats.robomimic import begins_as_hdf5, is_hdf5, read_robomimic
from roboalign.episodes.robot_data import Fault, RobotData

READERS: dict[str, Callable[..., Iterator[Episode | Fault]]] = {
    "lerobot": iterate_lerobot,
    "rlds": read_rlds,
    "robomimic": read_robomimic,
    "calvin": read_calvin,
}
NAMES = {"lerobot": lerobot_names}
"""Formats that name dimensions: what gives those of the actions and of the state."""
EXPECTED = (
    "a LeRobot data set has meta/info.json, an RLDS one features.json, a CALVIN split "
    "lang_annotations/auto_lang_ann.npy; robomimic's and LIBERO's are HDF5 files"
)


def open_robot_data(
    path: str | Path,
    format: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    space: ActionSpace | None = None,
    strict: bool = False,
) -> RobotData:
    """The data set at `path` as a stream of episodes.

    `format` is one of READERS, told by the files where it is None. `options` are the reader's own keyword arguments
    (`fps`, `state`, `flip`, ...). `space` says what the actions mean, and is kept with every episode.
    Raises RoboAlignError where the format cannot be told, an option is not the reader's, or the data set cannot be
    opened; `strict` is RobotData's.
    """
    path = Path(path)
    if not path.exists():
        raise RoboAlignError(
            "no such file or folder", where=str(path), fix="give the folder of a robot data set"
        )
    format = format or format_of(path)
    if format not in READERS:
        raise RoboAlignError(
            f"unknown format {format!r}", where="format", fix=f"give one of {', '.join(READERS)}"
        )
    given, known = dict(options or {}), options_of(format)
    unknown = sorted(set(given) - set(known))
    if unknown:
        listed = ", ".join(known) or "no options"
        raise RoboAlignError(
            f"the {format} reader has no option {unknown[0]}",
            where=str(path),
            fix=f"it takes {listed}",
        )
    READERS[format](
        path, **given
    )  # what is wrong with the whole data set is said now, not at the first episode

    def read() -> Iterator[Episode | Fault]:
        for item in READERS[format](path, **given):
            yield item if space is None or isinstance(item, Fault) else with_space(item, space)

    action_names, state_names = NAMES[format](path) if format in NAMES else ((), ())
    return RobotData(
        path.resolve().name,
        format,
        read,
        strict=strict,
        action_names=action_names,
        state_names=state_names,
    )


def format_of(path: Path) -> str:
    """The format that the files tell. Raises RoboAlignError where they tell none."""
    if (path / "meta" / "info.json").is_file():
        return "lerobot"
    if (path / "features.json").is_file():
        return "rlds"
    if (path / "lang_annotations").is_dir() or (path / "ep_start_end_ids.npy").is_file():
        return "calvin"
    if is_hdf5(path) or begins_as_hdf5(path) or any(map(is_hdf5, path.rglob("*"))):
        return "robomimic"
    raise RoboAlignError(
        f"no known data set here: {EXPECTED}",
        where=str(path),
        fix="give the data set's own folder, or name the format",
    )


def options_of(format: str) -> list[str]:
    """The options of a format's reader."""
    return [
        name
        for name, p in inspect.signature(READERS[format]).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    ]


def with_space(episode: Episode, space: ActionSpace) -> Episode | Fault:
    """The episode with the meaning of its actions; a Fault where it has another number of dimensions, or where the
    data set itself records another meaning."""
    recorded, named = (dict(s) if s else {} for s in (episode.action_space, space))
    if differing := [
        f"{key} is {value}, not {named[key]}"
        for key, value in recorded.items()
        if value != named[key]
    ]:
        return Fault(
            f"episode {episode.episode_id}",
            f"by the data set's own record {'; '.join(differing)}",
            "name no action space, or the one recorded",
        )
    if episode.actions.shape[-1] != space.dim:
        return Fault(
            f"episode {episode.episode_id}",
            f"actions of {episode.actions.shape[-1]} dimensions, the action "
            f"space ({space}) has {space.dim}",
            "name the action space that this data set has",
        )
    return replace(episode, action_space=space)
