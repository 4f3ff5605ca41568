"""Act after another reasoning than the policy's own: is the reasoning what decides?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.continuation import continue_from
from roboalign.mllm.encode import Encoded
from roboalign.mllm.load import Mllm
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy_input import NoiseKey, ObservationLike, key_digest
from roboalign.vla.reasoning import Thought, closing_ids, write_thoughts
from roboalign.vla.token_answer import TokenAnswer
from roboalign.vla.token_policy import TokenPolicy
from roboalign.vla.token_writer import (
    END_OF_REASONING,
    OPENING,
    WrittenReply,
    whole_text,
    write_blocks,
)

Condition = Literal["kept", "emptied", "shuffled", "other-frame", "other-instruction"]
CONDITIONS: tuple[Condition, ...] = (
    "kept",
    "emptied",
    "shuffled",
    "other-frame",
    "other-instruction",
)
_THINK = "<think>"


class Donor(Config):
    """A reasoning that the policy wrote to a frame of a demonstration."""

    instruction: str
    episode_id: str
    step: int
    text: str
    """Without its tags."""


@dataclass
class Forced:
    """A policy whose reasoning, once written, is replaced before it acts.

    `kept` leaves it as it was written; `emptied` takes it away; `shuffled` draws another order of
    its words. The others put one of the donors' in its place: of another frame under the same
    instruction, or under another one. Where there is a choice, it differs from the policy's own.
    """

    policy: TokenPolicy | HeadPolicy
    condition: Condition
    donors: Sequence[Donor] = ()

    def __post_init__(self) -> None:
        """Raise RoboAlignError if the policy writes no reasoning."""
        if isinstance(self.policy, TokenPolicy):
            writes = self.policy.view.mode == "think"
        else:
            writes = self.policy.view.reading == "reasoned"
        if not writes:
            raise RoboAlignError(
                "the policy writes no reasoning that could be replaced",
                where=str(self.policy.mllm.folder or "policy"),
                fix="take an arm that thinks first, or a head with reading `reasoned`",
            )
        if isinstance(self.policy, TokenPolicy):
            config = self.policy.config.model_copy(update={"temperature": 0.0, "answers": 1})
            self.policy = replace(self.policy, config=config)

    def act_and_count(
        self, observations: Sequence[ObservationLike], noise_keys: Sequence[NoiseKey]
    ) -> tuple[np.ndarray, list[Mapping[str, int]]]:
        """Return chunks [k, H, A] in raw units, and what each decision counts; `changed` says
        whether the reasoning became another text."""
        mllm, thoughts = self.policy.mllm, self.think(observations)
        own = [thought_text(mllm, one.ids) for one in thoughts]
        texts = [
            self.replaced(text, seen.instruction, key)
            for text, seen, key in zip(own, observations, noise_keys, strict=True)
        ]
        begun = [
            self._begun(thought, None if text == before else text)
            for thought, text, before in zip(thoughts, texts, own, strict=True)
        ]
        counts = [
            {**thought.counts(), "changed": int(text != before)}
            for thought, text, before in zip(thoughts, texts, own, strict=True)
        ]
        if isinstance(self.policy, HeadPolicy):
            read = [continue_from(one.prompt, ids) for one, ids in zip(thoughts, begun)]
            return self.policy.act_after(observations, noise_keys, read), [*counts]
        prompts = [one.prompt for one in thoughts]
        chunks, answers = self._write(self.policy, observations, noise_keys, prompts, begun)
        counted: list[Mapping[str, int]] = [
            {
                **one,
                "tokens": one["tokens"] + answer.generated,
                "holds": int(answer.chunk is None),
            }
            for one, answer in zip(counts, answers, strict=True)
        ]
        return chunks, counted

    def think(self, observations: Sequence[ObservationLike]) -> list[Thought]:
        """Return the policy's own reasonings."""
        policy = self.policy
        if isinstance(policy, HeadPolicy):
            return policy.view.think(policy.mllm, policy.prompts(observations))
        prompts = [policy.prompt(seen) for seen in observations]
        return write_thoughts(policy.mllm, prompts, policy.config.max_reasoning_tokens)

    def replaced(self, own: str, instruction: str, key: NoiseKey) -> str:
        """Return the reasoning that takes the place of `own`."""
        rng = np.random.default_rng(list(key_digest((*key, self.condition))))
        if self.condition == "kept":
            return own
        if self.condition == "emptied":
            return ""
        if self.condition == "shuffled":
            return shuffled(own, rng)
        same = self.condition == "other-frame"
        pool = [one.text for one in self.donors if (one.instruction == instruction) == same]
        if not pool:
            raise RoboAlignError(
                f"no reasoning of {'this' if same else 'another'} instruction is known",
                where=instruction,
                fix="write them to more demonstrations",
            )
        others = [text for text in pool if text != own] or pool
        return others[int(rng.integers(len(others)))]

    def _begun(self, thought: Thought, text: str | None) -> list[int]:
        """Return the ids of a reasoning and what follows it: its tag, and the opening of the block
        where a token policy would write it too. `text` replaces the reasoning, unless None."""
        mllm, opens = self.policy.mllm, thought.closed and isinstance(self.policy, TokenPolicy)
        end = OPENING if opens else END_OF_REASONING
        if text is not None:
            return _tokens(mllm, f"{_THINK}{text}{end}")
        if not opens:
            return thought.ids
        return [*thought.ids[: -len(closing_ids(mllm))], *_tokens(mllm, end)]

    def _write(
        self,
        policy: TokenPolicy,
        observations: Sequence[ObservationLike],
        noise_keys: Sequence[NoiseKey],
        prompts: Sequence[Encoded],
        begun: Sequence[Sequence[int]],
    ) -> tuple[np.ndarray, list[TokenAnswer]]:
        """Let the model go on from the reasonings."""
        started = [continue_from(prompt, ids) for prompt, ids in zip(prompts, begun, strict=True)]
        blocks = write_blocks(policy.mllm, started, policy.config)
        replies = [
            [WrittenReply([*ids, *more.ids], more.generated)]
            for ids, more in zip(begun, blocks, strict=True)
        ]
        answers = [row[0] for row in policy.read(replies)]
        chunks = policy.settle(observations, noise_keys, [one.chunk for one in answers])
        return chunks, answers


def thought_text(mllm: Mllm, ids: Sequence[int]) -> str:
    """Return a written reasoning as text, without its tags and what follows them."""
    before = whole_text(mllm, ids).split(END_OF_REASONING)[0]
    return before.removeprefix(_THINK).strip()


def shuffled(text: str, rng: np.random.Generator) -> str:
    """Return the words of a text in another order, if it has two different ones."""
    words = text.split()
    if len(set(words)) < 2:
        return text
    while True:
        order = " ".join(words[n] for n in rng.permutation(len(words)))
        if order != " ".join(words):
            return order


def _tokens(mllm: Mllm, text: str) -> list[int]:
    return list(mllm.tokenizer(text, add_special_tokens=False)["input_ids"])
