"""Ask a chat model at an OpenAI-compatible endpoint one question with one image.

Such endpoints are vLLM, Gemini's compatible one, and others. Temporary failures (429, 5xx, a
timeout, a broken connection) are retried; permanent ones are an error that says what to do.
"""

import email.utils
import os
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx2
from pydantic import Field, field_validator

from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.http import Telling, open_client, passes, plain_url
from roboalign.core.outcomes import Fault

FILTERED = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
"""Error codes of a filter that refuses a request before the model (Azure, OpenAI).

This counts as an answer, not as a failure.
"""
MOST_REPLY_BYTES, MOST_TIMES = 20_000_000, 5
"""Limits after which a response is abandoned: its bytes, and its duration in timeouts."""
LONGEST_WAIT = 120.0
"""Maximum wait in seconds, including one that Retry-After asks for."""


class Endpoint(Config):
    """Where the teacher is, and how to reach it. None of this changes what is asked."""

    url: str
    """Base URL; requests are sent to {url}/chat/completions."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable with the API key; a private endpoint may need none."""
    concurrency: int = Field(8, ge=1, le=1000)
    """Number of concurrent requests."""
    timeout: float = Field(120.0, gt=0, le=1e7)
    """Seconds without a byte after which a request is abandoned."""
    retries: int = Field(6, ge=0, le=1000)
    """Number of retries after a temporary failure."""
    first_wait: float = Field(1.0, gt=0, le=3600)
    """Seconds before the first retry; each further wait doubles, and half of it is random."""

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        """Refuse a URL that contains a key: it would be written to disk with the settings."""
        return plain_url(url).removesuffix("/chat/completions")


@dataclass(frozen=True)
class TeacherReply:
    """The model's text, and the token counts of the endpoint (0 if it reports none)."""

    text: str
    finish: str
    refusal: str
    prompt_tokens: int
    completion_tokens: int


class ChatClient:
    """Send requests. Threads may share it.

    `stop` ends every wait: set it before waiting for the threads.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.stop = endpoint, threading.Event()
        self._tell = Telling("teacher")
        self._key = os.environ.get(endpoint.key_env, "").strip()
        self._http = open_client(
            self._key, timeout=endpoint.timeout, connections=endpoint.concurrency
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, body: dict[str, Any]) -> TeacherReply | Fault:
        """Send one request; a Fault if the endpoint rejects this one, or failed every time.

        Raises RoboAlignError if it would answer no request: a wrong key, model or address.
        """
        problem, asked = "", 0.0
        for attempt in range(self.endpoint.retries + 1):
            if attempt:
                wait = min(
                    self.endpoint.first_wait * 2 ** (attempt - 1), LONGEST_WAIT
                ) * random.uniform(0.5, 1.0)
                wait = max(wait, min(asked, LONGEST_WAIT))
                self._tell(f"{problem}; asked again in {wait:.0f} s")
                self.stop.wait(wait)
            if self.stop.is_set():
                break
            answered = self._once(body)
            if not isinstance(answered, Passing):
                return answered
            problem, asked = answered.problem, answered.wait
        fix = "see that the endpoint is up, and takes so many requests at once (--concurrency)"
        return Fault(
            self.endpoint.url,
            f"no answer after {self.endpoint.retries + 1} requests ({problem})",
            fix,
        )

    def _once(self, body: dict[str, Any]) -> "TeacherReply | Fault | Passing":
        try:
            response = self._post(body)
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.LocalProtocolError) as error:
            raise RoboAlignError(
                self._safe(f"the request cannot be sent ({error})"),
                where=self.endpoint.url,
                fix=f"check the URL, and the key in {self.endpoint.key_env}",
            ) from None
        except httpx2.HTTPError as error:
            return Passing(self._safe(f"{type(error).__name__}: {error}".rstrip(": ")))
        if isinstance(response, Passing):
            return response
        status = response.status_code
        if passes(status):
            said = f"HTTP {status}: {self._said(response)}"
            return Passing(said, retry_after(response.headers.get("retry-after")))
        if status == 200:
            return reply_of(response)
        if status in (400, 403) and error_code(response) in FILTERED:
            return TeacherReply("", "content_filter", self._said(response), 0, 0)
        if status in (400, 413, 415, 422):
            said = f"the endpoint does not take the request: HTTP {status}: {self._said(response)}"
            return Fault(self.endpoint.url, said, "check --model, and that it takes images")
        raise RoboAlignError(
            f"HTTP {status}: {self._said(response)}",
            where=self.endpoint.url,
            fix=self._remedy(status),
        )

    def _post(self, body: dict[str, Any]) -> "httpx2.Response | Passing":
        """Return the whole response, within limits: the client's timeout covers only silence."""
        end, content = time.monotonic() + MOST_TIMES * self.endpoint.timeout, bytearray()
        with self._http.stream(
            "POST", f"{self.endpoint.url}/chat/completions", json=body
        ) as response:
            for part in response.iter_bytes():
                content += part
                if len(content) > MOST_REPLY_BYTES or time.monotonic() > end:
                    return Passing("a response without an end")
        headers = {name: value for name, value in response.headers.items() if name == "retry-after"}
        return httpx2.Response(response.status_code, headers=headers, content=bytes(content))

    def _remedy(self, status: int) -> str:
        if status in (401, 402, 403):
            have = "holds" if self._key else "is not set; it holds"
            return f"check the API key: the environment variable {self.endpoint.key_env} {have} it (--key-env NAME)"
        return "check --endpoint (it ends before /chat/completions, often in /v1) and --model"

    def _said(self, response: httpx2.Response) -> str:
        return self._safe(" ".join(response.text[:2000].split())[:200]) or "no text"

    def _safe(self, text: str) -> str:
        """Return the text without the key, which servers may quote."""
        return text.replace(self._key, "***") if self._key else text


@dataclass(frozen=True)
class Passing:
    """A failure that a later request may avoid, and the seconds that the endpoint asks to wait."""

    problem: str
    wait: float = 0.0


def reply_of(response: httpx2.Response) -> TeacherReply | Passing:
    """Return the first choice of a chat completion.

    A response that is not one came from something in front of the model.
    """
    try:
        data = response.json()
        choice = data["choices"][0]
        finish = str(choice.get("finish_reason") or "")
        message = choice.get("message") or {} if finish == "content_filter" else choice["message"]
        usage = data.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        prompt, completion = (
            count if isinstance(count, int) and count >= 0 else 0 for count in counts
        )
        refusal = message.get("refusal")
        refusal = refusal if isinstance(refusal, str) else ""
        return TeacherReply(_text_of(message.get("content")), finish, refusal, prompt, completion)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return Passing("HTTP 200, but the body is no chat completion")


def _text_of(content: Any) -> str:
    """Return the text of a message; "" if there is none.

    It is a string, or a list of parts of which some are text.
    """
    if isinstance(content, list):
        texts = [
            part.get("text")
            for part in content
            if isinstance(part, dict) and part.get("type") == "text"
        ]
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def error_code(response: httpx2.Response) -> str:
    """Return `code` of the error in a body; "" if there is none."""
    try:
        error = response.json()["error"]
        return str(error.get("code") or "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""


def retry_after(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks for: a number or a date.

    0 if it cannot be read.
    """
    if not value:
        return 0.0
    try:
        return max(0.0, min(float(value), LONGEST_WAIT))
    except ValueError:
        pass
    try:
        return max(
            0.0,
            min(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), LONGEST_WAIT),
        )
    except (ValueError, TypeError, OverflowError):
        return 0.0
