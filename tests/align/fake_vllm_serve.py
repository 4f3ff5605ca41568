"""Plays `vllm serve`: its command line, its socket, its sleep, a process of its own for the engine.

What it is asked goes on to the `FakeVllm` at $FAKE_VLLM, which answers for it and first learns how it was started.
A program without imports of the project, as the real one: it starts in an instant.
"""

import argparse
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    asleep = False
    can_sleep = False

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the client has gone


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.forward(None)

    def do_POST(self) -> None:
        self.forward(self.rfile.read(int(self.headers["Content-Length"])))

    def forward(self, body: bytes | None) -> None:
        path, _, query = self.path.partition("?")
        if path in ("/sleep", "/wake_up"):
            assert self.server.can_sleep and query == ("level=1" if path == "/sleep" else "")
            fault = (
                ""
                if self.server.asleep == (path == "/wake_up")
                else f"asleep is {self.server.asleep}"
            )
            self.server.asleep = path == "/sleep"
        else:
            fault = "asked while it sleeps" if self.server.asleep else ""
        status, reply = (400, fault.encode()) if fault else ask(path, body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *arguments: object) -> None:
        pass


def ask(path: str, body: bytes | None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(os.environ["FAKE_VLLM"] + path, body)
        ) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    serve = commands.add_parser("serve", allow_abbrev=False)
    serve.add_argument("model")
    serve.add_argument("--uds", required=True)
    serve.add_argument("--generation-config", choices=["vllm"], required=True)
    serve.add_argument("--mm-processor-kwargs", type=json.loads, required=True)
    serve.add_argument("--limit-mm-per-prompt", type=json.loads, required=True)
    serve.add_argument("--gpu-memory-utilization", type=float, required=True)
    serve.add_argument("--enable-sleep-mode", action="store_true")
    serve.add_argument("--max-model-len", type=int)
    given = parser.parse_args()
    if said := os.environ.get("FAKE_VLLM_ENDS"):
        print(
            "WARNING such as `OSError: files`",
            "Traceback (most recent call last):",
            said,
            "RuntimeError: see above",
            "RuntimeError: the engine did not start",
            "shutting down",
            sep="\n",
            file=sys.stderr,
        )
        sys.exit(1)
    assert (
        os.environ["VLLM_SERVER_DEV_MODE"] == "1" and (Path(given.model) / "config.json").is_file()
    )
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    started = {
        "pid": os.getpid(),
        "engine": engine.pid,
        "given": vars(given),
        "variables": dict(os.environ),
    }
    ask("/started", json.dumps(started).encode())
    Server.can_sleep = given.enable_sleep_mode
    with Server(given.uds, Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
