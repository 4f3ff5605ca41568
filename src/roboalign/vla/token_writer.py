"""Write replies of action tokens: up to the end of the block, and with no longer a reasoning than
allowed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from roboalign.actions.vocabulary import ACTION_END, ACTION_START
from roboalign.conversations.prompts import Mode
from roboalign.core.config import Config
from roboalign.mllm.continuation import continue_from
from roboalign.mllm.encode import Encoded
from roboalign.mllm.generate import generate
from roboalign.mllm.load import Mllm

END_OF_REASONING = "</think>"
OPENING = f"{END_OF_REASONING}<answer>{ACTION_START}"
"""What is written after a reasoning that has used up its tokens."""


Choose = Literal["median", "likelihood", "mg-select"]
"""How one of several answers is chosen."""


class TokenPolicyConfig(Config):
    """How a token policy writes its actions (docs/how-to/act-with-tokens.md)."""

    max_reasoning_tokens: int = Field(128, ge=1, le=1_000_000)
    """Tokens of a reasoning, after which it is closed and the actions are asked for. The latency of
    a decision grows with it."""
    max_block_tokens: int = Field(96, ge=4, le=1_000_000)
    """Tokens of the actions and the tags before them; an answer that is longer is no chunk, and the
    robot holds."""
    temperature: float = Field(0.0, ge=0, le=10, allow_inf_nan=False)
    """0: the most likely token each time. Above: tokens are drawn, by the decision's noise key."""
    answers: int = Field(1, ge=1, le=256)
    """Drawn answers to each observation, of which one chunk is made; they share a prefill. Above 1 the
    temperature must be above 0."""
    choose: Choose = "median"
    """How that chunk is made: each number's `median`, the most likely answer (`likelihood`), or the
    one whose actions the instruction changes most (`mg-select`, arXiv 2510.05681)."""

    @model_validator(mode="after")
    def _differ(self) -> "TokenPolicyConfig":
        if self.answers > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.answers} greedy answers are one answer; set temperature above 0"
            )
        return self


@dataclass(frozen=True)
class WrittenReply:
    """What a model wrote to one prompt."""

    ids: list[int]
    """Up to the end of the action block; a closed reasoning is followed by the text that closed
    it."""
    generated: int
    """Tokens that the model computed for it."""
    closed: bool = False
    """Whether the reasoning had used up its tokens and was closed."""
    logprob: float = 0.0
    """Log-probability of the sampled tokens, at the temperature; the dropped ones count too."""


def write_replies(
    mllm: Mllm,
    prompts: Sequence[Encoded],
    seeds: Sequence[int],
    config: TokenPolicyConfig,
    mode: Mode,
    *,
    samples: int = 1,
) -> list[list[WrittenReply]]:
    """Return `samples` replies to each prompt, which share its prefill.

    A reasoning that has not ended within `max_reasoning_tokens` is cut there and closed, and the
    model goes on from `</think><answer><ACTION_START>`. That costs these prompts a second prefill.
    """
    budget = config.max_reasoning_tokens if mode == "think" else 0
    limit = budget + config.max_block_tokens
    replies = _generate(mllm, prompts, seeds, config, limit, samples)
    long = [
        (number, place)
        for number, row in enumerate(replies)
        for place, reply in enumerate(row)
        if budget and _reasons_after(mllm, reply.ids, budget)
    ]
    if not long:
        return replies
    opening = mllm.tokenizer(OPENING, add_special_tokens=False)["input_ids"]
    begun = {at: [*replies[at[0]][at[1]].ids[:budget], *opening] for at in long}
    rest = _generate(
        mllm,
        [continue_from(prompts[at[0]], begun[at]) for at in long],
        [seeds[number] + place + 1 for number, place in long],
        config,
        config.max_block_tokens,
        1,
    )
    for (number, place), (more,) in zip(long, rest, strict=True):
        first = replies[number][place]
        replies[number][place] = WrittenReply(
            [*begun[number, place], *more.ids],
            first.generated + more.generated,
            closed=True,
            logprob=first.logprob + more.logprob,
        )
    return replies


def sampled_tokens(
    mllm: Mllm, ids: Sequence[int], config: TokenPolicyConfig, *, closed: bool
) -> list[bool]:
    """Return which tokens of a reply the model chose: all but those that closed its reasoning."""
    first = config.max_reasoning_tokens
    count = len(mllm.tokenizer(OPENING, add_special_tokens=False)["input_ids"]) if closed else 0
    return [not first <= place < first + count for place in range(len(ids))]


def write_blocks(
    mllm: Mllm, begun: Sequence[Encoded], config: TokenPolicyConfig
) -> list[WrittenReply]:
    """Return what the model writes greedily after prompts that already have a reasoning."""
    greedy = config.model_copy(update={"temperature": 0.0})
    written = _generate(mllm, begun, [0] * len(begun), greedy, config.max_block_tokens, 1)
    return [row[0] for row in written]


def whole_text(mllm: Mllm, ids: Sequence[int]) -> str:
    """Return the text of ids, special tokens included."""
    return str(mllm.tokenizer.decode(ids, skip_special_tokens=False))


def _generate(
    mllm: Mllm,
    prompts: Sequence[Encoded],
    seeds: Sequence[int],
    config: TokenPolicyConfig,
    limit: int,
    samples: int,
) -> list[list[WrittenReply]]:
    written = generate(
        mllm,
        prompts,
        samples=samples,
        max_new_tokens=limit,
        temperature=config.temperature,
        stop=ACTION_END,  # the robot need not wait for the tags after the block
        seed=seeds,
    )
    return [
        [WrittenReply(ids, len(ids), logprob=sum(told)) for ids, told in zip(*row, strict=True)]
        for row in zip(written.tokens, written.logprobs, strict=True)
    ]


def _reasons_after(mllm: Mllm, ids: Sequence[int], budget: int) -> bool:
    """Return whether a reply is still in its reasoning after `budget` tokens."""
    begun = ids[:budget]
    if len(ids) <= budget or (mllm.vocabulary and mllm.vocabulary.start_id in begun):
        return False
    return END_OF_REASONING not in whole_text(mllm, begun)
