"""Serve a policy over openpi's websocket protocol: metadata first, then one reply per request."""

import asyncio
import hmac
import ipaddress
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Protocol

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from roboalign.core.errors import RoboAlignError
from roboalign.core.progress import say
from roboalign.serve.batching import WINDOW, Answer, Batcher, as_fault
from roboalign.serve.contract import ENDPOINT, Contract, Query
from roboalign.serve.watch import Watch
from roboalign.serve.wire import pack_message, unpack_message

MAX_CONNECTIONS = 64
DRAIN_SECONDS = 60.0
"""Seconds to finish the requests in progress after the server is told to stop."""
MAX_FAULT = 400
"""Maximum characters of an error that is sent to a client."""
_silent = logging.getLogger("roboalign.serve.websockets")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False  # otherwise every port scan would print a traceback


class Recorder(Protocol):
    """Record requests and answers."""

    def keep(self, connection: object, query: Query, answer: Any, seconds: float) -> None:
        """Record one observation of a connection, its chunk float32 [H, A], and the seconds that it
        took."""

    def end(self, connection: object) -> None:
        """End the episodes of a connection that has closed or has sent `reset`."""

    def close(self) -> None:
        """Write the open episodes; return when they are on disk."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_reach(host: str, api_key: str | None) -> None:
    """Raise RoboAlignError if other machines could command the robot without a key."""
    if api_key is None and not is_loopback(host):
        raise RoboAlignError(
            "other machines could reach this address, and no key is asked of them",
            where=f"--host {host}",
            fix="pass --api-key-env NAME with a variable that holds a key",
        )


@dataclass
class _Robot:
    """One connection, as the keys of its requests name it."""

    number: int
    episode: int = 0
    asked: int = 0


class PolicyServer:
    """Serve `policy` as `contract` describes it."""

    def __init__(
        self,
        policy: Any,
        contract: Contract,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        recorder: Recorder | None = None,
        window: float = WINDOW,
        max_connections: int = MAX_CONNECTIONS,
        drain_seconds: float = DRAIN_SECONDS,
        timings: bool = True,
        watch: Watch | None = None,
        ping_seconds: float = 20.0,
    ) -> None:
        """Prepare to serve. Port 0 picks a free port; `window` is how many seconds a request waits
        to share its pass. Without `timings` a reply holds the actions alone. `watch` is told of
        clients and refusals. A client that answers no ping for `ping_seconds` is disconnected.

        Raises RoboAlignError if the address needs a key.
        """
        check_reach(host, api_key)
        self.policy, self.contract, self.recorder = policy, contract, recorder
        self.host, self.port, self.api_key = host, port, api_key
        self.window, self.timings = window, timings
        self.watch, self.ping_seconds = watch, ping_seconds
        self.max_connections, self.drain_seconds = max_connections, drain_seconds
        self.metadata = pack_message(contract.metadata())
        self.requests = self.faults = self.passes = 0
        self._connections = self._active = self._seen = 0
        self._robots: dict[ServerConnection, _Robot] = {}
        self._told = False
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """Answer the requests in progress, then close; a second call closes at once.
        Thread-safe."""
        if self._loop is None or self._stop is None or self._loop.is_closed():
            return
        if self._told:
            self.drain_seconds = 0.0
        self._told = True
        self._loop.call_soon_threadsafe(self._stop.set)

    async def run(self, ready: Callable[[int], None] = lambda port: None) -> None:
        """Warm up, listen, call `ready` with the port, serve until `stop`, then drain.

        Raises RoboAlignError if the policy cannot answer at all or the port is not available.
        """
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._batcher = Batcher(
            self.policy,
            self.contract,
            window=self.window,
            connections=lambda: self._connections,
        )
        try:
            warm = asyncio.create_task(self._batcher.answer([self.contract.blank()]))
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait({warm, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not warm.done():
                return
            await warm
            async with await self._listen() as server:
                ready(next(iter(server.sockets)).getsockname()[1])
                await self._stop.wait()
                await self._drain()
        finally:
            self.passes = self._batcher.passes
            self._batcher.close()
            if self.recorder:
                await asyncio.to_thread(self.recorder.close)

    async def _listen(self) -> Server:
        try:
            return await serve(
                self._handle,
                self.host,
                self.port,
                compression=None,
                max_size=self.contract.limit,
                max_queue=2,
                close_timeout=2,
                ping_interval=self.ping_seconds,
                ping_timeout=self.ping_seconds,
                origins=[None],  # browsers send the origin of a page: no page may command a robot
                process_request=self._admit,
                server_header=None,
                logger=_silent,
            )
        except OSError as error:
            raise RoboAlignError(
                f"this address cannot be listened on ({error.strerror or error})",
                where=f"{self.host}:{self.port}",
                fix="stop the other server, or pass another --port",
            ) from None

    async def _drain(self) -> None:
        """Wait for the requests in progress; `_admit` and `_reply` refuse new ones."""
        began = time.monotonic()
        while self._active and time.monotonic() - began < self.drain_seconds:
            await asyncio.sleep(0.01)
        self._batcher.close()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Check health, key and free connections before the websocket is opened."""
        stopping = self._stop is not None and self._stop.is_set()
        if request.path == "/healthz":
            if stopping:
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "stopping\n")
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self.api_key is not None:
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, f"Api-Key {self.api_key}".encode()):
                return connection.respond(
                    HTTPStatus.UNAUTHORIZED, "send the header Authorization: Api-Key KEY\n"
                )
        if self._connections >= self.max_connections or stopping:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "no connection is free\n")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        self._connections += 1
        self._seen += 1
        robot = self._robots[connection] = _Robot(self._seen)
        if self.watch:
            self.watch.came(robot.number, str(connection.remote_address[0]))
        previous: float | None = None
        ended: ConnectionClosed | None = None
        waiting = False
        try:
            await connection.send(self.metadata)
            async for message in connection:
                self._active += 1
                waiting = True
                try:
                    began = time.perf_counter()
                    await connection.send(await self._reply(connection, message, previous))
                    previous = 1000 * (time.perf_counter() - began)
                    waiting = False
                finally:
                    self._active -= 1
        except ConnectionClosed as error:
            ended = error  # clients may close at any time
        finally:
            if self.watch:
                self.watch.left(robot.number, ended, waiting)
            self._connections -= 1
            del self._robots[connection]
            if self.recorder:
                self.recorder.end(connection)

    async def _reply(
        self, connection: ServerConnection, message: str | bytes, previous: float | None
    ) -> str | bytes:
        """Return the frame of the reply: bytes of a map, or the text of an error."""
        began = time.perf_counter()
        self.requests += 1
        try:
            assert self._stop is not None
            if self._stop.is_set():
                raise RoboAlignError("the server is stopping", where="server", fix="connect again")
            request = unpack_message(message, limit=self.contract.limit)
            if isinstance(request, dict) and ENDPOINT in request:
                request = dict(request)
                if self._reset(connection, request.pop(ENDPOINT)):
                    return "reset successful"
            queries = self.contract.read(request)
            answer = await self._batcher.answer(self._named(connection, queries))
            spent = time.perf_counter() - began
            self._record(connection, queries, answer, spent)
            single = "requests" not in request
            reply: dict[str, Any] = {"actions": answer.actions[0] if single else answer.actions}
            if self.timings:
                server_timing = {"infer_ms": 1000 * spent}
                if previous is not None:
                    server_timing["prev_total_ms"] = previous
                policy_timing = {"infer_ms": answer.infer_ms, "batch": answer.together}
                reply |= {"policy_timing": policy_timing, "server_timing": server_timing}
            return pack_message(reply)
        except Exception as error:
            self.faults += 1
            text = fault_text(as_fault(error))
            if self.watch:
                self.watch.refused(self._robots[connection].number, text)
            return text

    def _reset(self, connection: ServerConnection, endpoint: Any) -> bool:
        """Return whether the message is RoboArena's `reset`, which ends the episode."""
        if endpoint not in ("infer", "reset"):
            raise RoboAlignError(
                f"there is no {str(endpoint)[:40]!r}", where=ENDPOINT, fix="send infer or reset"
            )
        if endpoint == "reset":
            self._robots[connection].episode += 1
            if self.recorder:
                self.recorder.end(connection)
        return bool(endpoint == "reset")

    def _named(self, connection: ServerConnection, queries: list[Query]) -> list[Query]:
        """Return the queries with a noise key each, if the policy remembers episodes.

        Without a key of its own a connection is one robot, up to its `reset`, and every chunk
        counts as executed to its end.
        """
        if not self.contract.remembers:
            return queries
        robot = self._robots[connection]
        step = robot.asked * self.contract.horizon
        robot.asked += 1
        return [
            query
            if query.noise_key is not None
            else replace(query, noise_key=("connection", robot.number, robot.episode, n, step))
            for n, query in enumerate(queries)
        ]

    def _record(
        self, connection: ServerConnection, queries: list[Query], answer: Answer, seconds: float
    ) -> None:
        if self.recorder:
            for query, chunk in zip(queries, answer.actions):
                self.recorder.keep(connection, query, chunk, seconds)


def fault_text(error: RoboAlignError) -> str:
    """Return an error as one line, for a client to show."""
    line = " ".join(str(error).split())
    return line if len(line) <= MAX_FAULT else f"{line[: MAX_FAULT - 3]}..."


def serve_until_stopped(server: PolicyServer, ready: Callable[[int], None]) -> None:
    """Run in the main thread until Ctrl-C or SIGTERM, which drain; a second one closes at once."""

    async def work() -> None:
        with _stopping(server):
            await server.run(ready)

    asyncio.run(work())


@contextmanager
def _stopping(server: PolicyServer) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the server within this context; afterwards restore their
    handlers."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop() -> None:
        say("stopping: what is under way is answered first; again to close at once", "serve")
        server.stop()

    for number in before:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
