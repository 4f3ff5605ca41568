"""CALVIN's folders (one npz file a step, and language annotations) as a stream of `Episode`s."""

import math
import operator
import pickletools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from roboalign.data.episode import Camera, Episode
from roboalign.data.robot.arrays import PngFrames, float_rows
from roboalign.data.robot.base import Fault
from roboalign.errors import RoboAlignError

FPS = 30.0
ACTIONS = {"relative": "rel_actions", "absolute": "actions"}
WIDTHS = {"rel_actions": 7, "actions": 7, "robot_obs": 15}
ANNOTATIONS = Path("lang_annotations/auto_lang_ann.npy")
RUNS = "ep_start_end_ids.npy"
AGAIN = "download the file again"
STEP_DIGITS = 9


@dataclass(frozen=True)
class Annotation:
    """A stretch of steps, first and last, that one sentence describes."""

    number: int
    first: int
    last: int
    task: str
    instruction: str


def read_calvin(folder: str | Path, *, actions: str = "relative") -> Iterator[Episode | Fault]:
    """One episode for each language annotation of a split (training/ or validation/), in the file's order, 30 Hz.

    `actions` is relative (rel_actions: scaled changes of position and Euler angles, gripper) or absolute (actions: pose
    in the world frame, gripper); both have 7 values. The state is robot_obs [15]. Every uint8 [H, W, 3] array of a step
    is a camera (rgb_static, rgb_gripper), read and encoded as PNG when asked for. Ids are
    `<data set>/<split>/annotation-<number>`.

    Raises RoboAlignError where the folder is no split, the annotations cannot be read or hold anything but arrays and
    plain values, or `actions` is neither. An annotation whose steps are missing or broken, or that reaches past the
    recording it begins in (ep_start_end_ids.npy, where there is one), is a Fault in the stream.
    """
    folder = Path(folder)
    if actions not in ACTIONS:
        raise RoboAlignError(f"actions is {actions!r}", where="actions", fix=f"give one of {sorted(ACTIONS)}")
    if not (folder / ANNOTATIONS).is_file():
        raise RoboAlignError(
            f"no {ANNOTATIONS}", where=str(folder), fix="give a split with language, such as task_D_D/training"
        )
    annotations = read_annotations(folder / ANNOTATIONS)
    return read_annotated(folder, annotations, read_runs(folder / RUNS), ACTIONS[actions])


def read_annotated(
    folder: Path, annotations: list[Annotation], runs: np.ndarray | None, actions: str
) -> Iterator[Episode | Fault]:
    """The episodes of the annotations."""
    for annotation in annotations:
        try:
            check_span(annotation, runs, folder)
            episode = read_episode(folder, annotation, actions)
        except RoboAlignError as error:
            yield Fault(error.where, error.problem, error.fix)
        else:
            yield episode


# Annotations ----------------------------------------------------------------------------------------------------------


def read_annotations(path: Path) -> list[Annotation]:
    """The annotations of one auto_lang_ann.npy, which is a pickled dict in a numpy file."""
    where = str(path)
    record = load_dict(path)
    try:
        spans = [(step_number(first), step_number(last)) for first, last in record["info"]["indx"]]
        sentences = [text_of(sentence) for sentence in record["language"]["ann"]]
        tasks = [text_of(task) for task in record["language"].get("task", sentences)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"no lists info.indx and language.ann of the expected kind ({error})"
        raise RoboAlignError(problem, where=where, fix=AGAIN) from None
    if not len(spans) == len(sentences) == len(tasks):
        problem = f"{len(spans)} spans, {len(sentences)} sentences and {len(tasks)} tasks"
        raise RoboAlignError(problem, where=where, fix=AGAIN)
    rows = zip(spans, tasks, sentences)
    return [Annotation(number, *span, task, sentence) for number, (span, task, sentence) in enumerate(rows)]


def step_number(value: Any) -> int:
    """A whole number that a step can have: one that is larger would be counted up to."""
    number = operator.index(value)
    if abs(number) >= 10**STEP_DIGITS:
        raise ValueError(f"a step has more than {STEP_DIGITS} digits")
    return number


def text_of(value: Any) -> str:
    """Text that can be written; a list is not turned into it: it could hold itself."""
    if not isinstance(value, str):
        raise TypeError(f"a sentence is a {type(value).__name__}")
    return value.encode().decode()


def load_dict(path: Path) -> dict[str, Any]:
    """The dict in a numpy file of one Python object."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            dtype = headers[version](file)[2]
            loaded = unpickle(file.read()) if dtype.hasobject else None
        if isinstance(loaded, np.ndarray) and loaded.dtype.hasobject and loaded.shape == ():
            loaded = loaded.item()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise RoboAlignError(f"cannot be read ({error})", where=str(path), fix=AGAIN) from None
    if not isinstance(loaded, dict):
        raise RoboAlignError("does not hold a dict", where=str(path), fix=AGAIN)
    return loaded


def read_runs(path: Path) -> np.ndarray | None:
    """int [N, 2]: first and last step of each recording; None where the file does not exist."""
    if not path.is_file():
        return None
    try:
        runs = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged file can raise nearly anything
        raise RoboAlignError(f"cannot be read ({error})", where=str(path), fix=AGAIN) from None
    if not isinstance(runs, np.ndarray) or runs.dtype.kind not in "iu" or runs.ndim != 2 or runs.shape[1] != 2:
        raise RoboAlignError("not an array of integers [N, 2]", where=str(path), fix=AGAIN)
    return runs


def check_span(annotation: Annotation, runs: np.ndarray | None, folder: Path) -> None:
    """Raise RoboAlignError where the span is empty, or runs from one recording into the next."""
    first, last = annotation.first, annotation.last
    where = f"{folder / ANNOTATIONS}, annotation {annotation.number}"
    if not 0 <= first <= last:
        raise RoboAlignError(f"it runs from step {first} to step {last}", where=where, fix=AGAIN)
    if runs is not None and not ((runs[:, 0] <= first) & (last <= runs[:, 1])).any():
        problem = f"steps {first} to {last} are not within one recording of {RUNS}"
        raise RoboAlignError(problem, where=where, fix="drop this annotation")


# Pickles --------------------------------------------------------------------------------------------------------------
#
# pickle.load would call whatever a file names, and numpy's part of it crashes the process on a damaged array. So the
# few instructions that plain values and arrays need are followed here, in Python alone; pickletools only splits them.


class Name(str):
    """One of the functions that a pickled array names; unlike text, it may be called."""


NAMES = {
    "numpy.dtype": Name("dtype"),
    "numpy.ndarray": Name("ndarray"),  # is only ever handed to _reconstruct
    "numpy.core.multiarray._reconstruct": Name("array"),
    "numpy.core.multiarray.scalar": Name("scalar"),
}
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}
TAKE_ALL = ("TUPLE", "APPENDS", "SETITEMS", "ADDITEMS")  # since the last mark
WITH_ARGUMENT = re.compile(r"(?:SHORT_)?(?:BINUNICODE|BINBYTES)8?|BININT[12]?|BINFLOAT|LONG[14]|UNICODE|INT|LONG|FLOAT")
KEYS = (str, bytes, int, float, type(None))
"""What may be a key or in a set. A tuple may not: the hash of a deep one overflows the stack."""
DTYPE = re.compile(r"b1|[iuf][1248]|[US]\d{1,9}|O8?")


@dataclass
class Begun:
    """A dtype or an array whose state has not come yet, and where it is remembered."""

    name: str
    code: str = ""
    places: list[int] = field(default_factory=list)


@dataclass
class Machine:
    """The stack of a pickle, the stacks that marks put aside, and what it remembers."""

    stack: list[Any] = field(default_factory=list)
    aside: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def since_mark(self) -> list[Any]:
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self.aside.pop()
        return items

    def take(self, count: int) -> list[Any]:
        """The last `count` values."""
        if len(self.stack) < count:
            raise ValueError(f"{count} values of {len(self.stack)}")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def remember(self, place: int) -> None:
        """Keep the top of the stack; what is only begun has to be replaced there when it is whole."""
        top = self.memo[place] = self.stack[-1]
        if isinstance(top, Begun):
            top.places.append(place)

    def finish(self, whole: Any) -> None:
        """Put `whole` where the Begun on top of the stack is."""
        begun = self.stack.pop()
        self.stack.append(whole)
        self.memo |= {place: whole for place in begun.places if self.memo[place] is begun}


def unpickle(data: bytes) -> Any:
    """The plain values, numpy arrays and numpy scalars of a pickle; on anything else or damage, an Exception."""
    machine = Machine()
    argument: Any  # of the type that its instruction says
    for opcode, argument, _ in pickletools.genops(data):
        name, stack = opcode.name, machine.stack
        if name == "STOP":
            (value,) = stack
            return value
        if name in VALUES:
            stack.append(VALUES[name])
        elif WITH_ARGUMENT.fullmatch(name):
            stack.append(argument)
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            machine.aside.append(stack)
            machine.stack = []
        elif name == "MEMOIZE":
            machine.remember(len(machine.memo))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            machine.remember(int(argument))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(machine.memo[int(argument)])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(name_of(*(argument.split(" ") if name == "GLOBAL" else (stack.pop(-2), stack.pop()))))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(called_with(stack.pop(), *arguments))
        elif name == "BUILD":
            machine.finish(built(stack[-2], *stack.pop()))
        elif name not in ("PROTO", "FRAME"):
            fill(machine, name)
    raise ValueError("it has no end")


def name_of(module: Any, called: Any) -> Name:
    """The function of that name, where an array needs it."""
    if not isinstance(module, str) or not isinstance(called, str):
        raise ValueError("the name of a function is no text")
    full = f"{module}.{called}".replace("numpy._core.", "numpy.core.")
    if full not in NAMES:
        raise ValueError(f"it holds {module}.{called}, which is not data")
    return NAMES[full]


def fill(machine: Machine, name: str) -> None:
    """Follow one of the instructions that put what was pushed last into a container."""
    if name not in TAKES and name not in TAKE_ALL:
        raise ValueError(f"it holds {name}, which is not data")
    items = machine.take(TAKES[name]) if name in TAKES else machine.since_mark()
    if name.startswith("TUPLE"):
        machine.stack.append(tuple(items))
    elif name in ("APPEND", "APPENDS") and isinstance(machine.stack[-1], list):
        machine.stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS") and isinstance(machine.stack[-1], dict):
        machine.stack[-1].update(zip(map(key_of, items[::2]), items[1::2], strict=True))
    elif name == "ADDITEMS" and isinstance(machine.stack[-1], set):
        machine.stack[-1].update(map(key_of, items))
    else:
        raise ValueError(f"{name} to a {type(machine.stack[-1]).__name__}")


def key_of(value: Any) -> Any:
    """The value, where it may be a key."""
    if not isinstance(value, KEYS):
        raise ValueError(f"a key is a {type(value).__name__}")
    return value


def called_with(function: Any, *arguments: Any) -> Any:
    """What `function` makes: a dtype or an array that waits for its state, or a scalar."""
    if not isinstance(function, Name) or function == "ndarray":
        raise ValueError(f"it calls {type(function).__name__}, which is not data")
    if function == "scalar":
        return array_of((), *arguments)[()]
    if function == "dtype" and DTYPE.fullmatch(arguments[0]):
        return Begun("dtype", arguments[0])
    if function == "array" and arguments[0] is NAMES["numpy.ndarray"]:
        return Begun("array")
    raise ValueError(f"it holds a numpy {function} that is not plain")


def built(begun: Any, version: Any, *state: Any) -> Any:
    """The dtype or the array, from what __reduce__ of numpy puts into its state."""
    if not isinstance(begun, Begun):
        raise ValueError(f"it holds a {type(begun).__name__} with a state, which is not data")
    if begun.name == "dtype":
        order, subarray, names, fields = state[:4]
        if order not in ("<", ">", "|", "=") or (subarray, names, fields) != (None, None, None):
            raise ValueError("it holds a structured dtype, which is not data")
        return np.dtype(object) if begun.code.startswith("O") else np.dtype(order + begun.code)
    shape, dtype, columns_first, content = state
    return array_of(shape, dtype, content, order="F" if columns_first else "C")


def array_of(shape: Any, dtype: Any, content: Any, order: Literal["C", "F"] = "C") -> np.ndarray:
    """The array of these bytes, or of objects the list of them. Raises ValueError where the sizes do not agree."""
    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple) or not all(type(n) is int for n in shape):
        raise ValueError("an array has no shape or no dtype")
    if not all(0 <= n < 2**40 for n in shape) or len(shape) > 8:
        raise ValueError("an array has a shape that none can have")
    if type(content) is not (list if dtype.hasobject else bytes):
        raise ValueError(f"an array of {dtype} is made of {type(content).__name__}")
    if len(content) != math.prod(shape) * (1 if dtype.hasobject else dtype.itemsize):
        raise ValueError(f"an array {list(shape)} of {dtype} is made of {len(content)} parts")
    if dtype.hasobject:
        flat = np.empty(len(content), dtype=object)
        for place, value in enumerate(content):
            flat[place] = value
    elif not content:
        flat = np.zeros(0, dtype)
    else:
        flat = np.frombuffer(bytes(content), dtype)
        if dtype.kind == "U" and flat.astype(dtype.newbyteorder("=")).view(np.uint32).max() > 0x10FFFF:
            raise ValueError("an array of text holds what is no character")
    return flat.reshape(shape, order=order).copy(order)


# Steps ----------------------------------------------------------------------------------------------------------------


def read_episode(folder: Path, annotation: Annotation, actions: str) -> Episode:
    """The episode of one annotation, without its frames."""
    paths: list[Path] = []
    rows: list[dict[str, np.ndarray]] = []
    for step in range(annotation.first, annotation.last + 1):  # a damaged span ends at the first step that is missing
        paths.append(folder / f"episode_{step:07d}.npz")
        rows.append(read_arrays(paths[-1], (actions, "robot_obs")))
    for path, row in zip(paths, rows):
        for name, values in row.items():
            if values.shape != (WIDTHS[name],):
                problem = f"shape {list(values.shape)}, expected [{WIDTHS[name]}]"
                raise RoboAlignError(problem, where=f"{path}, {name}", fix=AGAIN)
    where = f"{folder}, annotation {annotation.number}"
    shapes = camera_shapes(paths[0])
    return Episode(
        episode_id=f"{folder.resolve().parent.name}/{folder.resolve().name}/annotation-{annotation.number:05d}",
        task=annotation.task, instruction=annotation.instruction, fps=FPS,
        actions=float_rows([row[actions] for row in rows], f"{where}, {actions}"),
        state=float_rows([row["robot_obs"] for row in rows], f"{where}, robot_obs"),
        images={name: PngFrames(len(paths), partial(read_frame, paths, name, shapes[name])) for name in shapes},
        cameras={name: Camera(name, shape[1], shape[0]) for name, shape in shapes.items()},
    )  # fmt: skip


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays `names` of one step. Raises RoboAlignError where the file or one of them is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file.files]
            arrays = {name: file[name] for name in names if name not in missing}
    except FileNotFoundError:
        raise RoboAlignError("the step does not exist", where=str(path), fix="download the split again") from None
    except Exception as error:  # a damaged zip file can raise nearly anything
        raise RoboAlignError(f"not a readable npz file ({error})", where=str(path), fix=AGAIN) from None
    if missing:
        raise RoboAlignError(f"no arrays {missing}", where=str(path), fix=AGAIN)
    return arrays


def camera_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """camera -> [H, W, 3]. The tactile image has six channels, depth maps one: they are left out."""
    with np.load(path, allow_pickle=False) as file:
        names = [name for name in file.files if name.startswith("rgb")]
    arrays = read_arrays(path, names)
    return {name: a.shape for name, a in arrays.items() if a.dtype == np.uint8 and a.ndim == 3 and a.shape[2] == 3}


def read_frame(paths: list[Path], camera: str, shape: tuple[int, ...], t: int) -> np.ndarray:
    """uint8 [H, W, 3]: the frame of one step."""
    frame = read_arrays(paths[t], (camera,))[camera]
    if frame.dtype != np.uint8 or frame.shape != shape:
        problem = f"{frame.dtype} of shape {list(frame.shape)}, the first step's is uint8 {list(shape)}"
        raise RoboAlignError(problem, where=f"{paths[t]}, {camera}", fix=AGAIN)
    return frame
