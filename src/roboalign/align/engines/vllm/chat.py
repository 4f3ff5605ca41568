"""Build requests to a vLLM server, and read and check its replies."""

import base64
import io
import math
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from roboalign.align.engines.vllm.client import GOES_ON
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import Encoded, Prompt, adds_bos, end_ids
from roboalign.mllm.generate import suppressed_ids
from roboalign.mllm.load import Mllm
from roboalign.mllm.placement import IMAGE_MARK, leading_images, marked

FORBIDDEN = -100.0  # bias of a suppressed token: the lowest that OpenAI's API allows


def chat_messages(asked: Prompt) -> list[dict[str, Any]]:
    """Return the question as chat messages, with each image at its place as a PNG in a data URL,
    which preserves the pixels."""
    (question,) = marked([asked.question], len(asked.images))
    leading, text = leading_images(question)
    shown = iter(asked.images)
    content = [_image_part(next(shown)) for _ in range(leading)]
    for number, piece in enumerate(text.strip().split(IMAGE_MARK)):
        content += [_image_part(next(shown))] if number else []
        content += [{"type": "text", "text": piece}] if piece or not content else []
    return [{"role": "user", "content": content}]


def _image_part(image: UInt8[np.ndarray, "_ _ 3"]) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def sampling(
    mllm: Mllm, samples: int, max_new_tokens: int, temperature: float, stop: str | None
) -> dict[str, Any]:
    """Return the sampling settings of a request: those of `generate`, overriding every default of
    the server."""
    return {
        "n": samples,
        "max_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        **({"stop": [stop], "include_stop_str_in_output": True} if stop else {}),
        "stop_token_ids": sorted(end_ids(mllm)),
        "logit_bias": {str(token): FORBIDDEN for token in suppressed_ids(mllm)},
        "add_special_tokens": adds_bos(mllm),
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
    }


def read_completion(
    mllm: Mllm,
    reply: Any,
    prompt: Encoded,
    samples: int,
    max_new_tokens: int,
    stop: str | None,
    where: str,
) -> list[tuple[list[int], list[float], bool]]:
    """Return the answers of a chat completion: token ids, log-probabilities, and whether the answer
    ended by itself.

    Raises RoboAlignError if these are not `samples` answers to `prompt`, token by token.
    """

    def refused(
        problem: str,
        fix: str = "docs/how-to/vllm-and-verl.md says which vLLM, and how it is started",
    ) -> RoboAlignError:
        return RoboAlignError(
            f"a reply cannot be trained on: {problem}", where=where, fix=f"{fix}; {GOES_ON}"
        )

    try:
        read = list(reply["prompt_token_ids"] or [])
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        answers = [
            (
                list(choice["token_ids"] or []),
                [float(one["logprob"]) for one in choice["logprobs"]["content"]],
            )
            for choice in choices
        ]
    except (KeyError, TypeError, ValueError):
        raise refused("it is no chat completion with token ids and log-probabilities") from None
    ours = prompt.input_ids.tolist()
    if read != ours:
        place = next(
            (i for i, (a, b) in enumerate(zip(read, ours)) if a != b), min(len(read), len(ours))
        )
        raise refused(
            f"the server read the prompt as other tokens than the trainer ({len(read)} and {len(ours)}, "
            f"the first difference at {place})",
            "start the server on the folder in rl.vllm.weights, without another chat template",
        )
    if len(answers) != samples:
        raise refused(f"it holds {len(answers)} answers, not {samples}")
    known, never = len(mllm.tokenizer), set(suppressed_ids(mllm))
    found = []
    for ids, logp in answers:
        if not ids:
            raise refused("an answer is empty")
        if len(ids) > max_new_tokens or len(ids) != len(logp) or not all(map(math.isfinite, logp)):
            raise refused(
                f"an answer of {len(ids)} tokens has {len(logp)} log-probabilities, {max_new_tokens} tokens "
                "were asked for"
            )
        strange = [
            token
            for token in ids
            if not isinstance(token, int) or not 0 <= token < known or token in never
        ]
        if strange:
            raise refused(f"token {strange[0]} is none that may be sampled")
        ended = ids[-1] in end_ids(mllm) or (
            bool(stop) and str(stop) in _tail(mllm, ids, str(stop))
        )
        if not ended and len(ids) < max_new_tokens:
            raise refused(
                f"an answer stops after {len(ids)} tokens, at neither an end token nor `{stop}`"
            )
        found.append((ids, logp, ended))
    return found


def _tail(mllm: Mllm, ids: list[int], stop: str) -> str:
    """Return the end of an answer as text, long enough to contain `stop`, since a token is at least
    one byte."""
    return str(mllm.tokenizer.decode(ids[-len(stop.encode()) :], skip_special_tokens=False))
