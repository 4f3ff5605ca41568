"""Read robomimic's HDF5 files, also used by LIBERO (one file per task), as `Episode`s."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Camera, Episode, content_id
from roboalign.episodes.formats.arrays import FETCH_FILE_AGAIN, PngFrames, float_rows
from roboalign.episodes.formats.hdf5_walk import endless
from roboalign.episodes.formats.robomimic_file import (
    TaskFile,
    cameras_of,
    check_inside,
    flip_of,
    member,
    names_in,
    opened_hdf5,
    read_task_file,
    turned,
)
from roboalign.episodes.pictures import PixelLayout
from roboalign.episodes.robot_data import About

_DEFAULT_STATES = (
    ("ee_pos", "ee_ori", "gripper_states"),  # LIBERO
    ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),  # robomimic
)
ENDINGS = (".hdf5", ".h5")
SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""The first bytes of an HDF5 file (HDF5 File Format Specification, superblock)."""


def read_robomimic(
    path: str | Path,
    *,
    state: Sequence[str] | None = None,
    fps: float | None = None,
    flip: bool | str | None = None,
    filter: str | None = None,
    external: bool = False,
) -> Iterator[Episode | Fault]:
    """Yield the demonstrations of one HDF5 file, or of every one below a folder (`is_hdf5`).

    Files are in name order, demonstrations in number order; ids are `<file>/<demo>-<digest of its
    actions>`. `filter` is a filter key of the file (mask/train): only its demonstrations are read.
    `state` names the observations to join; the default is LIBERO's (ee_pos, ee_ori, gripper_states)
    or robomimic's (robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos). The simulator's `states`
    are never read. `fps` is the file's control_freq, or 20 if it has none.

    Observations that are pictures (`pictures.layout_of`: channels last or first, RGBA, uint8,
    uint16, float) are cameras; a frame is read and encoded as PNG on request. Frames are flipped
    according to the file's attribute macros_image_convention: with `opengl` their rows are
    reversed, and LIBERO's are rotated by 180 degrees, as its evaluation shows them. `flip`
    overrides it: rotate (or true), rows, none (or false).

    Data stored outside of the file (HDF5 external storage, links to other files, virtual data sets)
    is refused unless `external`. If the file has no instruction (robomimic's own sets), it is "".
    Rewards that are all 0 or 1 give the first step of success. Steps are paired as stored; LIBERO's
    files contain the observation after the action of the same index.

    Raises RoboAlignError if the path, an option or the state does not fit. A broken demonstration,
    or a broken file among several, is a Fault in the stream. A file that occupies the HDF5 library
    forever is broken as a whole.
    """
    files = task_files(Path(path), fps=fps, flip=flip, filter=filter, external=external)
    good = [file for file in files if isinstance(file, TaskFile)]
    keys = state_keys(good[0].observations, state, str(good[0].path))
    return read_files(files, keys)


def about_robomimic(path: str | Path, **options: Any) -> About:
    """Return the number of demonstrations, and what a user must know about how they are read. Each
    sentence occurs once."""
    options.pop("state", None)
    files = task_files(Path(path), **options)
    good = [file for file in files if isinstance(file, TaskFile)]
    notes = dict.fromkeys(note for file in good for note in file.notes)
    whole = sum(len(file.demos) for file in good) if len(good) == len(files) else None
    return About(notes=tuple(notes), episodes=whole)


def task_files(
    path: Path,
    *,
    fps: float | None = None,
    flip: bool | str | None = None,
    filter: str | None = None,
    external: bool = False,
) -> list[TaskFile | Fault]:
    """Return what each file says. Raises RoboAlignError if none can be read, and for a broken
    `path` that is a single file."""
    if fps is not None and not 0 < fps < math.inf:
        raise RoboAlignError(
            f"fps is {fps}", where="fps", fix="give the control rate, steps a second"
        )
    turn = flip_of(flip)
    files: list[TaskFile | Fault] = []
    found = hdf5_files(path)
    damaged = endless(file for file, _ in found)
    for file, name in found:
        try:
            if file in damaged:
                raise RoboAlignError(damaged[file], where=str(file), fix=FETCH_FILE_AGAIN)
            files.append(
                read_task_file(file, name, fps=fps, filter=filter, flip=turn, external=external)
            )
        except RoboAlignError as error:
            if file == path:
                raise
            files.append(Fault(error.where, error.problem, error.fix))
    if not any(isinstance(file, TaskFile) for file in files):
        raise RoboAlignError(
            f"none of {len(files)} files can be read: {files[0]}",
            where=str(path),
            fix=FETCH_FILE_AGAIN,
        )
    return files


def hdf5_files(path: Path) -> list[tuple[Path, str]]:
    """Return each file with the name that begins its episode ids."""
    if path.is_file():
        return [(path, path.name)]
    found = sorted(file for file in path.rglob("*") if is_hdf5(file))
    if not found:
        none = "no HDF5 file (.hdf5, .h5 or no ending) below this folder"
        problem = none if path.is_dir() else "neither a file nor a folder"
        raise RoboAlignError(
            problem, where=str(path), fix="give a robomimic or LIBERO file, or a folder of them"
        )
    return [(file, file.relative_to(path).as_posix()) for file in found]


def is_hdf5(path: Path) -> bool:
    """Return whether a file ends in .hdf5 or .h5, or has no suffix and begins as HDF5 does.
    LIBERO's create_dataset.py names its file by the suite alone."""
    return path.is_file() and (path.suffix in ENDINGS or (not path.suffix and begins_as_hdf5(path)))


def begins_as_hdf5(path: Path) -> bool:
    """Return whether a file can be read and begins with the signature."""
    try:
        with path.open("rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


def state_keys(
    observations: Sequence[str], state: Sequence[str] | None, where: str
) -> tuple[str, ...]:
    """Return the observations of the state: those named, else the first complete default set."""
    if isinstance(state, str):
        state = (state,)
    wanted = _DEFAULT_STATES if state is None else (tuple(state),)
    for keys in wanted:
        if all(key in observations for key in keys):
            return keys
    names = " nor ".join(" + ".join(keys) for keys in wanted)
    raise RoboAlignError(
        f"no {names} in obs; there are {sorted(observations)}",
        where=where,
        fix="name the observations of the state with state=",
    )


# One demonstration ----------------------------------------------------------------------------------------------------


def read_files(
    files: Sequence[TaskFile | Fault], keys: tuple[str, ...]
) -> Iterator[Episode | Fault]:
    """Yield the demonstrations of the files. A file is open only while one of them is read."""
    for file in files:
        if isinstance(file, Fault):
            yield file
            continue
        for demo in file.demos:
            try:
                episode = read_demo(file, demo, keys)
            except RoboAlignError as error:
                yield Fault(error.where, error.problem, error.fix)
            else:
                yield episode


def read_demo(file: TaskFile, name: str, keys: tuple[str, ...]) -> Episode:
    """Return one demonstration without its frames. Raises RoboAlignError naming file, demonstration
    and problem."""
    where = f"{file.path}, {name}"
    external = file.external
    with opened_hdf5(file.path) as opened_file:
        demo = member(opened_file["data"], name, "Group", where, external=external)
        obs = member(demo, "obs", "Group", where, external=external)
        stored = member(demo, "actions", "Dataset", where, external=external)
        actions = float_rows(stored[()], f"{where}, actions")
        columns = [
            float_rows(
                member(obs, key, "Dataset", where, external=external)[()], f"{where}, obs/{key}"
            )
            for key in keys
        ]
        for key in names_in(obs, where):
            check_inside(obs, key, where, external)
        layouts = cameras_of(obs, external)[0]
        steps = {key: obs[key].shape[0] for key in layouts}
        stated = demo.attrs.get("num_samples", len(actions))
        rewards = None
        check_inside(demo, "rewards", where, external)
        if "rewards" in demo:
            rewards = member(demo, "rewards", "Dataset", where, external=external)[()]
    lengths = [len(column) for column in columns] + list(steps.values())
    if any(length != len(actions) for length in lengths) or str(stated) != str(len(actions)):
        raise RoboAlignError(
            f"{len(actions)} actions, but num_samples is {stated} and {[*keys, *steps]} have {lengths} steps",
            where=where,
            fix=FETCH_FILE_AGAIN,
        )
    paths = {key: f"data/{name}/obs/{key}" for key in layouts}
    return Episode(
        episode_id=content_id(f"{file.name}/{name}", actions),
        task=file.task,
        instruction=file.instruction,
        fps=file.fps,
        actions=actions,
        state=np.concatenate([np.zeros((len(actions), 0), np.float32), *columns], axis=1),
        images={
            key: PngFrames(
                len(actions), partial(_read_frame, file.path, paths[key], layout, file.flip)
            )
            for key, layout in layouts.items()
        },
        cameras={key: Camera(key, layout.width, layout.height) for key, layout in layouts.items()},
        success_step=first_success(rewards, len(actions)),
    )


def first_success(rewards: Any, steps: int) -> int | None:
    """Return the first step whose reward is 1, if each is 0 or 1. None if no reward is 1, or if
    they are shaped."""
    rewards = np.asarray(rewards)
    if (
        rewards.shape != (steps,)
        or rewards.dtype.kind not in "fiub"
        or not np.isin(rewards, (0, 1)).all()
    ):
        return None
    return int(np.argmax(rewards)) if rewards.any() else None


def _read_frame(path: Path, dataset: str, layout: PixelLayout, flip: str, t: int) -> np.ndarray:
    """Return uint8 [H, W, 3]: one frame of one camera."""
    with opened_hdf5(path) as file:
        stored = file[dataset][t]
    return turned(layout.rgb(stored, f"{path}, {dataset}, frame {t}"), flip)
