"""Call a policy on a remote server as if it were local.

Needs only NumPy, msgpack and websockets, since a robot's computer may have no PyTorch.
"""

import ipaddress
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
)
from websockets.sync.client import ClientConnection, connect

from roboalign.core.errors import RoboAlignError
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


class NoAnswer(RoboAlignError):
    """No answer came: the policy cannot be reached, is too late, or is another one by now."""


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
        self.uri = host if host.startswith(("ws://", "wss://")) else f"ws://{_bracketed(host)}"
        self.uri += f":{port}" if port is not None else ""
        self.api_key, self.timeout, self.connect_timeout = api_key, timeout, connect_timeout
        self.reconnects = 0
        self._lock = threading.Lock()
        self._connection: ClientConnection | None = None
        self._keys: dict[str, str] = {}
        self.metadata: dict[str, Any] = {}
        """What the server says about the policy: docs/reference/wire.md."""
        with self._lock:
            self._open()

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
        message = pack_message(dict(request))
        with self._lock:
            again = self._connection is None
            if again:
                self._reopen()
            try:
                reply = self._exchange(message)
            except (ConnectionClosed, OSError) as error:
                if again:
                    raise self._lost(error) from None
                self._reopen()
                try:
                    reply = self._exchange(message)
                except (ConnectionClosed, OSError) as second:
                    raise self._lost(second) from None
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
            if self._connection is not None:
                try:
                    self._exchange(pack_message({"endpoint": "reset"}))
                except (ConnectionClosed, OSError):
                    self._drop()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            self._drop()

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

    def _exchange(self, message: bytes) -> str | bytes:
        assert self._connection is not None
        self._connection.send(message)
        try:
            reply = self._connection.recv(timeout=self.timeout)
        except TimeoutError:
            # A late answer would be taken for the answer to the next request.
            self._drop()
            raise NoAnswer(
                f"no answer within {self.timeout:g} s",
                where=self.uri,
                fix="look at the server, or give a longer timeout",
            ) from None
        return reply

    def _reopen(self) -> None:
        self._drop()
        before = self.metadata
        self._open()
        self.reconnects += 1
        now, was = self.metadata.get("model"), before.get("model")
        if now != was:
            self._drop()
            self.metadata = before  # so that the next call is refused too
            raise NoAnswer(
                f"the server now has another policy ({now}, was {was})",
                where=self.uri,
                fix="make a new RemotePolicy, if that is meant",
            )

    def _open(self) -> None:
        headers = {"Authorization": f"Api-Key {self.api_key}"} if self.api_key else None
        try:
            opening = connect(
                self.uri,
                compression=None,
                max_size=1 << 26,
                additional_headers=headers,
                open_timeout=self.connect_timeout,
                close_timeout=1.0,
                proxy=None if _is_local(self.uri) else True,
            )
            connection: ClientConnection = ExitStack().enter_context(opening)  # closed by `_drop`
        except InvalidStatus as error:
            raise self._refused(error.response.status_code, bool(self.api_key)) from None
        except (InvalidURI, InvalidHandshake, InvalidMessage, OSError) as error:
            raise self._lost(error) from None
        self._connection = connection
        try:
            metadata = unpack_message(connection.recv(timeout=self.connect_timeout))
        except (TimeoutError, ConnectionClosed, RoboAlignError) as error:
            self._drop()
            raise RoboAlignError(
                f"it does not speak openpi's protocol ({error})", where=self.uri
            ) from None
        self.metadata, self._keys = metadata, self._cameras(metadata)

    def _cameras(self, metadata: Any) -> dict[str, str]:
        """Return camera -> key as `roboalign serve` describes them. Raises RoboAlignError if the
        metadata does not."""
        wanted = metadata.get("observation") if isinstance(metadata, dict) else None
        if not isinstance(wanted, dict) or not isinstance(metadata.get("horizon"), int):
            self._drop()
            raise RoboAlignError(
                "its metadata does not say what it wants to be sent",
                where=self.uri,
                fix="for a server that is not `roboalign serve`, use openpi-client",
            )
        return {
            entry["camera"]: key
            for key, entry in wanted.items()
            if isinstance(entry, dict) and "camera" in entry
        }

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _lost(self, error: Exception) -> RoboAlignError:
        self._drop()
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return NoAnswer(
            f"no policy can be reached ({reason})",
            where=self.uri,
            fix="start it with: roboalign serve RUN_OR_POLICY",
        )

    def _refused(self, status: int, keyed: bool) -> RoboAlignError:
        reasons = {
            401: ("the key is wrong" if keyed else "it asks for a key", "pass api_key"),
            503: ("it is stopping or has no free connection", "try again later"),
        }
        problem, fix = reasons.get(status, (f"it answered HTTP {status}", "check host and port"))
        return NoAnswer(problem, where=self.uri, fix=fix)


def _bracketed(host: str) -> str:
    """Return `host`, with brackets if it is an IPv6 address."""
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


def _is_local(uri: str) -> bool:
    """Return whether the address is on this machine, which is reached without a proxy."""
    host = uri.split("://", 1)[1].split("/", 1)[0].rsplit(":", 1)[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
