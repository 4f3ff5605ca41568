"""Write a reasoning in front of a decision: what a head reads (`view.reading: reasoned`), and what
an action block is written after."""

from collections.abc import Sequence
from dataclasses import dataclass

from roboalign.mllm.continuation import continue_from
from roboalign.mllm.encode import Encoded, end_ids
from roboalign.mllm.generate import generate
from roboalign.mllm.load import Mllm
from roboalign.vla.token_writer import END_OF_REASONING, whole_text


@dataclass(frozen=True)
class Thought:
    """A prompt in think mode and the reasoning that the model wrote to it."""

    prompt: Encoded
    ids: list[int]
    """The reasoning with the tag that ends it."""
    generated: int
    """Tokens that the model computed for it."""
    closed: bool
    """Whether the model had not ended it, so that the tag was appended."""

    @property
    def encoded(self) -> Encoded:
        """Return the prompt followed by the reasoning."""
        return continue_from(self.prompt, self.ids)

    def counts(self) -> dict[str, int]:
        """Return what this decision adds to a policy's counts."""
        return {"decisions": 1, "tokens": self.generated, "closed": int(self.closed)}


def write_thoughts(
    mllm: Mllm,
    prompts: Sequence[Encoded],
    max_tokens: int,
    *,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> list[Thought]:
    """Return the reasoning that the model writes to each prompt, at most `max_tokens` long; greedy
    at temperature 0, else drawn by each prompt's seed.

    A reasoning ends with `</think>`. One that does not is cut at `max_tokens`, or before the end of
    the reply or its first action block, and the tag is appended.
    """
    written = generate(
        mllm,
        prompts,
        max_new_tokens=max_tokens,
        temperature=temperature,
        stop=END_OF_REASONING,
        seed=seeds if seeds is not None else [0] * len(prompts),
    )
    thoughts = []
    for prompt, [ids] in zip(prompts, written.tokens, strict=True):
        if END_OF_REASONING in whole_text(mllm, ids):
            thoughts.append(Thought(prompt, ids, len(ids), closed=False))
        else:
            ended = [*_before_the_end(mllm, ids), *closing_ids(mllm)]
            thoughts.append(Thought(prompt, ended, len(ids), closed=True))
    return thoughts


def longest_thought(mllm: Mllm, prompt: Encoded, max_tokens: int) -> Encoded:
    """Return a prompt followed by filler as long as the longest reasoning, for what only its length
    matters to."""
    closing = closing_ids(mllm)
    return continue_from(prompt, [closing[0]] * max_tokens + closing)


def closing_ids(mllm: Mllm) -> list[int]:
    """Return the ids of the tag that ends a reasoning."""
    return list(mllm.tokenizer(END_OF_REASONING, add_special_tokens=False)["input_ids"])


def _before_the_end(mllm: Mllm, ids: list[int]) -> list[int]:
    """Return the ids before an end token or an action block."""
    ends = set(end_ids(mllm))
    if mllm.vocabulary is not None:
        ends.add(mllm.vocabulary.start_id)
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[:first]
