"""Hand-made episodes, and an OpenAI-compatible endpoint on this machine."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from roboalign.actions.spaces import ActionSpace
from roboalign.episodes.episode import Camera, Episode, encode_png
from roboalign.episodes.robot_data import RobotData

DELTA = ActionSpace(control="end-effector", mode="delta", rotation="euler_xyz", gripper="open_one")
ROS = ("forward", "left", "up")


def episode(
    actions: np.ndarray,
    space: ActionSpace | None = DELTA,
    *,
    state: np.ndarray | None = None,
    number: int = 0,
    instruction: str = "put the cup on the plate",
    cameras: dict[str, Camera] | None = None,
    fps: float = 5.0,
) -> Episode:
    """An episode of these actions; every frame is noise of its own, 16 x 12 pixels."""
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 255, (len(actions), 12, 16, 3), dtype=np.uint8)
    state = np.zeros((len(actions), 0), np.float32) if state is None else state
    return Episode(
        episode_id=f"made/{number}",
        task="cup",
        instruction=instruction,
        fps=fps,
        actions=actions.astype(np.float32),
        state=state.astype(np.float32),
        images={"front": [encode_png(frame) for frame in frames]},
        cameras=cameras or {"front": Camera("front", 16, 12)},
        action_space=space,
    )


def straight(
    step: tuple[float, float, float], steps: int = 20, number: int = 0, **given: Any
) -> Episode:
    """Every action moves by `step`; the gripper closes at step 8 and opens at step 14."""
    actions = np.zeros((steps, 7))
    actions[:, :3] = step
    actions[:, 6] = [0.0 if 8 <= t < 14 else 1.0 for t in range(steps)]
    return episode(actions, number=number, **given)


def data_of(*episodes: Episode, strict: bool = False) -> RobotData:
    return RobotData("made", "test", lambda: iter(episodes), strict=strict)


def listed(*questions: dict[str, Any]) -> str:
    """What a good teacher writes."""
    return json.dumps({"questions": list(questions)})


GOOD = (
    {
        "question": "What is left of the gripper?",
        "answer": "a red cup",
        "reasoning": "A cup stands there.",
        "kind": "text",
    },
    {
        "question": "Where should it go?\nA. the sink\nB. the plate",
        "answer": "B",
        "reasoning": "The task says so.",
        "kind": "choice",
    },
    {"question": "Point to the cup.", "answer": "[500, 250]", "reasoning": "", "kind": "point"},
)


@dataclass
class Server:
    """`answer(body, number)` gives (status, headers, body) of request `number`, counted from 0."""

    answer: Callable[[dict[str, Any], int], tuple[int, dict[str, str], bytes]]
    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most: int = 0
    """Most requests that were answered at the same time."""
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def completion(
    text: str | None, finish: str = "stop", **message: Any
) -> tuple[int, dict[str, str], bytes]:
    """A chat completion of 100 tokens in and 20 out."""
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text, **message},
    }
    body = {
        "choices": [choice],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return 200, {}, json.dumps(body).encode()


@contextmanager
def serving(
    answer: Callable[[dict[str, Any], int], tuple[int, dict[str, str], bytes]],
) -> Iterator[Server]:
    """A real HTTP server in a thread."""
    server = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.seen)
                server.seen.append({"path": self.path, **body})
                server.keys.append(self.headers.get("Authorization"))
                server.now += 1
                server.most = max(server.most, server.now)
            try:
                status, headers, content = server.answer(body, number)
            except ConnectionResetError:  # the server dies
                self.close_connection = True
                return
            finally:
                with server.lock:
                    server.now -= 1
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):  # the client did not wait
                pass

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(
        target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
