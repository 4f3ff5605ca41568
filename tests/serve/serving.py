"""A server in a thread, and policies without a model."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from roboalign.serve.contract import Contract
from roboalign.serve.server import PolicyServer

CONTRACT = Contract(
    model="echo",
    cameras={"front": (8, 6), "wrist": (8, 6)},
    horizon=3,
    action_dim=2,
    state_dim=4,
    needs_state=True,
    state_names=("x", "y", "z", "gripper"),
    action_names=("a", "b"),
    fps=10.0,
)


class Echo:
    """Answers with what it was given: the chunk's numbers are sums over image, state, instruction and noise key."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches = seconds, []

    def act_batch(self, observations, noise_keys) -> np.ndarray:
        self.batches.append(len(observations))
        time.sleep(self.seconds)
        return np.stack([expected(seen, key) for seen, key in zip(observations, noise_keys)])


def expected(seen, key=None) -> np.ndarray:
    """What `Echo` answers for one observation: float32 [3, 2]."""
    sums = [float(seen.images[camera].sum()) for camera in ("front", "wrist")]
    base = sums[0] - sums[1] + len(seen.instruction)
    chunk = base + np.arange(6, dtype=np.float32).reshape(3, 2) + np.float32(seen.state).sum()
    return np.float32(chunk + (0 if key is None else sum(len(str(part)) for part in key)))


def seen(number: int = 0) -> SimpleNamespace:
    """A random observation that `CONTRACT` allows."""
    rng = np.random.default_rng(number)
    images = {camera: rng.integers(0, 256, (8, 6, 3), np.uint8) for camera in ("front", "wrist")}
    return SimpleNamespace(
        images=images, state=rng.normal(size=4).astype(np.float32), instruction=f"task {number}"
    )


def request(number: int = 0) -> dict[str, Any]:
    """The same as a client of openpi sends it."""
    one = seen(number)
    return {
        "observation/front": one.images["front"],
        "observation/wrist": one.images["wrist"],
        "observation/state": one.state,
        "prompt": one.instruction,
    }


@contextlib.contextmanager
def served(policy: Any, contract: Contract = CONTRACT, **named: Any) -> Iterator[Any]:
    """A running server; `.port` is its port. It is stopped and drained at the end, and its error raised."""
    ready = threading.Event()
    failed: list[BaseException] = []
    server = PolicyServer(policy, contract, **{"port": 0, **named})

    def listen(port: int) -> None:
        server.port = port
        ready.set()

    def work() -> None:
        try:
            asyncio.run(server.run(listen))
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        if failed:
            raise failed[0]
        yield server
    finally:
        server.stop()
        thread.join(20)
    assert not thread.is_alive()
    if failed:
        raise failed[0]
