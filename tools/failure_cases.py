"""What goes wrong between a robot and `roboalign serve`, case by case (`tools.failure_page`).

The server is a process of its own that runs what `roboalign serve` runs; its policy answers zeros,
after as many seconds as a case says. The robot is this process, with the code that a robot would have.
"""

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from roboalign.core.errors import RoboAlignError
from roboalign.serve.client import RemotePolicy
from roboalign.serve.contract import Contract
from roboalign.serve.executor import Executor, Limits
from roboalign.serve.wire import pack_message, unpack_message

ROOT = Path(__file__).parents[1]
SIDE = 32


class Zeros:
    """Answers zeros after some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def act_batch(self, observations: Any, noise_keys: Any) -> np.ndarray:
        """float32 [B, 16, 4]."""
        if observations[0].instruction != "warm up":
            time.sleep(self.seconds)
        return np.zeros((len(observations), 16, 4), np.float32)


def contract(model: str) -> Contract:
    """What the server of the cases wants to be sent."""
    return Contract(
        model=model,
        cameras={"front": (SIDE, SIDE), "wrist": (SIDE, SIDE)},
        horizon=16,
        action_dim=4,
        state_dim=4,
        needs_state=True,
        state_names=("x", "y", "z", "gripper"),
        action_space={"mode": "delta", "gripper": "closed_one"},
        fps=20.0,
    )


def seen() -> SimpleNamespace:
    """A good observation."""
    images = {camera: np.zeros((SIDE, SIDE, 3), np.uint8) for camera in ("front", "wrist")}
    return SimpleNamespace(images=images, state=np.zeros(4), instruction="pick the cube")


def as_openpi() -> dict[str, Any]:
    """The same as openpi's client sends it."""
    one = seen()
    images = {f"observation/{camera}": image for camera, image in one.images.items()}
    return {**images, "observation/state": one.state, "prompt": one.instruction}


class Server:
    """A server process, and the lines that it prints."""

    def __init__(self, operator: list[str], settings: dict[str, str]) -> None:
        arguments = [f"{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "tools.failure_cases", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self.port, ready = 0, threading.Event()

        def read() -> None:
            assert self.process.stderr is not None
            for line in self.process.stderr:
                operator.append(line.rstrip())
                if listening := re.search(r"listening on ws://127.0.0.1:(\d+)", line):
                    self.port = int(listening.group(1))
                if "answers 16 actions" in line:
                    ready.set()

        self.reader = threading.Thread(target=read)
        self.reader.start()
        if not ready.wait(60):
            self.end()
            raise RuntimeError("\n".join(operator))

    def end(self, number: int = signal.SIGTERM) -> None:
        """Signal the process and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(20)
        self.reader.join()


class Stage:
    """What a case may use: servers, and what the robot prints."""

    def __init__(self) -> None:
        self.robot: list[str] = []
        self.operator: list[str] = []
        self.servers: list[Server] = []

    def serve(self, model: str = "cubes", seconds: float = 0.0, **settings: Any) -> Server:
        """Start a server; it listens when this returns."""
        given = {"model": model, "seconds": seconds, "port": 0} | settings
        server = Server(self.operator, {key: str(value) for key, value in given.items()})
        self.servers.append(server)
        return server

    def print(self, text: str) -> None:
        """Print on the robot's side."""
        self.robot += text.splitlines()

    def ask(self, policy: RemotePolicy, observation: Any = None) -> None:
        """Print what `act` returns or raises."""
        try:
            chunk = policy.act(observation or seen())
            self.print(f"act: {len(chunk)} actions")
        except RoboAlignError as error:
            self.print(f"RoboAlignError: {error}")

    def send(self, client: ClientConnection, request: dict[str, Any]) -> None:
        """Print what a client of openpi's protocol is answered."""
        client.send(pack_message(request))
        reply = client.recv(timeout=10)
        if isinstance(reply, bytes):
            self.print(f"infer: {len(unpack_message(reply)['actions'])} actions")
        else:
            self.print(f"infer: {reply}")


@contextlib.contextmanager
def plain(server: Server) -> Iterator[ClientConnection]:
    """A connection as openpi's client makes it, past the metadata."""
    address = f"ws://127.0.0.1:{server.port}"
    with connect(address, compression=None, max_size=None, proxy=None) as client:
        client.recv(timeout=10)
        yield client


class Arm:
    """A robot that remembers nothing; its state is NaN in the observations that `broken` names."""

    def __init__(self, broken: range = range(0)) -> None:
        self.broken, self.looked = broken, 0

    def observe(self) -> SimpleNamespace:
        """What it sees now."""
        one = seen()
        if self.looked in self.broken:
            one.state[1] = np.nan
        self.looked += 1
        return one

    def send(self, action: np.ndarray) -> None:
        """Move."""


def drive(stage: Stage, policy: RemotePolicy, robot: Arm, steps: int, give_up: float) -> None:
    """Print the report of a control loop, and what ended it."""
    loop = Executor(policy, robot, limits=Limits(give_up=give_up))
    try:
        loop.run(steps)
    except RoboAlignError as error:
        stage.print(f"RoboAlignError: {error}")
    stage.print(loop.cadence.text())


def killed(stage: Stage) -> None:
    """The server is killed and stays away. Chunk by chunk the executor goes on asking; when its last
    chunk is used up it holds the robot, and after `give_up` seconds, here 1, it raises."""
    server = stage.serve()
    with RemotePolicy(port=server.port) as policy:
        threading.Timer(0.3, server.process.kill).start()
        drive(stage, policy, Arm(), 100, 1.0)


def killed_and_back(stage: Stage) -> None:
    """The server is killed and started again. The robot goes on by itself: each request tries to
    connect once more."""
    server = stage.serve()
    with RemotePolicy(port=server.port) as policy:

        def replace() -> None:
            server.end(signal.SIGKILL)
            stage.serve(port=server.port)

        other = threading.Timer(0.3, replace)
        other.start()
        drive(stage, policy, Arm(), 50, 30.0)
        other.join()
        stage.ask(policy)


def dropped(stage: Stage) -> None:
    """The connection breaks between two requests. The client connects again and sends the request
    again."""
    with RemotePolicy(port=stage.serve().port) as policy:
        stage.ask(policy)
        policy._connection.socket.socket.shutdown(2)  # type: ignore[union-attr]
        stage.ask(policy)
        stage.print(f"reconnects: {policy.reconnects}")


def slow_client(stage: Stage) -> None:
    """A client's request takes a second to arrive, in 20 pieces. It is answered when it is whole;
    nobody waits for it."""
    server = stage.serve()
    with plain(server) as slow, RemotePolicy(port=server.port) as policy:
        sender = threading.Thread(target=_in_pieces, args=(slow, pack_message(as_openpi())))
        sender.start()
        longest, count = 0.0, 0
        while sender.is_alive():
            began = time.perf_counter()
            policy.act(seen())
            longest, count = max(longest, time.perf_counter() - began), count + 1
            time.sleep(0.02)
        reply = unpack_message(slow.recv(timeout=10))
        stage.print(f"the slow one: {len(reply['actions'])} actions")
        stage.print(
            f"another one meanwhile: {count} answers, the slowest in {1000 * longest:.0f} ms"
        )


def _in_pieces(client: ClientConnection, message: bytes) -> None:
    """Send one frame over a second. The mask is zero, so the payload is the message itself."""
    client.socket.sendall(b"\x82\xff" + len(message).to_bytes(8, "big") + bytes(4))
    for part in np.array_split(np.frombuffer(message, np.uint8), 20):
        client.socket.sendall(part.tobytes())
        time.sleep(0.05)


def half_and_silent(stage: Stage) -> None:
    """A client sends half a frame and then nothing; its connection stays open. After a ping without
    an answer the server closes it: after 20 to 40 seconds, here 1."""
    server = stage.serve(ping=0.5)
    with RemotePolicy(port=server.port) as policy, contextlib.suppress(ConnectionClosed):
        with plain(server) as half:
            half.socket.sendall(b"\x82\xfe\x00\x7d\0\0\0\0abc")  # announces 125 bytes, sends 3
            stage.ask(policy)
            try:
                half.recv(timeout=10)
            except ConnectionClosed as error:
                stage.print(f"the half one: ConnectionClosed: {error}")
        stage.ask(policy)


def half_and_gone(stage: Stage) -> None:
    """A client is gone in the middle of a frame. The others are answered."""
    server = stage.serve()
    with RemotePolicy(port=server.port) as policy:
        with plain(server) as half:
            half.socket.sendall(b"\x82\xfe\x00\x7d\0\0\0\0abc")
            half.socket.shutdown(2)
        stage.ask(policy)


def half_a_map(stage: Stage) -> None:
    """A frame is whole, but the map in it is cut off. The connection lives."""
    with plain(stage.serve()) as client:
        client.send(pack_message(as_openpi())[:500])
        stage.print(f"infer: {client.recv(timeout=10)!s}")
        stage.send(client, as_openpi())


def camera_missing(stage: Stage) -> None:
    """The robot names a camera in another way. Nothing is sent."""
    with RemotePolicy(port=stage.serve().port) as policy:
        one = seen()
        one.images["side"] = one.images.pop("wrist")
        stage.ask(policy, one)


def camera_wrong(stage: Stage) -> None:
    """Images of another size, and a client of openpi's that sends a key that is not read."""
    server = stage.serve()
    with RemotePolicy(port=server.port) as policy, plain(server) as client:
        one = seen()
        one.images["front"] = np.zeros((480, 640, 3), np.uint8)
        stage.ask(policy, one)
        stage.send(client, as_openpi() | {"observation/wrist_image": one.images["front"]})
        stage.send(client, as_openpi())


def nan_state(stage: Stage) -> None:
    """A sensor gives NaN in 20 observations. The chunk that is there is executed to its end, then the
    robot is held until the sensor reads again."""
    with RemotePolicy(port=stage.serve().port) as policy:
        drive(stage, policy, Arm(broken=range(2, 22)), 40, 5.0)


def swapped(stage: Stage) -> None:
    """The server is stopped, and another policy served at its address. The client refuses it until the
    robot's program says that this is meant."""
    server = stage.serve()
    with RemotePolicy(port=server.port) as policy:
        stage.ask(policy)
        server.end()
        stage.serve("drawers", port=server.port)
        stage.ask(policy)
        stage.ask(policy)
        stage.print(f"a new RemotePolicy: {RemotePolicy(port=server.port).metadata['model']}")


def late(stage: Stage) -> None:
    """The policy needs longer than the client's `timeout`, here 0.2 s. The answer is dropped with its
    connection, so it is never taken for the answer to the next request."""
    with RemotePolicy(port=stage.serve(seconds=0.6).port, timeout=0.2) as policy:
        stage.ask(policy)
        time.sleep(0.6)


def stopped(stage: Stage) -> None:
    """Ctrl-C while a request is under way: it is answered, then the server ends."""
    server = stage.serve(seconds=0.5)
    with RemotePolicy(port=server.port) as policy:
        threading.Timer(0.2, server.process.send_signal, [signal.SIGINT]).start()
        stage.ask(policy)
        server.process.wait(20)
        stage.ask(policy)


CASES: dict[str, Callable[[Stage], None]] = {
    "Server killed": killed,
    "Server killed and started again": killed_and_back,
    "Connection dropped": dropped,
    "Slow client": slow_client,
    "Half a message, then silence": half_and_silent,
    "Half a message, then gone": half_and_gone,
    "Half a map": half_a_map,
    "Camera missing": camera_missing,
    "Wrong image, wrong key": camera_wrong,
    "NaN in the state": nan_state,
    "Policy swapped": swapped,
    "Answer too late": late,
    "Server stopped": stopped,
}


def run(case: Callable[[Stage], None]) -> Stage:
    """Run a case and end its servers."""
    stage = Stage()
    try:
        case(stage)
        time.sleep(0.2)  # the server tells that the last client has left
        operator = list(stage.operator)
    finally:
        for server in stage.servers:
            server.end()
    stage.operator = operator
    for server in stage.servers:
        for lines in (stage.robot, stage.operator):
            lines[:] = [line.replace(f":{server.port}", ":8000") for line in lines]
    return stage


def be_server(arguments: list[str]) -> None:
    """Serve as `roboalign serve` does, until a signal."""
    from roboalign.cli.serve import serve_policy

    given = dict(argument.split("=", 1) for argument in arguments)
    settings = {"port": int(given["port"]), "ping_seconds": float(given.get("ping", 20))}
    serve_policy(Zeros(float(given["seconds"])), contract(given["model"]), **settings)


if __name__ == "__main__":
    be_server(sys.argv[1:])
