"""Find the action, state, instruction and camera columns of a LeRobot data set."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_source, read_json
from roboalign.episodes.formats import lerobot_layout as layout
from roboalign.episodes.formats.lerobot_layout import Features

MODALITY = "meta/modality.json"
"""GR00T's file: the columns that a robot of this data set uses, and names of their dimensions."""
ANNOTATION = "annotation."
DESCRIPTION = "task_description"
TASK_INDEX = "task_index"
NUMERIC = re.compile(r"(float|double|int|uint|bool)\d*$")
LIKE_ACTION = re.compile(r"(^|[._/])actions?($|[._/])")
LIKE_STATE = re.compile(r"(state|qpos|proprio|joint|pose|eef|ee_pos)")
NO_STATE = re.compile(r"(environment_state|reward|success|done|action)")


@dataclass(frozen=True)
class Columns:
    """The columns to read. Several of one kind are joined in their order."""

    action: tuple[str, ...]
    state: tuple[str, ...]
    instruction: str
    """Contains indices into the tasks, or the text itself."""
    cameras: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What a user must know about this choice, one sentence each."""


def find_columns(
    folder: Path,
    features: Features,
    *,
    action: str | Sequence[str] | None,
    state: str | Sequence[str] | None,
    instruction: str | None,
    links: bool = False,
) -> Columns:
    """Find the columns by the options, else by modality.json, else by LeRobot's own names. Raises
    RoboAlignError if none of these exists, but a feature may be meant."""
    modality = read_modality(folder, links)
    text, notes = _find_instruction(folder, features, modality, instruction)
    cameras, left_out = find_cameras(folder, features, modality)
    return Columns(
        find_vector(folder, features, modality, "action", action),
        find_vector(folder, features, modality, "state", state),
        text,
        cameras,
        (*notes, *left_out),
    )


def read_modality(folder: Path, links: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the parts of modality.json that have GR00T's form; {} if there is no such file."""
    path = folder / MODALITY
    if not path.exists():
        return {}
    check_source(path, folder, links=links)
    read = read_json(path)
    parts = read if isinstance(read, dict) else {}
    return {
        kind: {name: value or {} for name, value in part.items()}
        for kind, part in parts.items()
        if isinstance(part, dict) and all(isinstance(v, dict | None) for v in part.values())
    }


def find_vector(
    folder: Path,
    features: Features,
    modality: dict[str, dict[str, dict[str, Any]]],
    kind: str,
    named: str | Sequence[str] | None,
) -> tuple[str, ...]:
    """Return the columns of `kind` (action or state); () for a state that no feature can be."""
    info = str(folder / layout.INFO)
    own = layout.ACTION if kind == "action" else layout.STATE_FEATURE
    if named is not None:
        keys, where = (named,) if isinstance(named, str) else tuple(named), f"--read {kind}"
    else:
        slices = modality.get(kind, {}).values()
        keys = tuple(dict.fromkeys(str(value.get("original_key") or own) for value in slices))
        where = str(folder / MODALITY)
        if keys in ((), (own,)):
            keys, where = (own,) if own in features else (), info
    unknown = [key for key in keys if key not in features]
    if unknown:
        raise RoboAlignError(
            f"there is no feature {unknown[0]!r}; the numeric ones are {listed(features)}",
            where=where,
            fix=f"pass --read {kind}=NAME with one of these",
        )
    if not keys and named is None:
        refuse_unnamed(features, kind, info)
    if not keys and kind == "action":
        raise RoboAlignError("no column is named", where=where, fix="pass --read action=NAME")
    return keys


def refuse_unnamed(features: Features, kind: str, info: str) -> None:
    """Raise RoboAlignError if a feature may be the action or the state but is not named as such."""
    numeric = [key for key in features if is_vector(features[key])]
    if kind == "action":
        likely = [key for key in numeric if LIKE_ACTION.search(key)]
    else:
        likely = [
            key
            for key in numeric
            if not NO_STATE.search(key) and (LIKE_STATE.search(key) or "observation" in key)
        ]
    none = ", or --read state=[] to read no state" if kind == "state" else ""
    if len(likely) == 1:
        raise RoboAlignError(
            f'the {kind} column is called "{likely[0]}", and no column was named',
            where=info,
            fix=f"pass --read {kind}={likely[0]}{none}",
        )
    if likely or kind == "action":
        raise RoboAlignError(
            f"no column is called {layout.ACTION if kind == 'action' else layout.STATE_FEATURE}, and none "
            f"was named; the numeric features are {listed(features)}",
            where=info,
            fix=f"pass --read {kind}=NAME with one or a list of these{none}",
        )


def _find_instruction(
    folder: Path,
    features: Features,
    modality: dict[str, dict[str, dict[str, Any]]],
    named: str | None,
) -> tuple[str, tuple[str, ...]]:
    """Return the column of the instruction, and a note if another column may be meant."""
    found = {
        str(value.get("original_key") or f"{ANNOTATION}{name}"): name
        for name, value in modality.get("annotation", {}).items()
    }
    described = [key for key in features if key.startswith(ANNOTATION) and DESCRIPTION in key]
    choice = [key for key, name in found.items() if DESCRIPTION in name]
    if not choice and len(found) == 1:
        choice = list(found)
    where = str(folder / MODALITY)
    if named is not None:
        choice, where = [named], "--read instruction"
    elif not choice and TASK_INDEX in features:
        return TASK_INDEX, ()
    elif not choice:
        choice, where = (found and list(found)) or described, str(folder / layout.INFO)
    if len(choice) != 1:
        raise RoboAlignError(
            f"{'several columns' if choice else 'no column'} may hold the instruction"
            f"{': ' + ', '.join(choice) if choice else ', there is no ' + TASK_INDEX}",
            where=where,
            fix="pass --read instruction=NAME",
        )
    if choice[0] not in features:
        raise RoboAlignError(
            f"it names the column {choice[0]}, which meta/info.json does not describe",
            where=where,
            fix="correct the name, or pass --read instruction=NAME",
        )
    if named is None and choice[0] != TASK_INDEX and TASK_INDEX in features:
        return choice[0], (
            f"Instructions are those of {choice[0]}, which {MODALITY} names, not of {TASK_INDEX}.",
        )
    return choice[0], ()


def find_cameras(
    folder: Path, features: Features, modality: dict[str, dict[str, dict[str, Any]]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the camera columns, and notes about depth.

    They are those that modality.json names, or all if it names none. info.json may describe cameras
    that were never stored. Raises RoboAlignError if modality.json names one that info.json does not
    describe.
    """
    described = [key for key, feature in features.items() if is_camera(feature)]
    named = modality.get("video")
    used = [
        value.get("original_key") or layout.IMAGE_PREFIX + name
        for name, value in (named or {}).items()
    ]
    unknown = [key for key in used if key not in described]
    if unknown:
        raise RoboAlignError(
            f"it names the cameras {unknown}, meta/info.json describes {described}",
            where=str(folder / MODALITY),
            fix="correct original_key in meta/modality.json, or remove the file to read every camera",
        )
    used = used or described
    depth = [key for key in used if is_depth(key, features[key])]
    notes = tuple(f"Camera {camera_name(key)} is left out: it holds depth." for key in depth)
    return tuple(key for key in used if key not in depth), notes


def camera_name(key: str) -> str:
    """Return the camera of a column: `observation.images.front` -> `front`."""
    return key.removeprefix(layout.IMAGE_PREFIX)


def is_camera(feature: Any) -> bool:
    """Return whether a feature of info.json is a picture or a video."""
    return isinstance(feature, dict) and feature.get("dtype") in ("image", "video")


def is_depth(key: str, feature: dict[str, Any]) -> bool:
    """Return whether a camera is depth, by LeRobot's mark, or by one channel and its name."""
    for part in (feature, feature.get("info"), feature.get("video_info")):
        if isinstance(part, dict) and any(
            part.get(mark) is True for mark in ("video.is_depth_map", "is_depth_map")
        ):
            return True
    shape = feature.get("shape")
    single = isinstance(shape, list) and len(shape) == 3 and 1 in (shape[0], shape[-1])
    return single and "depth" in camera_name(key).lower()


def is_vector(feature: Any) -> bool:
    """Return whether a feature may be an action or a state: numbers, more than one per row."""
    return (
        isinstance(feature, dict)
        and bool(NUMERIC.match(str(feature.get("dtype"))))
        and isinstance(feature.get("shape"), list)
        and len(feature["shape"]) == 1
        and feature["shape"] != [1]
    )


def listed(features: Features) -> str:
    """Return the names of the numeric features."""
    return ", ".join(key for key in features if is_vector(features[key])) or "none"


def names_of(
    folder: Path, features: Features, columns: Columns, kind: str, links: bool = False
) -> tuple[str, ...]:
    """Return the data set's names of the dimensions of the action or the state.

    They come from the slices of modality.json if these cover its one column, else from info.json;
    () if neither names each dimension.
    """
    keys = columns.action if kind == "action" else columns.state
    width = sum(features[key]["shape"][0] for key in keys if is_vector(features[key]))
    if len(keys) == 1:
        names: list[str] = []
        for name, part in sorted(
            read_modality(folder, links).get(kind, {}).items(),
            key=lambda item: str(item[1].get("start")).zfill(9),
        ):
            start, end = part.get("start"), part.get("end")
            if start != len(names) or not isinstance(end, int) or not start < end <= width:
                break
            names += [name] if end == start + 1 else [f"{name}.{i}" for i in range(end - start)]
        if names and len(names) == width:
            return tuple(names)
    own = [layout.dimension_names(features[key]) for key in keys]
    return tuple(name for part in own for name in part) if all(own) else ()
