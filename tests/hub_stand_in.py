"""A stand-in of the Hugging Face Hub on loopback: the calls that `huggingface_hub` makes to read and to upload.

Repositories are folders on disk. What is uploaded is kept in memory, and can be read back like any repository.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

import roboalign.core.hub as hub_module

TOKEN = "hf_of_the_owner"
READER = "hf_may_only_read"
API = re.compile(
    r"/api/(?P<type>model|dataset)s/(?P<id>[^/]+/[^/]+)"
    r"(?:/(?P<verb>revision|tree|preupload|commit)/(?P<revision>[^/]+))?"
)
RESOLVE = re.compile(
    r"/(?:(?P<type>dataset)s/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)


@dataclass
class Repository:
    """Files of one commit; `revisions` are the names by which it can be asked for."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    private: bool = False

    @property
    def commit(self) -> str:
        content = b"".join(
            name.encode() + hashlib.sha1(data).digest() for name, data in sorted(self.files.items())
        )
        return hashlib.sha1(content).hexdigest()

    @classmethod
    def of(cls, folder: Path, **options: Any) -> "Repository":
        found = (path for path in folder.rglob("*") if path.is_file())
        files = {str(path.relative_to(folder)): path.read_bytes() for path in found}
        return cls(files, **options)


@dataclass
class Hub:
    """The server's state: what it holds, and a line for every request that it got."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: bool = False

    def files_asked(self) -> set[str]:
        """Paths of files that were downloaded."""
        found = (RESOLVE.match(line.removeprefix("GET ")) for line in self.requests)
        return {unquote(match["path"]) for match in found if match}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def _read(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.broken:
            return self._error(503, "", "the stand-in is down")
        if match := RESOLVE.fullmatch(path):
            return self._file(match)
        if match := API.fullmatch(path):
            return self._info(match)
        self._error(404, "", "no such page")

    def _found(self, match: re.Match[str]) -> Repository | None:
        """The repository, or None once an error has been sent."""
        repository = self.hub.repositories.get((match["type"] or "model", match["id"]))
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not allowed):
            self._error(401 if not allowed else 404, "RepoNotFound", "Repository not found")
            return None
        revision = unquote(match["revision"] or "main")
        if revision not in (*repository.revisions, repository.commit):
            self._error(404, "RevisionNotFound", "Invalid rev id")
            return None
        return repository

    def _info(self, match: re.Match[str]) -> None:
        repository = self._found(match)
        if repository is None:
            return
        if match["verb"] == "tree":
            rows = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for name, data in sorted(repository.files.items())
            ]
            return self._json(rows)
        siblings = [{"rfilename": name} for name in sorted(repository.files)]
        self._json(
            {
                "id": match["id"],
                "sha": repository.commit,
                "private": repository.private,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _file(self, match: re.Match[str]) -> None:
        repository = self._found(match)
        if repository is None:
            return
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository.gated and not allowed:
            return self._error(403, "GatedRepo", "Access to this model is restricted")
        data = repository.files.get(unquote(match["path"]))
        if data is None:
            return self._error(404, "EntryNotFound", "Entry not found")
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self._send(data)

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            known = self.headers.get("Authorization") == f"Bearer {READER}"
            said = "You don't have the rights to create a model under this namespace"
            return self._error(403 if known else 401, "", said if known else "Invalid username")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        match = API.fullmatch(path)
        if match is None or (match["type"], match["id"]) not in self.hub.repositories:
            return self._error(404, "RepoNotFound", "Repository not found")
        if match["verb"] == "preupload":
            names = [row["path"] for row in json.loads(body)["files"]]
            modes = [
                {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
            ]
            return self._json({"files": modes})
        self._commit(self.hub.repositories[match["type"], match["id"]], match["id"], body)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        kind = asked.get("type", "model")
        if (kind, name) in self.hub.repositories:
            said = {"error": "You already created this model repo"}
            return self._json({**said, "url": f"{self.hub.url}/{name}"}, status=409)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[kind, name] = Repository({}, private=private)
        self._json({"url": f"{self.hub.url}/{name}"})

    def _commit(self, repository: Repository, name: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                value = row["value"]
                repository.files[value["path"]] = base64.b64decode(value["content"])
        commit = repository.commit
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def _error(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self._send(json.dumps({"error": message}).encode())

    def _json(self, value: Any, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self._send(json.dumps(value).encode())

    def _send(self, data: bytes) -> None:
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def served() -> Iterator[Hub]:
    """A Hub on a free port of loopback, empty at first."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = Hub(url=f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_network(monkeypatch: pytest.MonkeyPatch, online: bool) -> None:
    """Sets HF_HUB_OFFLINE, which `huggingface_hub` reads when it is imported, for this process."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not online)
    huggingface_hub.close_session()  # the session of the other mode
    hub_module._fetched.cache_clear()


@contextmanager
def used(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process uses `hub`, with an empty cache in `folder` and no token."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    use_network(monkeypatch, True)
    yield
    use_network(monkeypatch, False)
