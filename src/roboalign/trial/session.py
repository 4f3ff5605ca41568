"""Run the router's server in a thread while operators work."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from roboalign.serve.server import PolicyServer
from roboalign.trial.router import BlindRouter

_DRAIN_SECONDS = 2.0
START_SECONDS = 120.0


@contextmanager
def routed(
    router: BlindRouter, host: str = "127.0.0.1", port: int = 8000, api_key: str | None = None
) -> Iterator[int]:
    """Within, clients reach the router at the port that is yielded.

    Every arm has answered once before. Raises RoboAlignError if one does not, or the port is taken.
    """
    server = PolicyServer(
        router,
        router.contract,
        host=host,
        port=port,
        api_key=api_key,
        drain_seconds=_DRAIN_SECONDS,
        timings=False,
    )
    ready = threading.Event()
    ports: list[int] = []
    failed: list[BaseException] = []

    def listen(number: int) -> None:
        router.listening = True
        ports.append(number)
        ready.set()

    def work() -> None:
        try:
            asyncio.run(server.run(listen))
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, daemon=True, name="router")
    thread.start()
    try:
        ready.wait(START_SECONDS)
        if failed:
            raise failed[0]
        yield ports[0]
    finally:
        server.stop()
        thread.join(_DRAIN_SECONDS + 1)
