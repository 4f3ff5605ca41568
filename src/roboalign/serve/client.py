"""Call a policy on a remote server as if it were local.

Needs only NumPy, msgpack and websockets, since a robot's computer may have no PyTorch.
"""

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from websockets.exceptions import ConnectionClosed

from roboalign.core.errors import RoboAlignError
from roboalign.serve.connection import Connection, NoAnswer, uri_of
from roboalign.serve.wire import pack_message, unpack_message


class RemoteObservation(Protocol):
    """What the robot sees: any object with these attributes."""

    @property
    def images(self) -> Mapping[str, np.ndarray]:
        """Map each camera to uint8 [H, W, 3], RGB, upright."""
        ...

    @property
    def state(self) -> np.ndarray:
        """Proprioception, float [S]."""
        ...

    @property
    def instruction(self) -> str: ...


class RemotePolicy:
    """`act` and `act_batch` of the policy at `host:port`, over one connection.

    A lost connection is reopened once per call, and the request is sent again; this is safe because
    the answer depends only on the request. A server that then has a different policy is refused.
    Threads may share this object; they take turns.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | None = 8000,
        *,
        api_key: str | None = None,
        timeout: float = 10.0,
        connect_timeout: float = 5.0,
    ) -> None:
        """Connect. `host` may be a complete `ws://` or `wss://` address; `timeout` limits the wait
        for an answer, in seconds.

        Raises RoboAlignError if no policy can be reached or if the key is refused.
        """
        self.uri = uri_of(host, port)
        self._lock = threading.Lock()
        self._keys: dict[str, str] = {}
        self.metadata: dict[str, Any] = {}
        """What the server says about the policy: docs/reference/wire.md."""
        self._connection = Connection(
            self.uri,
            self._accept,
            api_key=api_key,
            timeout=timeout,
            connect_timeout=connect_timeout,
        )
        with self._lock:
            self._connection.open()

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and opened again."""
        return self._connection.reconnects

    @property
    def horizon(self) -> int:
        """H, the number of actions in a chunk."""
        return int(self.metadata["horizon"])

    @property
    def fps(self) -> float | None:
        """Actions per second of the training data; None if the server does not know."""
        rate = self.metadata.get("fps")
        return None if rate is None else float(rate)

    def act(
        self,
        observation: RemoteObservation,
        noise_key: Sequence[str | int] | None = None,
        *,
        previous: np.ndarray | None = None,
        delay: int = 0,
    ) -> np.ndarray:
        """Return the chunk for one observation, float32 [H, A] in raw units.

        For real-time chunking, `previous` is what the robot has left of the last chunk, float [n,
        A] in raw units, from this observation on. `delay` is how many of these actions it will
        execute before it uses the answer.

        Raises RoboAlignError if the server refuses the observation, does not answer in time or
        cannot be reached.
        """
        request = self._request(observation, noise_key)
        if previous is not None:
            request |= {"rtc/previous": np.asarray(previous, np.float32), "rtc/delay": int(delay)}
        return self._actions(self.infer(request), 2)

    def act_batch(
        self,
        observations: Sequence[RemoteObservation],
        noise_keys: Sequence[Sequence[str | int] | None] | None = None,
    ) -> np.ndarray:
        """Return chunks for a batch of observations, float32 [B, H, A] in raw units.

        Sends as many observations per message as the server accepts.
        """
        keys = [None] * len(observations) if noise_keys is None else list(noise_keys)
        if len(keys) != len(observations):
            raise RoboAlignError(
                f"{len(observations)} observations but {len(keys)} noise keys", where="noise_keys"
            )
        requests = [self._request(seen, key) for seen, key in zip(observations, keys)]
        most = int(self.metadata.get("max_batch", 1))
        parts = [requests[start : start + most] for start in range(0, len(requests), most)]
        answers = [self._actions(self.infer({"requests": part}), 3) for part in parts]
        return np.concatenate(answers)

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request unchanged and return the map of the reply. The name is openpi's."""
        with self._lock:
            reply = self._connection.ask(dict(request))
        if isinstance(reply, str):
            raise RoboAlignError(reply, where=self.uri)
        answer = unpack_message(reply)
        if not isinstance(answer, dict):
            raise RoboAlignError("the reply is no map", where=self.uri)
        return answer

    def reset(self) -> None:
        """Report the end of an episode. Only a recording server needs it; the policy has no
        memory."""
        with self._lock:
            if self._connection.socket is not None:
                try:
                    self._connection.exchange(pack_message({"endpoint": "reset"}))
                except (ConnectionClosed, OSError):
                    self._connection.drop()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            self._connection.drop()

    def __enter__(self) -> "RemotePolicy":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _request(
        self, observation: RemoteObservation, noise_key: Sequence[str | int] | None
    ) -> dict[str, Any]:
        request: dict[str, Any] = {"prompt": str(observation.instruction)}
        for camera, key in self._keys.items():
            if camera not in observation.images:
                raise RoboAlignError(
                    f"no image of camera {camera!r}; there are {sorted(observation.images)}",
                    where="observation",
                    fix="name the robot's cameras as the policy does",
                )
            request[key] = observation.images[camera]
        state = np.asarray(observation.state)
        if state.size:
            request["observation/state"] = state
        if noise_key is not None:
            request["noise_key"] = [
                part if isinstance(part, str) else int(part) for part in noise_key
            ]
        return request

    def _actions(self, reply: Mapping[str, Any], dimensions: int) -> np.ndarray:
        actions = reply.get("actions")
        if not isinstance(actions, np.ndarray) or actions.ndim != dimensions:
            raise RoboAlignError("the reply holds no chunk of actions", where=self.uri)
        if not np.isfinite(actions).all():
            raise RoboAlignError("the actions are not finite", where=self.uri)
        return actions.astype(np.float32)  # a copy, since the received array is a read-only view

    def _accept(self, metadata: Any) -> None:
        """Keep the metadata of a connection. Raises RoboAlignError if it is not what
        `roboalign serve` sends, or if the server now has another policy."""
        wanted = metadata.get("observation") if isinstance(metadata, dict) else None
        if not isinstance(wanted, dict) or not isinstance(metadata.get("horizon"), int):
            raise RoboAlignError(
                "its metadata does not say what it wants to be sent",
                where=self.uri,
                fix="for a server that is not `roboalign serve`, use openpi-client",
            )
        now, was = metadata.get("model"), self.metadata.get("model")
        if self.metadata and now != was:
            raise NoAnswer(
                f"the server now has another policy ({now}, was {was})",
                where=self.uri,
                fix="make a new RemotePolicy, if that is meant",
            )
        self.metadata = metadata
        self._keys = {
            entry["camera"]: key
            for key, entry in wanted.items()
            if isinstance(entry, dict) and "camera" in entry
        }
