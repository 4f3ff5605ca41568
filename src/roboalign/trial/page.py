"""Serve the operator's page: one file that works on a phone, and the few requests that it makes.

It shows what `Desk.view` holds and so is blind. Beyond this machine it asks for a key. A page of another
site cannot use it: requests carry JSON, their Origin is checked, and without a key so is their Host.
"""

import base64
import hashlib
import hmac
import json
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from roboalign.core.config import validated
from roboalign.core.errors import RoboAlignError
from roboalign.serve.server import check_reach, is_loopback
from roboalign.trial.attempts import Outcome
from roboalign.trial.desk import Desk

PAGE = Path(__file__).with_name("page.html")
MOST_SENT = 1 << 16
"""Bytes of one request."""
PATIENCE = 20.0
"""Seconds that a connection may be silent."""


@contextmanager
def paged(
    desk: Desk, host: str = "127.0.0.1", port: int = 8080, api_key: str | None = None
) -> Iterator[int]:
    """Within, the page is at the port that is yielded; port 0 takes a free one.

    Raises RoboAlignError if the address needs a key, or cannot be listened on.
    """
    check_reach(host, api_key)
    kind = _SixServer if ":" in host else _Server
    try:
        server = kind((host, port), _Handler)
    except OSError as error:
        raise RoboAlignError(
            f"this address cannot be listened on ({error.strerror or error})",
            where=f"{host}:{port}",
            fix="end what listens there, or pass another --page-port",
        ) from None
    server.desk, server.api_key = desk, api_key
    server.html = PAGE.read_bytes()
    server.policy = _content_policy(server.html.decode())
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True, name="page")
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    desk: Desk
    api_key: str | None
    html: bytes
    policy: str

    def server_bind(self) -> None:
        """Bind without asking for the name of the address, which can take long."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a phone that went out of reach."""


class _SixServer(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE
    protocol_version = "HTTP/1.0"  # one request a connection: none goes on when the page has ended
    server_version, sys_version = "roboalign", ""

    def do_GET(self) -> None:
        """The page itself, the state, or the picture of a trial."""
        if not self._is_meant():
            return
        if self.path in ("/", "/index.html"):
            self._send(200, self.server.html, "text/html; charset=utf-8")
        elif self.path == "/state":
            if self._has_key():
                self._send_json(200, self.server.desk.view())
        elif found := re.fullmatch(r"/picture/([0-9]{1,6})", self.path):
            picture = self.server.desk.picture(int(found[1])) if self._has_key() else b""
            if picture is None:
                self._send_json(404, {"problem": "This trial has no picture."})
            elif picture:
                self._send(200, picture, "image/jpeg")
        else:
            self._send_json(404, {"problem": "There is nothing here.", "fix": "open /"})

    def do_POST(self) -> None:
        """A change. It answers the state after it, or what is wrong and the state as it is."""
        body = self._body()
        if body is None or not self._is_meant() or not self._has_key():
            return
        desk = self.server.desk
        try:
            _apply(desk, self.path, body)
            self._send_json(200, desk.view())
        except RoboAlignError as error:
            status = 404 if error.where == "path" else 409 if error.where == "trial" else 400
            where = "" if error.where in ("trial", "path") else f"{error.where}: "
            said = {"problem": f"{where}{error.problem}", "fix": error.fix, "view": desk.view()}
            self._send_json(status, said)

    def _body(self) -> bytes | None:
        """Return what was sent; None after refusing it. It is read first, or the connection breaks."""
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal() or int(length) > MOST_SENT:
            self.close_connection = True
            self._send_json(413, {"problem": f"A request has 0 to {MOST_SENT:,} bytes."})
            return None
        return self.rfile.read(int(length))

    def _is_meant(self) -> bool:
        """Return whether the request is from our page and not from another site's; refuse it if not."""
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        name = re.sub(r":\d+$", "", host)
        is_ours = origin is None or origin.partition("://")[2] == host
        is_json = self.command != "POST" or (self.headers.get_content_type() == "application/json")
        if is_ours and is_json and (self.server.api_key is not None or is_loopback(name)):
            return True
        self._send_json(403, {"problem": "This request is not from the operator's page."})
        return False

    def _has_key(self) -> bool:
        key = self.server.api_key
        given = self.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if key is None or hmac.compare_digest(given, f"Api-Key {key}".encode()):
            return True
        self._send_json(401, {"problem": "A key is needed."})
        return False

    def _send_json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": self.server.policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing: the log of trials says what matters."""


def _apply(desk: Desk, path: str, data: bytes) -> None:
    """Do what a request asks. Raises RoboAlignError naming the field at fault."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    fields = {"trial": int, "attempt": int, "operator": str}
    if not isinstance(body, dict) or any(type(body.get(k)) is not t for k, t in fields.items()):
        raise RoboAlignError(
            "a map with trial, attempt and operator is needed", where="body", fix="send JSON"
        )
    of = body["trial"], body["attempt"], body["operator"]
    if path == "/start":
        desk.start(*of)
        return
    if path not in ("/end", "/correct"):
        raise RoboAlignError("there is nothing here", where="path", fix="open /")
    result = validated(Outcome, body.get("result"), "outcome")
    if path == "/end":
        desk.end(*of, result)
    else:
        desk.correct(*of, result, str(body.get("reason", "")))


def _content_policy(html: str) -> str:
    """Return the header that lets a browser run this page's own script and style, and nothing else."""

    def digest(tag: str) -> str:
        text = html.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; script-src 'sha256-{digest('script')}'; "
        f"style-src 'sha256-{digest('style')}'; connect-src 'self'; img-src blob:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
