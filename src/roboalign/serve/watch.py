"""Tell who runs the server which clients come and go, and which requests are refused."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from websockets.exceptions import ConnectionClosed

from roboalign.core.progress import say

REPEAT_SECONDS = 10.0
"""Seconds in which a text is printed once for each client."""
MOST_TEXTS = 5
"""Different refusals of a client that are printed in these seconds."""
GOODBYES = (1000, 1001)
TOO_LARGE = 1009
PING_UNANSWERED = 1011


@dataclass
class _Refusals:
    """What one client was told."""

    began: float
    printed: set[str] = field(default_factory=set)
    hidden: int = 0


class Watch:
    """Print one line for each event; a client that repeats its fault is counted, not repeated."""

    def __init__(
        self,
        say: Callable[[str], None] = lambda text: say(text, "serve"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._clock = say, clock
        self._refusals: dict[int, _Refusals] = {}

    def came(self, client: int, host: str) -> None:
        """Tell that a client has connected."""
        self._refusals[client] = _Refusals(self._clock())
        self._say(f"client {client} connected from {host}")

    def refused(self, client: int, text: str) -> None:
        """Tell what the client was told, or count it if that is printed already or is too much."""
        told, now = self._refusals[client], self._clock()
        if now - told.began >= REPEAT_SECONDS:
            told.began = now
            told.printed.clear()
        if text in told.printed or len(told.printed) == MOST_TEXTS:
            told.hidden += 1
            return
        self._say(f"client {client} refused: {text}{_more(told.hidden)}")
        told.printed.add(text)
        told.hidden = 0

    def left(self, client: int, error: ConnectionClosed | None, waiting: bool) -> None:
        """Tell that a connection has ended; `error` is what ended it, None for a normal end.
        `waiting`: it had not got the answer to its last request."""
        hidden = self._refusals.pop(client).hidden
        before = " before its answer" if waiting else ""
        self._say(f"client {client} {_ending(error)}{before}{_more(hidden)}")


def _more(hidden: int) -> str:
    return f" ({hidden} more refused)" if hidden else ""


def _ending(error: ConnectionClosed | None) -> str:
    """Return in words how a connection ended."""
    if error is None or (error.rcvd is not None and error.rcvd.code in GOODBYES):
        return "left"
    sent = None if error.sent is None else error.sent.code
    if sent == PING_UNANSWERED:
        return "lost: it answered no ping"
    if sent == TOO_LARGE:
        return "disconnected: its message is larger than the metadata's images allow"
    return "lost: its connection broke"
