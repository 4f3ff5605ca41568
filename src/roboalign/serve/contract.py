"""Define what a server requires of each request, describe it to the client, and check every request
against it."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from roboalign import __version__
from roboalign.core.errors import RoboAlignError
from roboalign.serve.wire import MAX_BYTES

STATE, PROMPT, NOISE_KEY = "observation/state", "prompt", "noise_key"
PREVIOUS, DELAY = "rtc/previous", "rtc/delay"
ENDPOINT, REQUESTS = "endpoint", "requests"
MAX_SENT_PIXELS = 1 << 24
"""Maximum pixels of one image, if the size of the training images is not known."""
MAX_TEXT = 1000
"""Maximum characters of an instruction or of one part of a noise key."""
OVERHEAD = 1 << 16
"""Bytes of a request in addition to its images."""


@dataclass(frozen=True)
class Query:
    """One checked request, as `Policy.act` takes it."""

    images: dict[str, np.ndarray]
    """Camera -> uint8 [H, W, 3]."""
    state: np.ndarray
    """float32 [S]; [0] if none was sent."""
    instruction: str
    noise_key: tuple[str | int, ...] | None = None
    previous: np.ndarray | None = None
    """float32 [n, A], raw units: the rest of the chunk that the robot executes now, for real-time
    chunking."""
    delay: int = 0
    """How many of these actions will be executed before the answer arrives."""


@dataclass(frozen=True)
class Contract:
    """What the policy requires in a request, and what it answers."""

    model: str
    """Identifies the policy: different policies have different names."""
    cameras: Mapping[str, tuple[int, int] | None]
    """Camera -> (height, width) in pixels; None if not known."""
    horizon: int
    """H, the number of actions in a chunk."""
    action_dim: int
    """A, the number of dimensions of an action."""
    state_dim: int | None = None
    """S, the number of dimensions of the state; None if not known."""
    needs_state: bool = False
    action_names: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()
    action_space: Mapping[str, Any] | None = None
    """`ActionSpace` as a map; None if not known."""
    fps: float | None = None
    """Actions per second of the training data; None if not known."""
    guided: bool = False
    """Whether a request may contain the rest of the last chunk (real-time chunking)."""
    remembers: bool = False
    """Whether answers can depend on the episode's earlier ones, so that a request without a noise
    key is given one that names its connection."""
    policy: Mapping[str, Any] = field(default_factory=dict)
    """What the policy says of itself (`Policy.metadata`)."""
    prompt: str | None = None
    """Instruction for requests without one; None: every request needs one."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Camera -> its key in a request, if this is not `observation/CAMERA`."""
    max_batch: int = 64
    """Maximum observations in one message, and in one forward pass."""

    @property
    def limit(self) -> int:
        """Maximum bytes of a message."""
        known = [3 * size[0] * size[1] for size in self.cameras.values() if size]
        if len(known) < len(self.cameras):
            return MAX_BYTES
        return min(MAX_BYTES, (sum(known) + OVERHEAD) * self.max_batch)

    def key_of(self, camera: str) -> str:
        """Return the key of a camera's image in a request."""
        return self.keys.get(camera, f"observation/{camera}")

    def metadata(self) -> dict[str, Any]:
        """Return the first frame of a connection as plain lists, numbers and text; None means not
        known."""
        wanted: dict[str, Any] = {
            self.key_of(camera): {
                "camera": camera,
                "dtype": "uint8",
                "shape": [*(size or (None, None)), 3],
                "required": True,
            }
            for camera, size in self.cameras.items()
        }
        wanted[STATE] = {
            "dtype": "float32",
            "shape": [self.state_dim],
            "names": list(self.state_names),
            "required": self.needs_state,
        }
        wanted[PROMPT] = {"dtype": "str", "required": self.prompt is None}
        return {
            "server": f"roboalign {__version__}",
            "model": self.model,
            "policy": dict(self.policy),
            "observation": wanted,
            "action": {
                "shape": [self.horizon, self.action_dim],
                "names": list(self.action_names),
                "space": None if self.action_space is None else dict(self.action_space),
            },
            "horizon": self.horizon,
            "fps": self.fps,
            "real_time_chunking": self.guided,
            "max_batch": self.max_batch,
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], where: str) -> "Contract":
        """Return the contract that `roboalign serve` sends in its first frame.

        A default instruction stays the server's own: `prompt` is None. Raises RoboAlignError if the
        metadata are not those of `roboalign serve`.
        """
        try:
            wanted, action = dict(metadata["observation"]), metadata["action"]
            state = wanted.pop(STATE)
            pictures = {entry["camera"]: key for key, entry in wanted.items() if key != PROMPT}
            shapes = {camera: wanted[key]["shape"][:2] for camera, key in pictures.items()}
            return cls(
                model=str(metadata["model"]),
                cameras={c: None if None in (h, w) else (h, w) for c, (h, w) in shapes.items()},
                horizon=int(action["shape"][0]),
                action_dim=int(action["shape"][1]),
                state_dim=state["shape"][0],
                needs_state=bool(state["required"]),
                action_names=tuple(action["names"]),
                state_names=tuple(state["names"]),
                action_space=action["space"],
                fps=metadata["fps"],
                guided=bool(metadata["real_time_chunking"]),
                keys={c: key for c, key in pictures.items() if key != f"observation/{c}"},
                max_batch=int(metadata["max_batch"]),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RoboAlignError(
                f"its metadata are not those of `roboalign serve` ({type(error).__name__}: {error})",
                where=where,
                fix="serve it with the same version of roboalign",
            ) from None

    def read(self, message: Any) -> list[Query]:
        """Return the observations of a request: one, or those listed under `requests`.

        Raises RoboAlignError for the first fault, naming the field and the fix.
        """
        if not isinstance(message, dict):
            raise RoboAlignError(
                f"a {type(message).__name__} instead of a map", where="message", fix="send a map"
            )
        if REQUESTS not in message:
            return [self._query(message, "")]
        many = message[REQUESTS]
        if len(message) > 1 or not isinstance(many, list) or not 1 <= len(many) <= self.max_batch:
            raise RoboAlignError(
                f"`{REQUESTS}` is a list of 1 to {self.max_batch} requests and the only key",
                where=REQUESTS,
                fix="send fewer at once, and no other key",
            )
        for number, one in enumerate(many):
            if not isinstance(one, dict):
                raise RoboAlignError(
                    "not a map", where=f"{REQUESTS}[{number}]", fix="send a map for each"
                )
        return [self._query(one, f"{REQUESTS}[{number}].") for number, one in enumerate(many)]

    def blank(self) -> Query:
        """Return a query with black images and a state of zeros, for the warm-up."""
        images = {
            camera: np.zeros((*(size or (224, 224)), 3), np.uint8)
            for camera, size in self.cameras.items()
        }
        return Query(images, np.zeros(self.state_dim or 0, np.float32), "warm up", ("warm up",))

    def _query(self, request: dict[Any, Any], at: str) -> Query:
        self._check_keys(request, at)
        images = {
            camera: _picture(request[self.key_of(camera)], at + self.key_of(camera), size)
            for camera, size in self.cameras.items()
        }
        previous, delay = self._guide(request, at)
        return Query(
            images,
            self._state(request.get(STATE), at + STATE),
            _prompt(request.get(PROMPT, self.prompt), at + PROMPT),
            _noise_key(request.get(NOISE_KEY), at + NOISE_KEY),
            previous,
            delay,
        )

    def _check_keys(self, request: dict[Any, Any], at: str) -> None:
        pictures = [self.key_of(camera) for camera in self.cameras]
        required = [*pictures, *([STATE] if self.needs_state else [])]
        required += [PROMPT] if self.prompt is None else []
        known = [*pictures, STATE, PROMPT, NOISE_KEY, *((PREVIOUS, DELAY) if self.guided else ())]
        for key in request:
            if key not in known:
                name = str(key)[:60]
                near = difflib.get_close_matches(name, known, 1)
                meant = f"did you mean {near[0]}? " if near else ""
                fix = f"{meant}Read are {', '.join(known)}"
                raise RoboAlignError("this key is not read", where=at + name, fix=fix)
        for key in required:
            if key not in request:
                raise RoboAlignError(
                    "it is missing", where=at + key, fix=f"send {', '.join(required)}"
                )

    def _state(self, value: Any, where: str) -> np.ndarray:
        if value is None:
            if self.needs_state:
                raise RoboAlignError("it is missing", where=where, fix="send the robot's state")
            return np.zeros(0, np.float32)
        width = "S" if self.state_dim is None else str(self.state_dim)
        named = f" ({', '.join(self.state_names)})" if self.state_names else ""
        array = _numbers(value, where, f"float32 [{width}]{named}", dimensions=1)
        if self.state_dim is not None and len(array) != self.state_dim:
            raise RoboAlignError(
                f"{len(array)} numbers", where=where, fix=f"send float32 [{width}]{named}"
            )
        return array

    def _guide(self, request: dict[Any, Any], at: str) -> tuple[np.ndarray | None, int]:
        previous, delay = request.get(PREVIOUS), request.get(DELAY, 0)
        if previous is None:
            if DELAY in request:
                raise RoboAlignError(
                    f"given without {PREVIOUS}", where=at + DELAY, fix="send both, or neither"
                )
            return None, 0
        fix = f"float32 [1 to {self.horizon}, {self.action_dim}], raw units"
        array = _numbers(previous, at + PREVIOUS, fix, dimensions=2)
        if not 1 <= len(array) <= self.horizon or array.shape[1] != self.action_dim:
            raise RoboAlignError(
                f"its shape is {list(array.shape)}", where=at + PREVIOUS, fix=f"send {fix}"
            )
        whole = isinstance(delay, int | np.integer) and not isinstance(delay, bool)
        if not whole or not 0 <= delay <= len(array):
            raise RoboAlignError(
                f"{str(delay)[:40]} is not within the {len(array)} actions of {PREVIOUS}",
                where=at + DELAY,
                fix="send the number of control steps until the answer is used",
            )
        return array, int(delay)


def _picture(value: Any, where: str, size: tuple[int, int] | None) -> np.ndarray:
    height, width = size or ("H", "W")
    fix = f"send uint8 [{height}, {width}, 3], RGB, upright"
    if not isinstance(value, np.ndarray):
        raise RoboAlignError(f"a {type(value).__name__} instead of an array", where=where, fix=fix)
    fits = (
        value.ndim == 3
        and value.shape[2] == 3
        and 0 < math.prod(value.shape) <= 3 * MAX_SENT_PIXELS
    )
    if value.dtype != np.uint8 or not fits or (size and value.shape[:2] != tuple(size)):
        raise RoboAlignError(f"{value.dtype} {list(value.shape)}", where=where, fix=fix)
    return value


def _numbers(value: Any, where: str, expected: str, *, dimensions: int) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise RoboAlignError(f"{kind} instead of numbers", where=where, fix=f"send {expected}")
    if value.ndim != dimensions:
        raise RoboAlignError(
            f"its shape is {list(value.shape)}", where=where, fix=f"send {expected}"
        )
    with np.errstate(over="ignore"):
        array = value.astype(np.float32)
    if not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0].tolist()
        raise RoboAlignError(
            f"not finite at {place}", where=where, fix="send no observation until the sensor reads"
        )
    return array


def _prompt(value: Any, where: str) -> str:
    fix = f"send the instruction as text of 1 to {MAX_TEXT} characters"
    try:
        text = (
            value.item()
            if isinstance(value, np.ndarray | np.generic) and value.ndim == 0
            else value
        )
    except ValueError:
        text = None  # not Unicode
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
        kind = f"text of {len(text)} characters" if isinstance(text, str) else type(value).__name__
        raise RoboAlignError(f"a {kind}", where=where, fix=fix)
    return text


def _noise_key(value: Any, where: str) -> tuple[str | int, ...] | None:
    if value is None:
        return None
    whole = isinstance(value, list) and 1 <= len(value) <= 8
    if not whole or not all(
        isinstance(part, str | int) and not isinstance(part, bool) and len(str(part)) <= MAX_TEXT
        for part in value
    ):
        raise RoboAlignError(
            "not a key", where=where, fix="send a list of 1 to 8 texts and whole numbers"
        )
    return tuple(value)
