"""A server that speaks as much of vLLM as GRPO needs, answers with the own `generate`, and can fail in many ways."""

import base64
import io
import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from roboalign.mllm.encode import Prompt, end_ids
from roboalign.mllm.generate import generate, suppressed_ids
from roboalign.mllm.load import Mllm, load_mllm

Fault = Callable[[str, dict[str, Any]], str]
"""path, body -> what goes wrong with this request; "" for nothing."""


def no_fault(path: str, body: dict[str, Any]) -> str:
    return ""


class FakeVllm:
    """Serves on a port of its own until `stop`. Faults: `die`, `hang`, `busy`, `refuse`, `stale`, `garbage`."""

    def __init__(self, fault: Fault = no_fault, port: int = 0) -> None:
        self.fault, self.mllm, self.requests = fault, None, []
        self.lock, self.released, self.closed = (
            threading.Lock(),
            threading.Event(),
            threading.Event(),
        )
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.handle(self, {})

            def do_POST(self) -> None:
                server.handle(
                    self, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                )

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.port = self.http.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def stop(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
        self.closed.set()

    def count(self, path: str) -> int:
        return sum(one == path for one, _ in self.requests)

    @property
    def children(self) -> list[dict[str, Any]]:
        """How each `vllm serve` that asks here was started, in this order."""
        return [body for path, body in self.requests if path == "/started"]

    def alive(self, patience: float) -> list[int]:
        """The processes of these that are there still; for `patience` seconds they may end."""
        end = time.monotonic() + patience
        while True:
            found = [
                child[name]
                for child in self.children
                for name in ("pid", "engine")
                if running(child[name])
            ]
            if not found or time.monotonic() > end:
                return found
            time.sleep(0.05)

    def handle(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self.lock:  # one request at a time: torch in many threads would only be slower
            self.requests.append((handler.path, body))
            fault = self.fault(handler.path, body)
            if fault == "die":
                self.released.set()
                threading.Thread(target=self.stop, daemon=True).start()
                handler.connection.close()
                return
            status, reply = (503, b"overloaded") if fault == "busy" else (404, b"nothing here")
            if fault == "garbage":
                status, reply = 200, b"<html>"
            elif fault not in ("busy", "refuse", "hang"):
                status, reply = 200, json.dumps(self.answer(handler.path, body, fault)).encode()
        if fault == "hang":
            self.released.wait(20)
            return
        try:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(reply)))
            handler.end_headers()
            handler.wfile.write(reply)
        except OSError:
            pass  # the client has gone

    def answer(self, path: str, body: dict[str, Any], fault: str) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "policy"}]}
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            if fault != "stale":
                self.mllm = load_mllm(body["kwargs"]["weights_path"])
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            return {"success": fault != "held"}
        if path in ("/reset_mm_cache", "/reset_encoder_cache", "/sleep", "/wake_up", "/started"):
            return None
        assert path == "/v1/chat/completions" and body["model"] == "policy", path
        return self.chat(body, fault)

    def chat(self, body: dict[str, Any], fault: str) -> dict[str, Any]:
        mllm = self.mllm
        assert mllm is not None, "asked before the weights were loaded"
        check_settings(mllm, body)
        if fault == "other weights":
            mllm = shaken(mllm)
        torch.set_num_threads(1)
        (message,) = body["messages"]
        prompt = prompt_of_parts(message["content"])
        (stop,) = body.get("stop", [None])
        found = generate(
            mllm,
            [prompt],
            samples=body["n"],
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            stop=stop,
            seed=[body["seed"]],
        )
        ids = read_prompt(mllm, prompt, body["add_special_tokens"])
        choices = [
            {
                "index": index,
                "token_ids": tokens,
                "finish_reason": "stop" if end else "length",
                "logprobs": {"content": [{"token": "", "logprob": value} for value in logp]},
            }
            for index, (tokens, logp, end) in enumerate(
                zip(found.tokens[0], found.logprobs[0], found.finished[0])
            )
        ]
        return {
            "prompt_token_ids": ids[1:] if fault == "other prompt" else ids,
            "choices": choices[::-1],
        }


def prompt_of_parts(content: list[dict[str, Any]]) -> Prompt:
    """The question and the images of a message of OpenAI's API."""
    question, images = "", []
    for part in content:
        if part["type"] == "image_url":
            data = part["image_url"]["url"].removeprefix("data:image/png;base64,")
            images.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))
        question += part.get("text", "<image>")
    return Prompt(question, tuple(images))


def read_prompt(mllm: Mllm, prompt: Prompt, add_special_tokens: bool) -> list[int]:
    """The ids that a chat's template and processor make of a prompt, as vLLM does: our own code has no part in it."""
    content: list[dict[str, str]] = []
    for number, piece in enumerate(prompt.question.split("<image>")):
        content += [{"type": "image"}] * (number > 0) + [{"type": "text", "text": piece}] * bool(
            piece
        )
    text = mllm.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    read = mllm.processor(
        text=[text], images=[list(prompt.images)], add_special_tokens=add_special_tokens
    )
    return [int(token) for token in read["input_ids"][0]]


def vllm_executable(folder: Path) -> str:
    """A `vllm` to be named in `rl.vllm.serve`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vllm"
    path.write_text(
        f"#!{sys.executable}\n" + Path(__file__).with_name("fake_vllm_serve.py").read_text()
    )
    path.chmod(0o755)
    return str(path)


def running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def check_settings(mllm: Mllm, body: dict[str, Any]) -> None:
    """What would let vLLM sample from another distribution, or leave something out of the reply."""
    assert (
        body["top_p"] == 1
        and body["top_k"] == -1
        and body["min_p"] == 0
        and body["repetition_penalty"] == 1
    )
    assert body["logprobs"] and body["return_token_ids"] and not body["skip_special_tokens"]
    assert {int(token) for token in body["logit_bias"]} == set(suppressed_ids(mllm))
    assert set(body["stop_token_ids"]) == end_ids(mllm)
    assert "stop" not in body or body["include_stop_str_in_output"]


def shaken(mllm: Mllm) -> Mllm:
    """The model with other weights, as after a few more updates."""
    model = type(mllm.model)(mllm.model.config)
    model.load_state_dict({name: value * 1.05 for name, value in mllm.model.state_dict().items()})
    model.generation_config = mllm.model.generation_config
    return Mllm(model.eval(), mllm.processor, mllm.vocabulary)
