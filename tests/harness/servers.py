"""Servers of other people's protocols in a thread, and policies without a model for them."""

import contextlib
import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from roboalign.serve.wire import pack_message, unpack_message
from roboalign.sim.base import DemonstratedBenchmark
from roboalign.sim.rollout import EpisodeResult, RolloutConfig

Answer = Callable[[dict[str, Any]], Any]


@contextlib.contextmanager
def websocket_server(
    answer: Answer, metadata: Mapping[str, Any] | None = None, port: int = 0
) -> Iterator[int]:
    """A server of openpi's protocol as openpi's own is: a text is an error, after which it closes; None closes
    without an answer."""

    def handle(connection: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            connection.send(pack_message(dict(metadata or {})))
            for message in connection:
                reply = answer(unpack_message(message))
                if reply is None:
                    return
                connection.send(reply if isinstance(reply, str | bytes) else pack_message(reply))
                if isinstance(reply, str):
                    connection.close(1011, "Internal server error.")
                    return

    with serve(handle, "127.0.0.1", port, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join(20)


class Replay:
    """The actions of the scripted expert, recorded in process; what is seen says where it goes on."""

    def __init__(
        self,
        benchmark: DemonstratedBenchmark,
        episodes: Sequence[tuple[str, int]],
        config: RolloutConfig,
        horizon: int = 12,
    ) -> None:
        self.chunks: dict[bytes, np.ndarray] = {}
        self.results: dict[tuple[str, int], tuple[bool, int]] = {}
        self.asked = 0
        for task, seed in episodes:
            self._record(benchmark, task, seed, config, horizon)

    def __call__(self, instruction: str, state: np.ndarray) -> np.ndarray:
        self.asked += 1
        return self.chunks[index_of(instruction, state)]

    def _record(self, benchmark, task, seed, config, horizon) -> None:
        environment = benchmark.make(task)
        environment.reset(seed)
        expert, seen, actions, solved = environment.expert(), [], [], False
        while not solved and len(actions) < config.max_steps:
            if len(actions) % config.replan_every == 0:
                seen.append(index_of(environment.task.instruction, environment.state()))
            actions.append(expert())
            solved = environment.step(actions[-1])
        environment.close()
        self.results[task, seed] = (solved, len(actions))
        rest = np.zeros((horizon, benchmark.action_dim), np.float32)
        padded = np.concatenate([np.stack(actions), rest])
        for number, index in enumerate(seen):
            assert index not in self.chunks, "two moments look alike"
            start = number * config.replan_every
            self.chunks[index] = padded[start : start + horizon]


def index_of(instruction: str, state: np.ndarray) -> bytes:
    state = np.asarray(state, np.float32).reshape(-1)
    return hashlib.sha256(instruction.encode() + state.tobytes()).digest()


def outcomes(results: Sequence[EpisodeResult]) -> dict[tuple[str, int], tuple[bool, int]]:
    """(success, steps) of each episode, none of which crashed."""
    assert not [r.crash for r in results if r.crash]
    return {(r.task, r.seed): (r.success, r.steps) for r in results}


def npy(array: np.ndarray) -> dict[str, Any]:
    """An array as GR00T's servers write it."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def msgpack_numpy(array: np.ndarray) -> dict[bytes, Any]:
    """An array as msgpack-numpy writes it, which some of GR00T's servers use."""
    described = {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape}
    return {**described, b"data": array.tobytes()}


def _from_npy(items: dict[str, Any]) -> Any:
    return np.load(io.BytesIO(items["as_npy"])) if "as_npy" in items else items


@contextlib.contextmanager
def zmq_server(answer: Answer, address: str = "tcp://127.0.0.1:*") -> Iterator[str]:
    """A server of GR00T's protocol; `answer` gets {"endpoint", "data"} and returns what is packed, bytes as they
    are."""
    import zmq

    context = zmq.Context()
    socket = context.socket(zmq.REP)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(address)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            if socket.poll(20):
                request = msgpack.unpackb(socket.recv(), object_hook=_from_npy)
                reply = {"status": "ok"} if request["endpoint"] == "ping" else answer(request)
                socket.send(reply if isinstance(reply, bytes) else msgpack.packb(reply))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield socket.getsockopt_string(zmq.LAST_ENDPOINT)
    finally:
        stop.set()
        thread.join(20)
        socket.close()
        context.term()
