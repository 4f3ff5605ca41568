"""Read what one robomimic or LIBERO file says about all its demonstrations. That is their names,
task, rate, split and cameras."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.formats.arrays import FETCH_FILE_AGAIN
from roboalign.episodes.formats.hdf5_walk import leaving
from roboalign.episodes.pictures import PixelLayout, layout_of

if TYPE_CHECKING:
    import h5py

_FPS = 20.0  # robosuite's default control rate, used by LIBERO and robomimic's own data sets
LAYOUT = "this reads data/demo_N/actions and data/demo_N/obs"
FLIPS = ("none", "rows", "rotate")


@dataclass(frozen=True)
class TaskFile:
    """What one file says about all its demonstrations."""

    path: Path
    name: str
    demos: tuple[str, ...]
    """Those that are read."""
    observations: tuple[str, ...]
    """Those of the first demonstration."""
    task: str
    instruction: str
    fps: float
    flip: str
    """How stored frames are flipped: one of FLIPS."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What a user must know about how it is read."""
    external: bool = False
    """Whether to read data stored outside of the file."""


@contextmanager
def opened_hdf5(path: Path) -> Iterator["h5py.File"]:
    """Yield an open HDF5 file; errors of h5py inside become RoboAlignErrors naming the file."""
    import h5py  # a slow import that only this format needs

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, MemoryError) as error:
        raise RoboAlignError(
            f"not a readable HDF5 file ({error})", where=str(path), fix=FETCH_FILE_AGAIN
        ) from None


def check_inside(group: "h5py.Group", name: str, where: str, external: bool) -> None:
    """Raise RoboAlignError if `group[name]` is stored outside of the file, unless `external`."""
    if not external and (outside := leaving(group, name)):
        raise RoboAlignError(
            f"{group.name.rstrip('/')}/{name} is {outside}",
            where=where,
            fix="copy the data into the file (h5repack), or pass --read external=true if that is meant",
        )


def member(group: "h5py.Group", name: str, kind: str, where: str, *, external: bool = False) -> Any:
    """Return `group[name]`, which must be a `Group` or a `Dataset` (`kind`). Raises RoboAlignError
    if it is not, or if it is stored outside of the file, unless `external`."""
    check_inside(group, name, where, external)
    found = group.get(name)
    if type(found).__name__ != kind:
        there = ", ".join(sorted(map(str, group))) or "nothing"
        raise RoboAlignError(
            f"no {kind.lower()} {group.name.rstrip('/')}/{name}; there is {there}",
            where=where,
            fix=FETCH_FILE_AGAIN,
        )
    return found


def names_in(group: "h5py.Group", where: str) -> list[str]:
    """Return the names in a group; refuse one that is not UTF-8, which h5py gives as bytes."""
    names = list(group)
    if not all(isinstance(name, str) for name in names):
        raise RoboAlignError(
            f"a name in {group.name} is no text", where=where, fix=FETCH_FILE_AGAIN
        )
    return names


def read_task_file(
    path: Path,
    name: str,
    *,
    fps: float | None,
    filter: str | None,
    flip: str | None,
    external: bool,
) -> TaskFile:
    """Return names, task and control rate. Raises RoboAlignError if the file does not have
    robomimic's layout."""
    where = str(path)
    with opened_hdf5(path) as file:
        check_inside(file, "data", where, external)
        check_layout(file, where)
        data = member(file, "data", "Group", where, external=external)
        demos = sorted(names_in(data, where), key=by_number)
        if not demos:
            raise RoboAlignError(
                "no demonstration in the group data", where=where, fix=FETCH_FILE_AGAIN
            )
        first = member(data, demos[0], "Group", where, external=external)
        check_inside(first, "obs", where, external)
        check_observations(first, where)
        obs = member(first, "obs", "Group", where, external=external)
        observations = tuple(names_in(obs, where))
        problem = json_attribute(data, "problem_info", where)
        env = json_attribute(data, "env_args", where)
        bddl = text_attribute(data, "bddl_file_name")
        convention = text_attribute(data, "macros_image_convention")
        keys = filter_keys(file, where, external)
        left_out = cameras_of(obs, external)[1]
    if filter is not None:
        demos = filtered(demos, keys, filter, where)
    env_name = str(env.get("env_name") or "")
    libero = bool(bddl or "language_instruction" in problem) or env_name.startswith("Libero")
    instruction = problem.get("language_instruction", "")
    instruction = instruction if isinstance(instruction, str) else " ".join(map(str, instruction))
    how = flip or stored_flip(convention, libero)
    return TaskFile(
        path=path,
        name=name,
        demos=tuple(demos),
        observations=observations,
        task=Path(bddl).stem or env_name or Path(name).stem,
        instruction=instruction.strip().strip('"'),
        fps=float(fps) if fps is not None else control_rate(env, where),
        flip=how,
        notes=_notes_of(
            keys if filter is None else {}, None if flip else convention, how, left_out
        ),
        external=external,
    )


def check_layout(file: "h5py.File", where: str) -> None:
    """Raise RoboAlignError if this is a layout other than robomimic's."""
    if "data" not in file:
        there = ", ".join(sorted(map(str, file))) or "nothing"
        raise RoboAlignError(
            f"another layout than robomimic's: no group data; there is {there}",
            where=where,
            fix=f"{LAYOUT}; convert the data set to that, or to LeRobot v3.0",
        )


def check_observations(demo: "h5py.Group", where: str) -> None:
    """Raise RoboAlignError if a demonstration contains only the simulator's states."""
    if "obs" not in demo and "states" in demo:
        raise RoboAlignError(
            f"a recording of simulator states: {demo.name} has {', '.join(sorted(map(str, demo)))} "
            "and no observations (obs)",
            where=where,
            fix="extract the observations first, with robomimic's dataset_states_to_obs.py or LIBERO's "
            "create_dataset.py",
        )


def by_number(demo: str) -> tuple[str, int]:
    """Sort key that puts demo_10 after demo_9."""
    number = re.search(r"\d*$", demo)
    digits = number[0] if number else ""
    return demo.removesuffix(digits), int(digits or 0)


# The split ------------------------------------------------------------------------------------------------------------


def filter_keys(file: "h5py.File", where: str, external: bool) -> dict[str, tuple[str, ...]]:
    """Return robomimic's filter keys: name -> demonstrations, from the group mask."""
    check_inside(file, "mask", where, external)
    if "mask" not in file:
        return {}
    mask = member(file, "mask", "Group", where, external=external)
    keys = {}
    for name in sorted(names_in(mask, where)):
        values = np.asarray(member(mask, name, "Dataset", where, external=external)[()]).ravel()
        keys[name] = tuple(v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist())
    return keys


def filtered(
    demos: Sequence[str], keys: dict[str, tuple[str, ...]], filter: str, where: str
) -> list[str]:
    """Return the demonstrations of a filter key, in the order of `demos`."""
    if filter not in keys:
        there = ", ".join(keys) or "none"
        raise RoboAlignError(
            f"no filter key {filter!r} in mask; there is {there}",
            where=where,
            fix="name one of them with filter=, or leave filter out to read all demonstrations",
        )
    if missing := [demo for demo in keys[filter] if demo not in demos]:
        problem = f"mask/{filter} names {missing[0]}, which is not in data"
        raise RoboAlignError(problem, where=where, fix=FETCH_FILE_AGAIN)
    wanted = set(keys[filter])
    return [demo for demo in demos if demo in wanted]


# Cameras --------------------------------------------------------------------------------------------------------------


def cameras_of(obs: "h5py.Group", external: bool) -> tuple[dict[str, PixelLayout], dict[str, str]]:
    """Return (camera -> how its pictures are stored, rejected observation -> reason). A rejected
    observation looks like a picture but is not."""
    cameras, left_out = {}, {}
    for name in obs:
        if not isinstance(name, str) or (not external and leaving(obs, name)):
            continue
        stored = obs.get(name)
        shape = getattr(stored, "shape", ())
        if len(shape) != 4:
            continue
        layout = layout_of(name, shape[1:], stored.dtype)
        if isinstance(layout, PixelLayout):
            cameras[name] = layout
        elif layout:
            left_out[name] = layout
    return cameras, left_out


def stored_flip(convention: str, libero: bool) -> str:
    """Return how to flip frames according to the file: bottom-up rows (OpenGL) are reversed.

    LIBERO's are rotated by 180 degrees, as its evaluation shows them to a policy (OpenVLA, openpi):
    that also mirrors them.
    """
    if convention.strip().lower() != "opengl":
        return "none"
    return "rotate" if libero else "rows"


def flip_of(value: bool | str | None) -> str | None:
    """Return the option `flip`: true is rotate, false is none; RoboAlignError otherwise."""
    if value is None or value in FLIPS:
        return value  # type: ignore[return-value]
    if isinstance(value, bool):
        return "rotate" if value else "none"
    raise RoboAlignError(
        f"flip is {value!r}", where="flip", fix=f"give one of {', '.join(FLIPS)}, true or false"
    )


def turned(frame: np.ndarray, flip: str) -> np.ndarray:
    """Return uint8 [H, W, 3] with its rows reversed, or rotated by 180 degrees."""
    if flip == "rows":
        return np.ascontiguousarray(frame[::-1])
    return np.ascontiguousarray(frame[::-1, ::-1]) if flip == "rotate" else frame


def _notes_of(
    keys: dict[str, tuple[str, ...]], convention: str | None, flip: str, left_out: dict[str, str]
) -> tuple[str, ...]:
    """Return what a user must know about how a file is read, one sentence each."""
    notes = []
    if keys:
        held = ", ".join(f"{name} ({len(demos)})" for name, demos in keys.items())
        notes.append(
            f"All demonstrations are read; the file's filter keys are {held}: choose with --read filter=NAME"
        )
    if convention and flip != "none":
        how = {"rows": "their rows are turned around", "rotate": "they are rotated by 180 degrees"}
        notes.append(
            f"Images are stored upside down (macros_image_convention is {convention}): {how[flip]}; "
            "--read flip=none keeps them as stored"
        )
    notes += [
        f"Observation {name} is left out of the cameras: {why}" for name, why in left_out.items()
    ]
    return tuple(notes)


# Attributes -----------------------------------------------------------------------------------------------------------


def text_attribute(data: "h5py.Group", name: str) -> str:
    """Return an attribute of the group data as text; "" if it is missing."""
    value = data.attrs.get(name, "")
    return value.decode() if isinstance(value, bytes) else str(value)


def json_attribute(data: "h5py.Group", name: str, where: str) -> dict[str, Any]:
    """Return an attribute that contains a JSON object; {} if it is missing."""
    try:
        value = json.loads(text_attribute(data, name) or "{}")
    except ValueError as error:
        raise RoboAlignError(
            f"the attribute {name} is not valid JSON ({error})", where=where, fix=FETCH_FILE_AGAIN
        ) from None
    if not isinstance(value, dict):
        raise RoboAlignError(
            f"the attribute {name} is no JSON object", where=where, fix=FETCH_FILE_AGAIN
        )
    return value


def control_rate(env: dict[str, Any], where: str) -> float:
    """Return control_freq of env_args, else the default."""
    arguments = env.get("env_kwargs")
    rate = arguments.get("control_freq", _FPS) if isinstance(arguments, dict) else _FPS
    if not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise RoboAlignError(
            f"control_freq in env_args is {rate!r}", where=where, fix="give the rate as fps="
        )
    return float(rate)
