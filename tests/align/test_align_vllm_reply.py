"""One reply of a vLLM server, and what can be wrong with it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny_grpo

from roboalign.align.engines.vllm.chat import read_completion
from roboalign.align.grpo.rollout import STOP, prompt_of
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import encode_prompt
from roboalign.mllm.generate import generate
from roboalign.mllm.load import Mllm


def reply_and_prompt(mllm: Mllm) -> tuple[dict[str, Any], Any]:
    one = prompt_of(tiny_grpo.prompts(1)[0])
    prompt = encode_prompt(mllm, one.question, one.images)
    found = generate(mllm, [prompt], samples=2, max_new_tokens=4, seed=[1])
    choices = [
        {
            "index": i,
            "token_ids": ids,
            "logprobs": {"content": [{"logprob": value} for value in logp]},
        }
        for i, (ids, logp) in enumerate(zip(found.tokens[0], found.logprobs[0]))
    ]
    return {"prompt_token_ids": prompt.input_ids.tolist(), "choices": choices}, prompt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda reply: reply.pop("choices"), "no chat completion with token ids"),
        (
            lambda reply: reply.update(prompt_token_ids=None),
            r"\(0 and \d+, the first difference at 0\)",
        ),
        (lambda reply: reply["choices"][1].pop("token_ids"), "no chat completion with token ids"),
        (
            lambda reply: reply["choices"][1].update(logprobs=None),
            "no chat completion with token ids",
        ),
        (lambda reply: reply["choices"].pop(), "it holds 1 answers, not 2"),
        (
            lambda reply: reply["choices"][0].update(token_ids=[], logprobs={"content": []}),
            "an answer is empty",
        ),
        (
            lambda reply: reply["choices"][0]["token_ids"].pop(),
            "an answer of 3 tokens has 4 log-probabilities",
        ),
        (
            lambda reply: reply["choices"][0]["logprobs"]["content"][0].update(
                logprob=float("nan")
            ),
            "of 4 tokens has 4",
        ),
        (
            lambda reply: reply["choices"][0]["token_ids"].__setitem__(0, 10**6),
            "token 1000000 is none that may be",
        ),
        (
            lambda reply: reply["choices"][0]["token_ids"].__setitem__(0, "7"),
            "token 7 is none that may be",
        ),
        (
            lambda reply: [
                part.pop()
                for part in (
                    reply["choices"][0]["token_ids"],
                    reply["choices"][0]["logprobs"]["content"],
                )
            ],
            "an answer stops after 3 tokens, at neither an end token nor `</answer>`",
        ),
    ],
)
def test_a_reply_that_is_not_the_answers_is_one_clear_error(change: Callable, message: str) -> None:
    mllm = tiny_grpo.tiny()
    reply, prompt = reply_and_prompt(mllm)
    assert len(read_completion(mllm, copy.deepcopy(reply), prompt, 2, 4, STOP, "http://here")) == 2
    change(reply)
    with pytest.raises(
        RoboAlignError, match=f"http://here: a reply cannot be trained on: .*{message}"
    ):
        read_completion(mllm, reply, prompt, 2, 4, STOP, "http://here")


def test_an_answer_that_ends_with_the_stop_text_is_finished() -> None:
    mllm = tiny_grpo.tiny()
    reply, prompt = reply_and_prompt(mllm)
    ids = mllm.tokenizer.encode("up</answer>", add_special_tokens=False)
    whole = {"token_ids": ids, "logprobs": {"content": [{"logprob": -1.0}] * len(ids)}}
    cut = {"token_ids": ids[:-1], "logprobs": {"content": [{"logprob": -1.0}] * (len(ids) - 1)}}
    for choice, found, limit in ((whole, True, len(ids) + 5), (cut, False, len(ids) - 1)):
        reply["choices"] = [{"index": 0, **choice}]
        assert read_completion(mllm, reply, prompt, 1, limit, STOP, "")[0][2] is found
