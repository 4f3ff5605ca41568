"""Share code between HTTP clients: URLs without secrets, retries, messages about waits."""

import threading
import time
from urllib.parse import urlsplit

import httpx2

from roboalign.core.progress import say

PASSING = (408, 409, 425, 429)
"""Statuses after which, as after 5xx, a retry may succeed; 501 and 505 are permanent."""
FOR_GOOD = (501, 505)
TELL_EVERY = 10.0
"""Seconds between two messages about requests that failed temporarily."""


def passes(status: int) -> bool:
    """Return whether a retry may succeed after a response with this status."""
    return status in PASSING or (status >= 500 and status not in FOR_GOOD)


def plain_url(url: str) -> str:
    """Return the URL without a trailing slash. Raises ValueError if it is no URL or holds a secret.

    A key in it would be written to disk with the settings.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"{error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is not an http or https URL")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "it holds a user, a password or a query: give the key in an environment variable"
        )
    return url.rstrip("/")


def open_client(
    key: str, *, timeout: float, connections: int, socket: str | None = None
) -> httpx2.Client:
    """Return a client that sends `key` unless it is empty; `timeout` is in seconds without a byte.

    With the path of a Unix `socket`, every request goes there, whatever host it names.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx2.Limits(max_connections=connections)
    transport = httpx2.HTTPTransport(uds=socket, limits=limits) if socket else None
    # Redirects are not followed: the key would be sent along.
    return httpx2.Client(
        headers=headers, timeout=timeout, limits=limits, transport=transport, follow_redirects=False
    )


class Telling:
    """Print now and then on stderr why nothing arrives: waits add up to minutes. Thread-safe."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._lock, self._next = threading.Lock(), 0.0

    def __call__(self, text: str) -> None:
        """Print `text`, unless a line was printed less than `TELL_EVERY` seconds ago."""
        with self._lock:
            now = time.monotonic()
            if now >= self._next:
                self._next = now + TELL_EVERY
                say(text, self.label)
