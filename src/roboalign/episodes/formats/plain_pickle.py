"""The plain values and numpy arrays of a pickle, read without calling anything that it names.

pickle.load would call whatever a file names, and numpy's part of it crashes the process on a damaged array. So the
few instructions that plain values and arrays need are followed here, in Python alone; pickletools only splits them.
"""

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np


class Name(str):
    """One of the functions that a pickled array names; unlike text, it may be called."""


NAMES = {
    "numpy.dtype": Name("dtype"),
    "numpy.ndarray": Name("ndarray"),  # is only ever handed to _reconstruct
    "numpy.core.multiarray._reconstruct": Name("array"),
    "numpy.core.multiarray.scalar": Name("scalar"),
}
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}
TAKE_ALL = ("TUPLE", "APPENDS", "SETITEMS", "ADDITEMS")  # since the last mark
WITH_ARGUMENT = re.compile(
    r"(?:SHORT_)?(?:BINUNICODE|BINBYTES)8?|BININT[12]?|BINFLOAT|LONG[14]|UNICODE|INT|LONG|FLOAT"
)
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
            stack.append(
                name_of(
                    *(argument.split(" ") if name == "GLOBAL" else (stack.pop(-2), stack.pop()))
                )
            )
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
    if (
        not isinstance(dtype, np.dtype)
        or not isinstance(shape, tuple)
        or not all(type(n) is int for n in shape)
    ):
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
        if (
            dtype.kind == "U"
            and flat.astype(dtype.newbyteorder("=")).view(np.uint32).max() > 0x10FFFF
        ):
            raise ValueError("an array of text holds what is no character")
    return flat.reshape(shape, order=order).copy(order)
