"""Open a robot data set of any format, identified by its files or by name."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.core.hub import hub_id, resolve
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats.calvin import read_calvin
from roboalign.episodes.formats.lerobot import about_lerobot, iterate_lerobot
from roboalign.episodes.formats.rlds import about_rlds, read_rlds
from roboalign.episodes.formats.robomimic import (
    about_robomimic,
    begins_as_hdf5,
    is_hdf5,
    read_robomimic,
)
from roboalign.episodes.robot_data import About, RobotData

READERS: dict[str, Callable[..., Iterator[Episode | Fault]]] = {
    "lerobot": iterate_lerobot,
    "rlds": read_rlds,
    "robomimic": read_robomimic,
    "calvin": read_calvin,
}
ABOUT: dict[str, Callable[..., About]] = {
    "lerobot": about_lerobot,
    "rlds": about_rlds,
    "robomimic": about_robomimic,
}
"""Formats that describe themselves before their episodes are read."""
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a name",
    Sequence: "a list of names",
}
EXAMPLES = {bool: "true", int: "5", float: "5", Sequence: "[NAME]"}
"""An example of the value that an option of each type takes."""
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
    """Return the data set at `path`, or of the Hub id `path`, as a stream of episodes.

    `format` is one of READERS; None detects it from the files. `options` are the reader's own
    keyword arguments (`fps`, `state`, `flip`, ...). `space` says what the actions mean, and is
    stored in every episode. `strict` is that of RobotData. Raises RoboAlignError if the format
    cannot be detected, an option does not belong to the reader, or the data set cannot be opened.
    """
    identity = hub_id(path)
    path = resolve(path, "data set")
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
    for key, value in given.items():
        check_option(format, key, value)
    READERS[format](
        path, **given
    )  # reports errors of the whole data set now, not at the first episode

    name = identity.repository.split("/")[1] if identity else path.resolve().name

    def read() -> Iterator[Episode | Fault]:
        for item in READERS[format](path, **given):
            if identity is not None and isinstance(item, Episode):
                item = with_name(item, path, name)
            yield item if space is None or isinstance(item, Fault) else with_space(item, space)

    about = ABOUT[format](path, **given) if format in ABOUT else About()
    return RobotData(
        name,
        format,
        read,
        strict=strict,
        action_names=about.action_names,
        state_names=about.state_names,
        notes=about.notes,
        expected=about.episodes,
        path=path,
        options=given,
    )


def format_of(path: Path) -> str:
    """Detect the format from the files. Raises RoboAlignError if it is unclear."""
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
    """Return the options of a format's reader."""
    return [
        name
        for name, p in inspect.signature(READERS[format]).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    ]


def check_option(format: str, key: str, value: Any) -> None:
    """Raise RoboAlignError if an option of a format's reader has the wrong type.

    5 is not text, and only true and false are a flag.
    """
    kind = get_type_hints(READERS[format])[key]
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        raise RoboAlignError(
            f"the {format} reader takes {words_for(kind)}, not {value!r}",
            where=f"--read {key}",
            fix=f"pass --read {key}={EXAMPLES.get(first_of(kind), 'NAME')}",
        ) from None


def words_for(kind: Any) -> str:
    """Return what an option of this type takes: `true or false`, `a number`."""
    kinds = [one for one in get_args(kind) or (kind,) if one is not type(None)]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return " or ".join(
        f"one of {', '.join(map(str, get_args(one)))}"
        if get_origin(one) is Literal
        else _WORDS.get(get_origin(one) or one, str(one))
        for one in kinds
    )


def first_of(kind: Any) -> Any:
    """Return the type of an optional option."""
    first = next((one for one in get_args(kind) if one is not type(None)), kind)
    return get_origin(first) or first


def with_name(episode: Episode, folder: Path, name: str) -> Episode:
    """Return the episode with the data set's name in its id.

    It replaces the name of the cache folder, which is a commit.
    """
    prefix = f"{folder.name}/"
    if not episode.episode_id.startswith(prefix):
        return episode
    return replace(episode, episode_id=f"{name}/{episode.episode_id.removeprefix(prefix)}")


def with_space(episode: Episode, space: ActionSpace) -> Episode | Fault:
    """Return the episode with the meaning of its actions.

    A Fault if it has another number of dimensions, or if the data set itself records another
    meaning.
    """
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
