"""JSON over HTTP with a vLLM server: where it is, and how long it is waited for.

What passes (429, 5xx, a timeout, a refused connection) is tried again until `patience` is over; what does not is an
error at once.
"""

import itertools
import os
import threading
import time
from typing import Any

import httpx2
from pydantic import Field, field_validator

from roboalign.config import Config
from roboalign.endpoints import Telling, open_client, passes, plain_url
from roboalign.errors import RoboAlignError

KEY = "VLLM_API_KEY"  # the variable from which `vllm serve` takes the key that it asks for
# Sampling defaults are not the folder's; images are resized by Pillow, as here, and not by torchvision.
OPTIONS = """--generation-config vllm --mm-processor-kwargs '{"use_fast": false}'"""
LONGEST_WAIT = 30.0  # seconds between two tries
GOES_ON = "the same command goes on from the last checkpoint"


class VllmConfig(Config):
    """A vLLM server that samples GRPO's answers in place of the own loop (docs/vllm.md)."""

    url: str
    """Its base URL, as `http://host:8000`. Where the server asks for an API key, `VLLM_API_KEY` holds it."""
    weights: str
    """Folder, under this same path on the server's machine, to whose `model/` the policy is written before every
    rollout; the server is started with that `model/`, and with nothing else's."""
    concurrency: int = Field(64, ge=1, le=1000)
    """Prompts that each process asks about at the same time."""
    timeout: float = Field(300.0, gt=0)
    """Seconds without an answer after which a request is given up and sent again: longer than the longest group of
    answers takes on a full server."""
    patience: float = Field(600.0, gt=0)
    """Seconds for which the server may fail or be away before the command ends. Where several processes train, this and
    `timeout` together must be below `hardware.timeout`."""
    tolerance: float = Field(0.02, gt=0)
    """Mean difference of the log-probabilities (nats a token) between the server and the trainer's model above which
    the server is held to have other weights. 0.001 is enough where both compute in float32."""

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        """Where the URL holds a password, it would be written to disk with the settings."""
        return plain_url(url).removesuffix("/v1").rstrip("/")


class VllmClient:
    """Sends requests; threads may share it. Setting `stop` ends every wait between two tries."""

    def __init__(self, config: VllmConfig, fix: str) -> None:
        """`fix` is what an error about a lost server says that the user should do."""
        self.config, self.fix, self.stop = config, fix, threading.Event()
        self._tell = Telling("vllm")
        key = os.environ.get(KEY, "").strip()
        self._http = open_client(key, timeout=config.timeout, connections=config.concurrency)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST `body` to `path`, or GET it without one; what the reply's JSON holds, None for an empty reply.

        Raises RoboAlignError where the server refuses it, answers with something else than JSON, or fails for
        `patience` seconds.
        """
        end = time.monotonic() + self.config.patience
        for attempt in itertools.count():
            response, problem = self._once(path, body)
            if response is not None and response.status_code == 200:
                return self._json(response, path)
            if response is not None:
                status = response.status_code
                problem = f"HTTP {status}: {' '.join(response.text[:2000].split())[:300] or 'no text'}"
                if not passes(status):
                    raise RoboAlignError(f"the request is refused, {problem}", where=f"{self.config.url}{path}",
                                         fix=remedy(status, path))  # fmt: skip
            wait = min(0.5 * 2**attempt, LONGEST_WAIT)
            if self.stop.is_set() or time.monotonic() + wait > end:
                raise RoboAlignError(f"no answer after {attempt + 1} tries ({problem})",
                                     where=f"{self.config.url}{path}", fix=self.fix)  # fmt: skip
            self._tell(f"{self.config.url}{path}: {problem}; tried again")
            self.stop.wait(wait)
        raise AssertionError("unreachable")

    def _once(self, path: str, body: dict[str, Any] | None) -> tuple[httpx2.Response | None, str]:
        try:
            return self._http.request("GET" if body is None else "POST", self.config.url + path, json=body), ""
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.LocalProtocolError) as error:
            raise RoboAlignError(f"the request cannot be sent ({error})", where=self.config.url,
                                 fix=f"check rl.vllm.url, and the key in {KEY}") from None  # fmt: skip
        except httpx2.HTTPError as error:
            return None, f"{type(error).__name__}: {error}".rstrip(": ")

    def _json(self, response: httpx2.Response, path: str) -> Any:
        if not response.content:
            return None
        try:
            return response.json()
        except (ValueError, RecursionError):
            said = " ".join(response.text[:200].split())[:80]
            raise RoboAlignError(f"the reply is not JSON: {said!r}", where=f"{self.config.url}{path}",
                                 fix="check that rl.vllm.url is that of a vLLM server") from None  # fmt: skip

def remedy(status: int, path: str) -> str:
    """What to do about a refusal."""
    if status in (401, 403):
        return f"set the environment variable {KEY} to the server's key"
    if status in (404, 405):
        return "check rl.vllm.url" if path.startswith("/v1") else "start the server with VLLM_SERVER_DEV_MODE=1"
    return "see what the server says; --max-model-len must hold the prompt and rl.max_new_tokens"
