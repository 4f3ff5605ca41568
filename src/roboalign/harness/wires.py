"""Ask somebody's policy server over openpi's websocket protocol, one connection per environment."""

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.harness.presets import broken_answer
from roboalign.serve.connection import Connection, Silent
from roboalign.serve.wire import unpack_message

CONTINUE = "start the server; the same command then continues from here"
CONNECT_SECONDS = 10.0


class Wire(Protocol):
    """One open connection to a policy server."""

    metadata: dict[str, Any]
    """What the server says of itself."""

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a request.

        Raises EnvironmentCrash if the server answers with an error, unreadably, or too late, and
        RoboAlignError if it cannot be reached or is another server.
        """

    def begin_episode(self) -> None:
        """Tell the server that an episode begins, where its protocol has a word for it."""

    def close(self) -> None:
        """Close the connection."""


class WebsocketWire:
    """openpi's protocol: metadata first, then one reply per request."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float,
        api_key: str | None = None,
        expected: Mapping[str, Any] | None = None,
    ) -> None:
        """Connect. `expected` is the metadata, as `as_json_values` gives it, of the server that is meant.

        Raises RoboAlignError if it cannot be reached, does not speak the protocol, or is another.
        """
        self.metadata: dict[str, Any] = {}
        self._expected = expected
        self._connection = Connection(
            address,
            self._accept,
            api_key=api_key,
            timeout=timeout,
            connect_timeout=CONNECT_SECONDS,
            pings=False,  # openpi's server answers none while it computes
            hint=CONTINUE,
        )
        self._connection.open()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            frame = self._connection.ask(request)
        except Silent as error:
            raise broken_answer(error.problem) from None
        if isinstance(frame, str):
            raise broken_answer(f"an error: {_essence(frame)}")
        try:
            reply = unpack_message(frame)
        except RoboAlignError as error:
            raise broken_answer(f"an unreadable answer: {error.problem}") from None
        if not isinstance(reply, dict):
            raise broken_answer(f"a {type(reply).__name__} instead of a map")
        return reply

    def begin_episode(self) -> None:
        """Do nothing: openpi's protocol has no word for it."""

    def close(self) -> None:
        self._connection.drop()

    def _accept(self, metadata: Any) -> None:
        if not isinstance(metadata, dict):
            raise RoboAlignError(
                f"its metadata is a {type(metadata).__name__}, not a map",
                where=self._connection.uri,
            )
        said = as_json_values(metadata)
        if self._expected is None:
            self._expected = said
        require_same_server(self._expected, said, self._connection.uri)
        self.metadata = metadata


def require_same_server(expected: Mapping[str, Any], said: Mapping[str, Any], where: str) -> None:
    """Raise RoboAlignError that names what differs if the metadata is another server's."""
    if dict(expected) == dict(said):
        return
    differ = [key for key in {**expected, **said} if expected.get(key) != said.get(key)]
    values = "; ".join(
        f"`{key}` was {str(expected.get(key))[:60]} and is {str(said.get(key))[:60]}"
        for key in differ[:3]
    )
    raise RoboAlignError(
        f"another server answers now: {values}",
        where=where,
        fix="start the first server again, or score this one with another --out",
    )


def as_json_values(value: Any) -> Any:
    """Return metadata as JSON values: arrays as lists, numbers that JSON lacks as text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {_text(key): as_json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json_values(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def describe(metadata: Mapping[str, Any], width: int = 160) -> list[str]:
    """Return the metadata as lines of `key: value`, long values cut."""
    lines = []
    for key, value in as_json_values(metadata).items():
        text = json.dumps(value)
        lines.append(f"{key}: {text if len(text) <= width else text[: width - 3] + '...'}")
    return lines


def _text(key: Any) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)


def _essence(frame: str) -> str:
    """Return the last line of a traceback, which names the error, or the whole of a short text."""
    lines = [line.strip() for line in frame.splitlines() if line.strip()]
    traced = any(line.startswith("Traceback (most recent call last)") for line in lines)
    return lines[-1] if traced else " ".join(lines)
