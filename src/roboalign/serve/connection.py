"""Hold one websocket to a policy server: open it, exchange frames, reopen it once if it is lost.

Needs only msgpack and websockets, since a robot's computer may have no PyTorch.
"""

import ipaddress
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
)
from websockets.sync.client import ClientConnection, connect

from roboalign.core.errors import RoboAlignError
from roboalign.serve.wire import MAX_BYTES, pack_message, unpack_message


class NoAnswer(RoboAlignError):
    """No answer came: the policy cannot be reached, is too late, or is another one by now."""


class Silent(NoAnswer):
    """The server can be reached, but is too late, or closes every connection without an answer."""


class Connection:
    """One websocket to `uri`. Not for several threads at once.

    A lost connection is reopened once per request, and the request is sent again; this is safe
    because an answer of openpi's protocol depends only on its request.
    """

    def __init__(
        self,
        uri: str,
        accept: Callable[[Any], None],
        *,
        api_key: str | None = None,
        timeout: float = 10.0,
        connect_timeout: float = 5.0,
        pings: bool = True,
        hint: str = "start it with: roboalign serve RUN_OR_POLICY",
    ) -> None:
        """Prepare; `open` connects. `accept` gets the metadata of every connection that is opened,
        and may raise RoboAlignError to refuse the server.

        Without `pings`, a server that answers no ping while it computes keeps its connection.
        `hint` is the fix if the server cannot be reached.
        """
        self.uri, self.accept, self.api_key = uri, accept, api_key
        self.timeout, self.connect_timeout = timeout, connect_timeout
        self.ping_interval, self.hint = (20.0 if pings else None), hint
        self.reconnects = 0
        self.socket: ClientConnection | None = None

    def open(self) -> None:
        """Connect. Raises NoAnswer if no policy can be reached or the key is refused, RoboAlignError
        if it is no server of this protocol or `accept` refuses it."""
        headers = {"Authorization": f"Api-Key {self.api_key}"} if self.api_key else None
        try:
            opening = connect(
                self.uri,
                compression=None,
                max_size=MAX_BYTES,
                additional_headers=headers,
                open_timeout=self.connect_timeout,
                close_timeout=1.0,
                ping_interval=self.ping_interval,
                proxy=None if _is_local(self.uri) else True,
            )
            self.socket = ExitStack().enter_context(opening)  # closed by `drop`
        except InvalidStatus as error:
            raise self._refused(error.response.status_code) from None
        except (InvalidURI, InvalidHandshake, InvalidMessage, ConnectionClosed, OSError) as error:
            raise self._unreachable(error) from None
        try:
            metadata = unpack_message(self.socket.recv(timeout=self.connect_timeout))
        except (TimeoutError, ConnectionClosed, RoboAlignError) as error:
            self.drop()
            raise RoboAlignError(
                f"it does not speak openpi's protocol ({error})", where=self.uri
            ) from None
        try:
            self.accept(metadata)
        except RoboAlignError:
            self.drop()
            raise

    def ask(self, request: dict[str, Any]) -> str | bytes:
        """Send a request and return the frame of the reply; a text is an error of the server.

        Raises Silent if the server can be reached and does not answer, and what `open` raises.
        """
        message = pack_message(request)
        again = self.socket is None
        if again:
            self._reopen()
        try:
            return self.exchange(message)
        except (ConnectionClosed, OSError) as error:
            if again:
                raise self._closed(error) from None
        self._reopen()
        try:
            return self.exchange(message)
        except (ConnectionClosed, OSError) as error:
            raise self._closed(error) from None

    def exchange(self, message: bytes) -> str | bytes:
        """Send a frame over the open connection and return the next one. Raises Silent after
        `timeout` seconds, ConnectionClosed or OSError if the connection is lost."""
        assert self.socket is not None
        self.socket.send(message)
        try:
            return self.socket.recv(timeout=self.timeout)
        except TimeoutError:
            # A late answer would be taken for the answer to the next request.
            self.drop()
            raise Silent(
                f"no answer within {self.timeout:g} s",
                where=self.uri,
                fix="look at the server, or give a longer timeout",
            ) from None

    def drop(self) -> None:
        """Close the connection; the next request opens a new one."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def _reopen(self) -> None:
        self.drop()
        self.open()
        self.reconnects += 1

    def _closed(self, error: Exception) -> Silent:
        self.drop()
        return Silent(
            f"it closed a new connection without an answer ({_reason(error)})",
            where=self.uri,
            fix="look at the server",
        )

    def _unreachable(self, error: Exception) -> NoAnswer:
        self.drop()
        return NoAnswer(
            f"no policy can be reached ({_reason(error)})", where=self.uri, fix=self.hint
        )

    def _refused(self, status: int) -> NoAnswer:
        reasons = {
            401: ("the key is wrong" if self.api_key else "it asks for a key", "pass api_key"),
            503: ("it is stopping or has no free connection", "try again later"),
        }
        problem, fix = reasons.get(status, (f"it answered HTTP {status}", "check host and port"))
        return NoAnswer(problem, where=self.uri, fix=fix)


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionClosed) and error.rcvd is None and error.sent is None:
        return "the connection broke"
    return " ".join(str(error).split())[:200] or type(error).__name__


def uri_of(host: str, port: int | None) -> str:
    """Return the `ws://` address of a host, which may be a complete address."""
    uri = host if host.startswith(("ws://", "wss://")) else f"ws://{_bracketed(host)}"
    return uri + (f":{port}" if port is not None else "")


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
