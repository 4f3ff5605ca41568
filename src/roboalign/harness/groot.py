"""Ask a GR00T policy server: msgpack over ZMQ, one request at a time.

Needs pyzmq (the extra `groot`). Arrays are NPY files inside msgpack maps; nothing is unpickled, and an
array's header is checked against its bytes before the array is built.
"""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.harness.presets import broken_answer, first_of_batch, sent_image
from roboalign.harness.settings import LIBERO, ClientConfig, WorldShape
from roboalign.harness.wires import CONNECT_SECONDS, CONTINUE, as_json_values, require_same_server
from roboalign.serve.wire import DTYPE, MAX_BYTES, MAX_DIMENSIONS, MAX_ENTRIES
from roboalign.sim.base import EnvironmentCrash, Observation
from roboalign.sim.rollout import Key

TASK_KEY = "annotation.human.action.task_description"
VIDEO_KEYS = {"agentview": "image", "wrist": "wrist_image"}
STATE_KEYS = {"x": 1, "y": 1, "z": 1, "roll": 1, "pitch": 1, "yaw": 1, "gripper": 2}
"""GR00T's names of LIBERO's state, with how many numbers each takes; of an action each takes one."""


class ZmqWire:
    """GR00T's protocol over one REQ socket. A REQ socket whose answer is late is closed and made
    new, since it would wait for that answer for ever."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float,
        api_key: str | None = None,
        expected: Mapping[str, Any] | None = None,
    ) -> None:
        """Connect, ask for a sign of life and for the modalities.

        Raises RoboAlignError if nothing answers, or another server than the `expected` metadata
        says.
        """
        import zmq

        self.address, self.timeout, self.api_key = address, timeout, api_key
        self._context = zmq.Context()
        self._socket: Any = None
        try:
            self.metadata = self._describe()
            require_same_server(
                expected or as_json_values(self.metadata), as_json_values(self.metadata), address
            )
        except RoboAlignError:
            self.close()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the map of actions. Raises EnvironmentCrash for an error or a late answer,
        RoboAlignError if the server is gone."""
        answer = self._call("get_action", request)
        actions = answer[0] if isinstance(answer, list) and answer else answer
        if not isinstance(actions, dict):
            raise broken_answer(f"a {type(actions).__name__} instead of a map of actions")
        return actions

    def begin_episode(self) -> None:
        """Send `reset`."""
        self._call("reset", {"options": None})

    def close(self) -> None:
        self._drop()
        self._context.term()

    def _describe(self) -> dict[str, Any]:
        self._ping()
        try:
            config = self._call("get_modality_config", None)
        except EnvironmentCrash:  # other servers of this protocol have no such endpoint
            config = None
        return {"modality_config": config}

    def _ping(self) -> None:
        """Raise RoboAlignError if the server does not answer a ping."""
        if self._exchange(_packed("ping", None, self.api_key), CONNECT_SECONDS) is None:
            raise RoboAlignError(
                f"no policy answers within {CONNECT_SECONDS:g} s", where=self.address, fix=CONTINUE
            )

    def _call(self, endpoint: str, data: Any) -> Any:
        frame = self._exchange(_packed(endpoint, data, self.api_key), self.timeout)
        if frame is None:
            self._ping()  # a server that is gone stops the command
            raise broken_answer(f"no answer within {self.timeout:g} s")
        answer = read_message(frame)
        if isinstance(answer, dict) and "error" in answer:
            raise broken_answer(f"an error: {answer['error']}")
        return answer

    def _exchange(self, message: bytes, seconds: float) -> bytes | None:
        """Return the next frame; None, with a new socket next time, if none comes in time."""
        import zmq

        if self._socket is None:
            self._socket = self._context.socket(zmq.REQ)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
            try:
                self._socket.connect(self.address)
            except zmq.ZMQError as error:
                raise RoboAlignError(
                    f"it is no address ({error})", where=self.address, fix="give tcp://host:port"
                ) from None
        self._socket.send(message)
        if not self._socket.poll(1000 * seconds):
            self._drop()
            return None
        frame: bytes = self._socket.recv()
        return frame

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None


class GrootPreset:
    """GR00T's observation: video, state and language by key, each with a batch and a time axis.

    On LIBERO the keys are those of GR00T's tag `libero_sim`. Elsewhere nobody has defined any: the
    cameras keep their names, the state is `state`, the action `action`.
    """

    def __init__(self, config: ClientConfig, world: WorldShape) -> None:
        self.config, self.libero = config, world.section == LIBERO

    def pictures(self, observation: Observation) -> dict[str, np.ndarray]:
        names = VIDEO_KEYS if self.libero else {}
        return {
            names.get(camera, camera): sent_image(image, self.config.image_size)
            for camera, image in observation.images.items()
        }

    def request(self, observation: Observation, key: Key) -> dict[str, Any]:
        video = {name: image[None, None] for name, image in self.pictures(observation).items()}
        state = {name: part[None, None] for name, part in self._state(observation.state).items()}
        if self.config.flat:
            sent = {
                **{f"video.{name}": value for name, value in video.items()},
                **{f"state.{name}": value for name, value in state.items()},
                TASK_KEY: (observation.instruction,),
            }
        else:
            language = {TASK_KEY: [[observation.instruction]]}
            sent = {"video": video, "state": state, "language": language}
        return {"observation": sent, "options": None}

    def actions(self, reply: Mapping[str, Any]) -> Any:
        parts = {str(name).removeprefix("action."): value for name, value in reply.items()}
        names = list(STATE_KEYS) if self.libero else ["action"]
        missing = [name for name in names if not isinstance(parts.get(name), np.ndarray)]
        if missing:
            raise broken_answer(f"no action {missing[0]!r}, but {', '.join(parts) or 'none'}")
        chunks = [first_of_batch(parts[name]) for name in names]
        chunks = [chunk[:, None] if chunk.ndim == 1 else chunk for chunk in chunks]
        lengths = {chunk.shape[0] if chunk.ndim == 2 else -1 for chunk in chunks}
        if len(lengths) != 1 or lengths == {-1}:
            shapes = ", ".join(f"{name} {list(parts[name].shape)}" for name in names)
            raise broken_answer(f"its actions do not fit together: {shapes}")
        return np.concatenate(chunks, axis=1)

    def _state(self, state: np.ndarray) -> dict[str, np.ndarray]:
        state = state.astype(np.float32)
        if not self.libero:
            return {"state": state}
        if self.config.state_rotation == "euler":
            from scipy.spatial.transform import Rotation

            state = state.copy()
            state[3:6] = Rotation.from_rotvec(state[3:6]).as_euler("xyz")
        ends = np.cumsum(list(STATE_KEYS.values()))
        return dict(zip(STATE_KEYS, np.split(state, ends[:-1]), strict=True))


def pack_value(value: Any) -> bytes:
    """Return a message with arrays as NPY files. Raises TypeError for what the protocol lacks."""
    packed: bytes = msgpack.packb(value, default=_as_npy)
    return packed


def read_message(data: bytes) -> Any:
    """Return a message, with arrays for NPY maps and for those of msgpack-numpy.

    Raises EnvironmentCrash for anything else: nothing is unpickled, and no array is larger than its
    bytes.
    """
    try:
        return msgpack.unpackb(
            data,
            object_hook=_read_map,
            strict_map_key=False,
            max_bin_len=MAX_BYTES,
            max_str_len=1 << 20,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_ext_len=16,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise broken_answer(f"an unreadable answer ({error})") from None


def _packed(endpoint: str, data: Any, api_key: str | None) -> bytes:
    message: dict[str, Any] = {"endpoint": endpoint}
    if data is not None:
        message["data"] = data
    if api_key is not None:
        message["api_token"] = api_key
    return pack_value(message)


def _as_npy(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufU":
        raise TypeError(f"{type(value).__name__} cannot be sent")
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def _read_map(items: dict[Any, Any]) -> Any:
    named = {_name(key): value for key, value in items.items()}
    for mark, read in (("__ndarray_class__", _from_npy), ("nd", _from_parts)):
        if named.get(mark) is True:
            return read(named)
    if "__ModalityConfig_class__" in named:
        return named.get("as_json")
    return items


def _from_npy(items: Mapping[str, Any]) -> np.ndarray:
    file = io.BytesIO(_bytes(items.get("as_npy")))
    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"an NPY file of version {version}")
    shape, _, dtype = readers[version](file)
    _check_array(dtype, shape, len(file.getvalue()) - file.tell())
    file.seek(0)
    array: np.ndarray = np.load(file, allow_pickle=False)
    return array


def _from_parts(items: Mapping[str, Any]) -> np.ndarray:
    name, shape, data = items.get("type"), items.get("shape"), _bytes(items.get("data"))
    name = name.decode("ascii", "replace") if isinstance(name, bytes) else name
    if not isinstance(name, str) or not DTYPE.fullmatch(name) or not isinstance(shape, list):
        raise ValueError(f"an array of {str(name)[:40]!r}")
    dtype = np.dtype(name)
    _check_array(dtype, shape, len(data))
    return np.ndarray(tuple(shape), dtype, data)


def _check_array(dtype: np.dtype, shape: Any, size: int) -> None:
    """Raise ValueError if an array of this type and shape does not have `size` bytes."""
    whole = all(type(length) is int and 0 <= length < 1 << 31 for length in shape)
    if dtype.kind not in "biufU" or not whole or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"an array of {dtype} {list(shape)}")
    expected = math.prod(shape) * dtype.itemsize
    if size != expected:
        raise ValueError(f"an array of {dtype} {list(shape)} with {size} bytes, not {expected}")


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"an array whose data is {type(value).__name__}")
    return value


def _name(key: Any) -> Any:
    return key.decode("ascii", "replace") if isinstance(key, bytes) else key
