"""Read CALVIN's folders (one npz file per step, language annotations) as `Episode`s."""

import operator
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_readable
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Camera, Episode, content_id
from roboalign.episodes.formats.arrays import PngFrames, float_rows
from roboalign.episodes.formats.plain_pickle import read_parts

_FPS = 30.0
_ACTIONS = {"relative": "rel_actions", "absolute": "actions"}
WIDTHS = {"rel_actions": 7, "actions": 7, "robot_obs": 15}
ANNOTATIONS = Path("lang_annotations/auto_lang_ann.npy")
PARTS = ("info.indx", "language.ann", "language.task")
RUNS = "ep_start_end_ids.npy"
_AGAIN = "download the file again"
STEP_DIGITS = 9


@dataclass(frozen=True)
class Annotation:
    """A span of steps, first and last, described by one sentence."""

    number: int
    first: int
    last: int
    task: str
    instruction: str


def read_calvin(folder: str | Path, *, actions: str = "relative") -> Iterator[Episode | Fault]:
    """Yield one episode per language annotation of a split (training/ or validation/), at 30 Hz.

    The order is that of the file. `actions` is relative (rel_actions: scaled changes of position
    and Euler angles, gripper) or absolute (actions: pose in the world frame, gripper); both have 7
    values. The state is robot_obs [15]. Every uint8 [H, W, 3] array of a step is a camera
    (rgb_static, rgb_gripper), read and encoded as PNG on request. Ids are `<data
    set>/<split>/annotation-<number>`.

    Raises RoboAlignError if the folder is not a split, if the annotations cannot be read or contain
    anything but arrays and plain values, or if `actions` is neither option. An annotation is a
    Fault in the stream if its steps are missing or broken, or if it extends past the recording in
    which it begins (ep_start_end_ids.npy, if present).
    """
    folder = Path(folder)
    if actions not in _ACTIONS:
        raise RoboAlignError(
            f"actions is {actions!r}", where="actions", fix=f"give one of {sorted(_ACTIONS)}"
        )
    if not (folder / ANNOTATIONS).is_file():
        raise RoboAlignError(
            f"no {ANNOTATIONS}",
            where=str(folder),
            fix="give a split with language, such as task_D_D/training",
        )
    annotations = read_annotations(folder / ANNOTATIONS)
    return read_annotated(folder, annotations, read_runs(folder / RUNS), _ACTIONS[actions])


def read_annotated(
    folder: Path, annotations: list[Annotation], runs: np.ndarray | None, actions: str
) -> Iterator[Episode | Fault]:
    """Yield the episodes of the annotations."""
    for annotation in annotations:
        try:
            check_span(annotation, runs, folder)
            episode = _read_episode(folder, annotation, actions)
        except RoboAlignError as error:
            yield Fault(error.where, error.problem, error.fix)
        else:
            yield episode


# Annotations ----------------------------------------------------------------------------------------------------------


def read_annotations(path: Path) -> list[Annotation]:
    """Return the annotations of one auto_lang_ann.npy. It is a pickled dict in a NumPy file."""
    where = str(path)
    try:
        record = read_parts(path, PARTS)
    except (OSError, ValueError) as error:
        raise RoboAlignError(f"cannot be read ({error})", where=where, fix=_AGAIN) from None
    try:
        spans = [(step_number(first), step_number(last)) for first, last in record[PARTS[0]]]
        sentences = [_text_of(sentence) for sentence in record[PARTS[1]]]
        tasks = [_text_of(task) for task in record.get(PARTS[2], sentences)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"no lists info.indx and language.ann of the expected kind ({error})"
        raise RoboAlignError(problem, where=where, fix=_AGAIN) from None
    if not len(spans) == len(sentences) == len(tasks):
        problem = f"{len(spans)} spans, {len(sentences)} sentences and {len(tasks)} tasks"
        raise RoboAlignError(problem, where=where, fix=_AGAIN)
    rows = zip(spans, tasks, sentences)
    return [
        Annotation(number, *span, task, sentence)
        for number, (span, task, sentence) in enumerate(rows)
    ]


def step_number(value: Any) -> int:
    """Return a whole number that a step can have; a larger one would be counted up to."""
    number = operator.index(value)
    if abs(number) >= 10**STEP_DIGITS:
        raise ValueError(f"a step has more than {STEP_DIGITS} digits")
    return number


def _text_of(value: Any) -> str:
    """Return text that can be written; a list is not converted, because it may contain itself."""
    if not isinstance(value, str):
        raise TypeError(f"a sentence is a {type(value).__name__}")
    return value.encode().decode()


def read_runs(path: Path) -> np.ndarray | None:
    """Return int [N, 2]: first and last step of each recording; None without the file."""
    if not os.path.lexists(path):
        return None
    check_readable(path, fix=_AGAIN)
    try:
        runs = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged file can raise nearly anything
        raise RoboAlignError(f"cannot be read ({error})", where=str(path), fix=_AGAIN) from None
    if (
        not isinstance(runs, np.ndarray)
        or runs.dtype.kind not in "iu"
        or runs.ndim != 2
        or runs.shape[1] != 2
    ):
        raise RoboAlignError("not an array of integers [N, 2]", where=str(path), fix=_AGAIN)
    return runs


def check_span(annotation: Annotation, runs: np.ndarray | None, folder: Path) -> None:
    """Raise RoboAlignError if the span is empty or crosses into the next recording."""
    first, last = annotation.first, annotation.last
    where = f"{folder / ANNOTATIONS}, annotation {annotation.number}"
    if not 0 <= first <= last:
        raise RoboAlignError(f"it runs from step {first} to step {last}", where=where, fix=_AGAIN)
    if runs is not None and not ((runs[:, 0] <= first) & (last <= runs[:, 1])).any():
        problem = f"steps {first} to {last} are not within one recording of {RUNS}"
        raise RoboAlignError(problem, where=where, fix="drop this annotation")


# Steps ----------------------------------------------------------------------------------------------------------------


def _read_episode(folder: Path, annotation: Annotation, actions: str) -> Episode:
    """Return the episode of one annotation, without its frames."""
    paths: list[Path] = []
    rows: list[dict[str, np.ndarray]] = []
    for step in range(
        annotation.first, annotation.last + 1
    ):  # stop a damaged span at its first missing step
        paths.append(folder / f"episode_{step:07d}.npz")
        rows.append(_read_arrays(paths[-1], (actions, "robot_obs")))
    for path, row in zip(paths, rows):
        for name, values in row.items():
            if values.shape != (WIDTHS[name],):
                problem = f"shape {list(values.shape)}, expected [{WIDTHS[name]}]"
                raise RoboAlignError(problem, where=f"{path}, {name}", fix=_AGAIN)
    where = f"{folder}, annotation {annotation.number}"
    shapes = camera_shapes(paths[0])
    name = (
        f"{folder.resolve().parent.name}/{folder.resolve().name}/annotation-{annotation.number:05d}"
    )
    values = float_rows([row[actions] for row in rows], f"{where}, {actions}")
    return Episode(
        episode_id=content_id(name, values),
        task=annotation.task,
        instruction=annotation.instruction,
        fps=_FPS,
        actions=values,
        state=float_rows([row["robot_obs"] for row in rows], f"{where}, robot_obs"),
        images={
            name: PngFrames(len(paths), partial(_read_frame, paths, name, shapes[name]))
            for name in shapes
        },
        cameras={name: Camera(name, shape[1], shape[0]) for name, shape in shapes.items()},
    )


def _read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the arrays `names` of one step. Raises RoboAlignError if the file or one of them is
    missing or damaged."""
    check_readable(path, fix="download the split again")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file.files]
            arrays = {name: file[name] for name in names if name not in missing}
    except Exception as error:  # a damaged zip file can raise nearly anything
        raise RoboAlignError(
            f"not a readable npz file ({error})", where=str(path), fix=_AGAIN
        ) from None
    if missing:
        raise RoboAlignError(f"no arrays {missing}", where=str(path), fix=_AGAIN)
    return arrays


def camera_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return camera -> [H, W, 3], without the tactile image (6 channels) and depth maps (1)."""
    with np.load(path, allow_pickle=False) as file:
        names = [name for name in file.files if name.startswith("rgb")]
    arrays = _read_arrays(path, names)
    return {
        name: a.shape
        for name, a in arrays.items()
        if a.dtype == np.uint8 and a.ndim == 3 and a.shape[2] == 3
    }


def _read_frame(paths: list[Path], camera: str, shape: tuple[int, ...], t: int) -> np.ndarray:
    """Return uint8 [H, W, 3]: the frame of one step."""
    frame = _read_arrays(paths[t], (camera,))[camera]
    if frame.dtype != np.uint8 or frame.shape != shape:
        problem = (
            f"{frame.dtype} of shape {list(frame.shape)}, the first step's is uint8 {list(shape)}"
        )
        raise RoboAlignError(problem, where=f"{paths[t]}, {camera}", fix=_AGAIN)
    return frame
