"""robomimic's HDF5 files, which LIBERO uses too (one file a task), as a stream of `Episode`s."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Camera, Episode
from roboalign.episodes.formats.arrays import AGAIN, PngFrames, float_rows
from roboalign.episodes.formats.hdf5_walk import endless

if TYPE_CHECKING:
    import h5py

FPS = 20.0  # robosuite's default control rate, that of LIBERO and of robomimic's own data sets
DEFAULT_STATES = (
    ("ee_pos", "ee_ori", "gripper_states"),  # LIBERO
    ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),  # robomimic
)
ENDINGS = (".hdf5", ".h5")
SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""The first bytes of an HDF5 file (HDF5 File Format Specification, superblock)."""


@dataclass(frozen=True)
class TaskFile:
    """What one file says about all its demonstrations."""

    path: Path
    name: str
    demos: tuple[str, ...]
    observations: tuple[str, ...]
    """of the first demonstration"""
    task: str
    instruction: str
    fps: float


def read_robomimic(
    path: str | Path,
    *,
    state: Sequence[str] | None = None,
    fps: float | None = None,
    flip: bool = False,
) -> Iterator[Episode | Fault]:
    """The demonstrations of one HDF5 file, or of every one below a folder (`is_hdf5`), one at a time.

    Files come in name order, demonstrations in that of their numbers; ids are `<file>/<demo>`. `state` names the
    observations that are joined; without it LIBERO's (ee_pos, ee_ori, gripper_states) or robomimic's (robot0_eef_pos,
    robot0_eef_quat, robot0_gripper_qpos). The simulator's `states` are never read. `fps` is the file's control_freq,
    20 where it has none. Observations that are uint8 [T, H, W, 3] are cameras; a frame is read and encoded as PNG when
    asked for. `flip` turns the rows of every camera around: LIBERO's files hold images upside down, and nothing in the
    frames tells. Without an instruction in the file (robomimic's own sets) it is "". Rewards that are all 0 or 1 tell
    the first step of success. Steps are paired as stored; LIBERO's files hold the observation after the action of the
    same index.

    Raises RoboAlignError where the path, the state or the fps does not fit; a file of several, or a demonstration,
    that is broken is a Fault in the stream. A file that keeps the HDF5 library busy without end is broken as a whole.
    """
    path = Path(path)
    if fps is not None and not 0 < fps < math.inf:
        raise RoboAlignError(
            f"fps is {fps}", where="fps", fix="give the control rate, steps a second"
        )
    files: list[TaskFile | Fault] = []
    found = hdf5_files(path)
    damaged = endless(file for file, _ in found)
    for file, name in found:
        try:
            if file in damaged:
                raise RoboAlignError(damaged[file], where=str(file), fix=AGAIN)
            files.append(read_task_file(file, name, fps))
        except RoboAlignError as error:
            if file == path:
                raise
            files.append(Fault(error.where, error.problem, error.fix))
    good = [file for file in files if isinstance(file, TaskFile)]
    if not good:
        raise RoboAlignError(
            f"none of {len(files)} files can be read: {files[0]}", where=str(path), fix=AGAIN
        )
    keys = state_keys(good[0].observations, state, str(good[0].path))
    return read_files(files, keys, flip)


def hdf5_files(path: Path) -> list[tuple[Path, str]]:
    """Each file with the name that its episode ids begin with."""
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
    """Whether a file ends in .hdf5 or .h5, or has no ending and begins as HDF5 does: LIBERO's create_dataset.py names
    its file by the suite alone."""
    return path.is_file() and (path.suffix in ENDINGS or (not path.suffix and begins_as_hdf5(path)))


def begins_as_hdf5(path: Path) -> bool:
    """Whether a file can be read and begins with the signature."""
    try:
        with path.open("rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


@contextmanager
def opened(path: Path) -> Iterator["h5py.File"]:
    """An open HDF5 file; whatever h5py finds wrong within it becomes a RoboAlignError naming the file."""
    import h5py  # a slow import, and only this format needs it

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, MemoryError) as error:
        raise RoboAlignError(
            f"not a readable HDF5 file ({error})", where=str(path), fix=AGAIN
        ) from None


def member(group: "h5py.Group", name: str, kind: str, where: str) -> Any:
    """`group[name]`, which has to be a `Group` or a `Dataset` (`kind`)."""
    found = group.get(name)
    if type(found).__name__ != kind:
        raise RoboAlignError(
            f"no {kind.lower()} {group.name.rstrip('/')}/{name}", where=where, fix=AGAIN
        )
    return found


def names_in(group: "h5py.Group", where: str) -> list[str]:
    """The names in a group; h5py gives one that is no UTF-8 as bytes, which no data set has."""
    names = list(group)
    if not all(isinstance(name, str) for name in names):
        raise RoboAlignError(f"a name in {group.name} is no text", where=where, fix=AGAIN)
    return names


# What a file says of all its demonstrations ---------------------------------------------------------------------------


def read_task_file(path: Path, name: str, fps: float | None) -> TaskFile:
    """Names, task and control rate. Raises RoboAlignError where the file is not one of robomimic's layout."""
    where = str(path)
    with opened(path) as file:
        data = member(file, "data", "Group", where)
        demos = sorted(names_in(data, where), key=by_number)
        if not demos:
            raise RoboAlignError("no demonstration in the group data", where=where, fix=AGAIN)
        observations = tuple(
            names_in(member(member(data, demos[0], "Group", where), "obs", "Group", where), where)
        )
        problem, env = (
            json_attribute(data, "problem_info", where),
            json_attribute(data, "env_args", where),
        )
        bddl = text_attribute(data, "bddl_file_name")
    instruction = problem.get("language_instruction", "")
    instruction = instruction if isinstance(instruction, str) else " ".join(map(str, instruction))
    return TaskFile(
        path=path,
        name=name,
        demos=tuple(demos),
        observations=observations,
        task=Path(bddl).stem or str(env.get("env_name") or "") or Path(name).stem,
        instruction=instruction.strip().strip('"'),
        fps=float(fps) if fps is not None else control_rate(env, where),
    )


def by_number(demo: str) -> tuple[str, int]:
    """Sorts demo_10 behind demo_9."""
    number = re.search(r"\d*$", demo)
    digits = number[0] if number else ""
    return demo.removesuffix(digits), int(digits or 0)


def text_attribute(data: "h5py.Group", name: str) -> str:
    """An attribute of the group data as text; "" where it is not there."""
    value = data.attrs.get(name, "")
    return value.decode() if isinstance(value, bytes) else str(value)


def json_attribute(data: "h5py.Group", name: str, where: str) -> dict[str, Any]:
    """An attribute that holds a JSON object; {} where it is not there."""
    try:
        value = json.loads(text_attribute(data, name) or "{}")
    except ValueError as error:
        raise RoboAlignError(
            f"the attribute {name} is not valid JSON ({error})", where=where, fix=AGAIN
        ) from None
    if not isinstance(value, dict):
        raise RoboAlignError(f"the attribute {name} is no JSON object", where=where, fix=AGAIN)
    return value


def control_rate(env: dict[str, Any], where: str) -> float:
    """control_freq of env_args, else the default."""
    arguments = env.get("env_kwargs")
    rate = arguments.get("control_freq", FPS) if isinstance(arguments, dict) else FPS
    if not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise RoboAlignError(
            f"control_freq in env_args is {rate!r}", where=where, fix="give the rate as fps="
        )
    return float(rate)


def state_keys(
    observations: Sequence[str], state: Sequence[str] | None, where: str
) -> tuple[str, ...]:
    """The observations that make the state: those named, else the first default set of which all are there."""
    if isinstance(state, str):
        state = (state,)
    wanted = DEFAULT_STATES if state is None else (tuple(state),)
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
    files: Sequence[TaskFile | Fault], keys: tuple[str, ...], flip: bool
) -> Iterator[Episode | Fault]:
    """The demonstrations of the files. A file is open only while one of them is read."""
    for file in files:
        if isinstance(file, Fault):
            yield file
            continue
        for demo in file.demos:
            try:
                episode = read_demo(file, demo, keys, flip)
            except RoboAlignError as error:
                yield Fault(error.where, error.problem, error.fix)
            else:
                yield episode


def read_demo(file: TaskFile, name: str, keys: tuple[str, ...], flip: bool) -> Episode:
    """One demonstration without its frames. Raises RoboAlignError naming file, demonstration and what is wrong."""
    where = f"{file.path}, {name}"
    with opened(file.path) as opened_file:
        demo = member(opened_file["data"], name, "Group", where)
        obs = member(demo, "obs", "Group", where)
        actions = float_rows(member(demo, "actions", "Dataset", where)[()], f"{where}, actions")
        columns = [
            float_rows(member(obs, key, "Dataset", where)[()], f"{where}, obs/{key}")
            for key in keys
        ]
        shapes = {key: value.shape for key in names_in(obs, where) if is_camera(value := obs[key])}
        stated = demo.attrs.get("num_samples", len(actions))
        rewards = member(demo, "rewards", "Dataset", where)[()] if "rewards" in demo else None
    lengths = [len(column) for column in columns] + [shape[0] for shape in shapes.values()]
    if any(length != len(actions) for length in lengths) or str(stated) != str(len(actions)):
        raise RoboAlignError(
            f"{len(actions)} actions, but num_samples is {stated} and {[*keys, *shapes]} have {lengths} steps",
            where=where,
            fix=AGAIN,
        )
    paths = {key: f"data/{name}/obs/{key}" for key in shapes}
    return Episode(
        episode_id=f"{file.name}/{name}",
        task=file.task,
        instruction=file.instruction,
        fps=file.fps,
        actions=actions,
        state=np.concatenate([np.zeros((len(actions), 0), np.float32), *columns], axis=1),
        images={
            key: PngFrames(len(actions), partial(read_frame, file.path, paths[key], flip))
            for key in shapes
        },
        cameras={key: Camera(key, shape[2], shape[1]) for key, shape in shapes.items()},
        success_step=first_success(rewards, len(actions)),
    )


def first_success(rewards: Any, steps: int) -> int | None:
    """The first step whose reward is 1, where each is 0 or 1; None where none is, or where they are shaped."""
    rewards = np.asarray(rewards)
    if (
        rewards.shape != (steps,)
        or rewards.dtype.kind not in "fiub"
        or not np.isin(rewards, (0, 1)).all()
    ):
        return None
    return int(np.argmax(rewards)) if rewards.any() else None


def is_camera(value: Any) -> bool:
    """Datasets uint8 [T, H, W, 3]."""
    shape: tuple[int, ...] = getattr(value, "shape", ())
    return len(shape) == 4 and shape[-1] == 3 and value.dtype == np.uint8


def read_frame(path: Path, dataset: str, flip: bool, t: int) -> np.ndarray:
    """uint8 [H, W, 3]: one frame of one camera."""
    with opened(path) as file:
        frame = file[dataset][t]
    return np.ascontiguousarray(frame[::-1]) if flip else frame
