"""Exchange JSON over HTTP with a vLLM server: its address or its command, and how long to wait for
it.

Temporary failures (429, 5xx, a timeout, a refused connection) are retried until `patience` is over;
all others are errors at once.
"""

import itertools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
from pydantic import Field, field_validator, model_validator

from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.http import Telling, open_client, passes, plain_url

KEY = "VLLM_API_KEY"  # the variable from which `vllm serve` reads the API key that it requires
# Sampling defaults do not come from the folder. Images are resized by Pillow, as here, and not by
# torchvision.
SERVER_OPTIONS = """--generation-config vllm --mm-processor-kwargs '{"use_fast": false}'"""
SET_HERE = frozenset(
    {"--uds", "--host", "--port", "--api-key", "--gpu-memory-utilization", "--enable-sleep-mode"}
)
_LONGEST_WAIT = 30.0  # seconds between two attempts
GOES_ON = "the same command resumes from the last checkpoint"


class VllmConfig(Config):
    """vLLM servers that sample GRPO's answers instead of this process
    (docs/how-to/vllm-and-verl.md)."""

    url: str | None = None
    """Base URL of a server on its own device, such as `http://host:8000`. If it requires an API
    key, set `VLLM_API_KEY`. Give exactly one of `url` and `serve`."""
    serve: str | None = None
    """The `vllm` executable of any environment, such as `/opt/vllm/bin/vllm`. Each process then
    starts its own server on its own GPU, and puts it to sleep while it trains."""
    weights: str
    """Folder with the same path on the server's machine. The policy is written to its `model/`
    before every rollout; start the server with that `model/` only."""
    memory: float = Field(0.4, gt=0, lt=1)
    """With `serve`: share of the GPU's memory that the server takes during a rollout, for its
    weights, cache and computation (`--gpu-memory-utilization`)."""
    sleep: bool = True
    """With `serve`: whether the server frees its memory while the trainer computes. vLLM cannot do
    this on a CPU."""
    options: tuple[str, ...] = ()
    """With `serve`: additional options of `vllm serve`, such as `["--max-model-len", "2048"]`."""
    concurrency: int = Field(64, ge=1, le=1000)
    """Concurrent prompts per process."""
    timeout: float = Field(300.0, gt=0, le=1e7)
    """Seconds without an answer after which a request is sent again. It must be longer than the
    longest group of answers takes on a full server."""
    patience: float = Field(600.0, gt=0, le=1e7)
    """Seconds for which the server may fail or be unreachable before the command ends. With several
    training processes, this plus `timeout` must be below `hardware.timeout`."""
    tolerance: float = Field(0.02, gt=0)
    """Maximum mean difference of log-probabilities (nats per token) between the server and the
    trainer's model; beyond it, the server is assumed to have other weights. 0.001 is enough if both
    compute in float32."""

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str | None) -> str | None:
        """Refuse a URL with a password, which would be written to disk with the settings."""
        return url and plain_url(url).removesuffix("/v1").rstrip("/")

    @field_validator("options")
    @classmethod
    def _free(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        taken = sorted(
            SET_HERE & {option.partition("=")[0].replace("_", "-") for option in options}
        )
        if taken:
            raise ValueError(f"{taken[0]} is set by `rl.vllm` itself")
        return options

    @model_validator(mode="after")
    def _one_server(self) -> "VllmConfig":
        if (self.url is None) == (self.serve is None):
            raise ValueError(
                "give either `url`, of a server that runs, or `serve`, a vllm executable to start"
            )
        alone = [
            name
            for name in ("memory", "sleep", "options")
            if self.url is not None and getattr(self, name) != type(self).model_fields[name].default
        ]
        if alone:
            raise ValueError(
                f"`{alone[0]}` goes with `serve`: a server at `url` is started by somebody else"
            )
        return self


class VllmClient:
    """Send requests to a server; threads may share this object. Setting `stop` ends every wait
    between two attempts."""

    def __init__(
        self,
        config: VllmConfig,
        fix: str,
        *,
        socket: str | None = None,
        where: str = "",
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare to send requests. `fix` is the advice in an error about a lost server.

        A server without a URL is reached through its Unix `socket`; errors then name it as `where`.
        `check` is called before a request is sent again, and raises if none can succeed.
        """
        self.config, self.fix, self.stop, self.check = config, fix, threading.Event(), check
        self.base, self.where = config.url or "http://localhost", config.url or where
        self._tell = Telling("vllm")
        key = os.environ.get(KEY, "").strip()
        self._http = open_client(
            key, timeout=config.timeout, connections=config.concurrency, socket=socket
        )

    def place(self, path: str) -> str:
        """Return what an error about a request to `path` names."""
        return f"{self.where}{path}" if self.config.url else f"{self.where}, {path}"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(self, path: str, body: dict[str, Any] | None = None, *, final: bool = False) -> Any:
        """POST `body` to `path`, or GET it without a body; return the reply's JSON, or None for an
        empty reply.

        Raises RoboAlignError if the server refuses the request, replies with anything but JSON, or
        fails for `patience` seconds. With `final` every refusal is an error at once, including 429
        and 5xx.
        """
        end = time.monotonic() + self.config.patience
        for attempt in itertools.count():
            response, problem = self._once(path, body)
            if response is not None and response.status_code == 200:
                return self._json(response, path)
            if response is not None:
                status = response.status_code
                problem = (
                    f"HTTP {status}: {' '.join(response.text[:2000].split())[:300] or 'no text'}"
                )
                if final or not passes(status):
                    raise RoboAlignError(
                        f"the request is refused, {problem}",
                        where=self.place(path),
                        fix=remedy(status, path),
                    )
            self.check()
            wait = min(0.5 * 2**attempt, _LONGEST_WAIT)
            if self.stop.is_set() or time.monotonic() + wait > end:
                raise RoboAlignError(
                    f"no answer after {attempt + 1} tries ({problem})",
                    where=self.place(path),
                    fix=self.fix,
                )
            self._tell(f"{self.place(path)}: {problem}; tried again")
            self.stop.wait(wait)
        raise AssertionError("unreachable")

    def _once(self, path: str, body: dict[str, Any] | None) -> tuple[httpx2.Response | None, str]:
        try:
            return self._http.request(
                "GET" if body is None else "POST", self.base + path, json=body
            ), ""
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.LocalProtocolError) as error:
            raise RoboAlignError(
                f"the request cannot be sent ({error})",
                where=self.where,
                fix=f"check rl.vllm.url, and the key in {KEY}",
            ) from None
        except httpx2.HTTPError as error:
            return None, f"{type(error).__name__}: {error}".rstrip(": ")

    def _json(self, response: httpx2.Response, path: str) -> Any:
        if not response.content:
            return None
        try:
            return response.json()
        except (ValueError, RecursionError):
            said = " ".join(response.text[:200].split())[:80]
            raise RoboAlignError(
                f"the reply is not JSON: {said!r}",
                where=self.place(path),
                fix="check that rl.vllm.url is that of a vLLM server",
            ) from None


def remedy(status: int, path: str) -> str:
    """Return the advice for a refusal."""
    if path == "/wake_up":
        lower = "where its share of the GPU is not free, lower rl.vllm.memory"
        return f"see its log; {lower} (docs/how-to/vllm-and-verl.md); {GOES_ON}"
    if status in (401, 403):
        return f"set the environment variable {KEY} to the server's key"
    if status in (404, 405):
        return (
            "check rl.vllm.url"
            if path.startswith("/v1")
            else "start the server with VLLM_SERVER_DEV_MODE=1"
        )
    return "see what the server says; --max-model-len must hold the prompt and rl.max_new_tokens"
