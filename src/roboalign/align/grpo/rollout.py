"""Run one GRPO rollout: sample a group of answers to each prompt, reward them, and convert rewards
to advantages."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from roboalign.actions.fast import FastTokenizer
from roboalign.align.dataset import naming, pictures
from roboalign.align.grpo.loss import group_advantages
from roboalign.align.rewards.actions import ACTION_REWARDS, Reward, score_responses
from roboalign.align.rewards.answers import ANSWER_REWARDS as IN_WORDS
from roboalign.align.rewards.answers import AnswerReward, read_trace, score_answers
from roboalign.align.rewards.registry import score_action
from roboalign.conversations.conversation import Conversation, Turn, turn_alone
from roboalign.conversations.styles.registry import style_of
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import (
    Encoded,
    Prompt,
    collate,
    encode_prompt,
    end_ids,
    needs_blank,
    special_ids,
)
from roboalign.mllm.generate import Generation, generate
from roboalign.mllm.load import Mllm
from roboalign.questions.registry import label_of

STOP = "</answer>"


class Sampler(Protocol):
    """Samples answers instead of `generate`: a remote server."""

    def sample(
        self,
        mllm: Mllm,
        asked: Sequence[Prompt],
        prompts: Sequence[Encoded],
        *,
        samples: int,
        max_new_tokens: int,
        temperature: float,
        stop: str | None,
        seed: Sequence[int],
    ) -> Generation: ...


@dataclass(frozen=True)
class Rollout:
    """Sampled answers to P prompts, S adjacent answers to each (P x S rows)."""

    prompts: list[Encoded]
    ids: list[list[int]]
    """Sampled tokens of each row, including the end token."""
    logp: list[list[float]]
    """Their log-probabilities under the policy that sampled them."""
    rewards: Sequence[Reward | AnswerReward]
    """Reward for presets on actions, AnswerReward for presets in words."""
    advantages: Float[Tensor, " answers"]
    generation: Generation


@dataclass(frozen=True)
class Group:
    """The answers to one prompt with what a log needs, small enough to send to another process."""

    ids: list[list[int]]
    rewards: Sequence[Reward | AnswerReward]
    finished: list[bool]
    advantages: list[float]


@dataclass(frozen=True)
class Batch:
    """The part of a rollout that goes through the model together, as tensors on its device."""

    prompts: dict[str, Tensor]
    """Model arguments of the P prompts, padded left."""
    images: list[int]
    """Number of images of each prompt, a blank one of `collate` included."""
    completions: Int[Tensor, "answers tokens"]
    """P * S rows, padded right."""
    mask: Int[Tensor, "answers tokens"]
    """1 on tokens."""
    old_logp: Float[Tensor, "answers tokens"]
    """float32, under the policy that sampled them."""
    advantages: Float[Tensor, " answers"]


def roll_out(
    mllm: Mllm,
    fast: FastTokenizer | None,
    conversations: Sequence[Conversation],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    preset: str,
    seed: int | Sequence[int],
    sampler: Sampler | None = None,
) -> Rollout:
    """Sample `samples` answers to the question of each conversation and reward them against its
    target.

    The target is an action chunk, or for a preset in words (rewards/answers.py) the expected
    answer; then neither `fast` nor action tokens are needed. `seed` is as in `generate`, which a
    `sampler` replaces; a sampler needs one seed per prompt.
    """
    questions = [prompt_of(c) for c in conversations]
    prompts = [encoded_prompt(mllm, c, one) for c, one in zip(conversations, questions)]
    settings: dict[str, Any] = {
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "stop": STOP,
        "seed": seed,
    }
    if sampler is None:
        generation = generate(mllm, prompts, **settings)
    else:
        generation = sampler.sample(mllm, questions, prompts, **settings)
    ids = [row for group in generation.tokens for row in group]
    asked = [c for c in conversations for _ in range(samples)]
    rewards: Sequence[Reward | AnswerReward]
    if preset in IN_WORDS:
        texts = [decoded_text(mllm, row) for row in ids]
        rewards = score_answers(
            texts,
            asked,
            preset=preset,
            style=style_of(mllm.prompts),
            special=mllm.tokenizer.all_special_tokens,
        )
    else:
        assert mllm.vocabulary is not None and fast is not None
        rewards = score_responses(
            ids,
            [c.target or () for c in asked],
            preset=preset,
            score=None if preset in ACTION_REWARDS else functools.partial(score_action, preset),
            vocabulary=mllm.vocabulary,
            fast=fast,
            decode_text=lambda row: str(
                mllm.tokenizer.decode(list(row), skip_special_tokens=False)
            ),
            eos_ids=end_ids(mllm),
            special_ids=special_ids(mllm),
        )
    totals = torch.tensor([reward.total for reward in rewards])
    logp = [row for group in generation.logprobs for row in group]
    return Rollout(prompts, ids, logp, rewards, group_advantages(totals, samples), generation)


def prompt_of(conversation: Conversation) -> Prompt:
    """Return the first question of a conversation, with the images shown until then."""
    first = turn_alone(conversation, 0)
    return Prompt(first.turns[0].question, pictures(first))


def encoded_prompt(mllm: Mllm, conversation: Conversation, prompt: Prompt | None = None) -> Encoded:
    """Return the tokens of `prompt_of`. Raises RoboAlignError naming the conversation."""
    with naming(conversation):
        one = prompt or prompt_of(conversation)
        return encode_prompt(mllm, one.question, one.images)


def decoded_text(mllm: Mllm, ids: Sequence[int]) -> str:
    """Return sampled ids as text, including special tokens, without the end token."""
    ended = bool(ids) and ids[-1] in end_ids(mllm)
    return str(mllm.tokenizer.decode(list(ids[:-1] if ended else ids), skip_special_tokens=False))


def batch_of(mllm: Mllm, rollout: Rollout, first: int, count: int) -> Batch:
    """Return tensors of the prompts from `first` to before `first + count`, and of their
    answers."""
    samples = len(rollout.ids) // len(rollout.prompts)
    rows = slice(first * samples, (first + count) * samples)
    chosen = rollout.prompts[first : first + count]
    return answer_batch(
        mllm, chosen, rollout.ids[rows], rollout.logp[rows], rollout.advantages[rows]
    )


def answer_batch(
    mllm: Mllm,
    chosen: Sequence[Encoded],
    answers: Sequence[Sequence[int]],
    logp: Sequence[Sequence[float]],
    advantages: Float[Tensor, " answers"],
) -> Batch:
    """Return tensors of P prompts and of S adjacent answers to each."""
    prompts = collate(mllm, chosen, padding_side="left", blank=True)
    images = [len(one.images) for one in chosen]
    images[0] += needs_blank(chosen)
    del prompts["labels"]
    device = mllm.device
    return Batch(
        {key: value.to(device) for key, value in prompts.items()},
        images,
        _pad(answers, mllm.tokenizer.pad_token_id, torch.long).to(device),
        _pad([[1] * len(row) for row in answers], 0, torch.long).to(device),
        _pad(logp, 0.0, torch.float32).to(device),
        advantages.to(device),
    )


def groups_of(rollout: Rollout) -> list[Group]:
    """Split a rollout into its prompts."""
    samples = len(rollout.ids) // len(rollout.prompts)
    parts = [slice(first, first + samples) for first in range(0, len(rollout.ids), samples)]
    return [
        Group(rollout.ids[part], rollout.rewards[part], finished, rollout.advantages[part].tolist())
        for part, finished in zip(parts, rollout.generation.finished)
    ]


def describe_groups(
    groups: Sequence[Group], conversations: Sequence[Conversation]
) -> dict[str, Any]:
    """Return statistics of a rollout for metrics.jsonl. Shares and means are over its answers,
    unless stated.

    `no_signal` is the share of groups whose answers all have the same reward.
    """
    rewards, samples = [reward for group in groups for reward in group.rewards], len(groups[0].ids)
    totals = np.array([r.total for r in rewards]).reshape(-1, samples)
    lengths = [len(row) for group in groups for row in group.ids]
    return {
        "reward": float(totals.mean()),
        "reward_std_in_group": float(totals.std(axis=1, ddof=1).mean()),
        "format": float(np.mean([r.format for r in rewards])),
        **_actions(
            [r for r in rewards if isinstance(r, Reward)],
            [c for c in conversations for _ in range(samples)],
        ),
        **_words([r for r in rewards if isinstance(r, AnswerReward)]),
        "answers": len(rewards),
        "no_signal": float(np.mean(totals.max(axis=1) == totals.min(axis=1))),
        "finished": float(np.mean([end for group in groups for end in group.finished])),
        "length_mean": float(np.mean(lengths)),
        "length_max": max(lengths),
        "faults": dict(Counter(r.reason for r in rewards if r.reason != "ok").most_common()),
    }


def _actions(rewards: Sequence[Reward], asked: Sequence[Conversation]) -> dict[str, Any]:
    """Return statistics of action answers.

    `l1` is the mean over the answers that decode to a chunk, or None; `undecoded` counts answers
    with an action block that does not. `shorter` and `longer` compare the length of action blocks
    with that of their target.
    """
    if not rewards:
        return {}
    blocks = [(r, len(c.target or ())) for r, c in zip(rewards, asked) if r.length]
    l1 = [r.l1 for r in rewards if r.l1 is not None]
    return {
        "action": float(np.mean([r.action for r in rewards])),
        "prefix": float(np.mean([r.prefix for r in rewards])),
        "decoded": float(np.mean([r.decoded for r in rewards])),
        "l1": float(np.mean(l1)) if l1 else None,
        "undecoded": sum(not r.decoded for r, _ in blocks),
        "shorter": sum(r.length < wanted for r, wanted in blocks),
        "longer": sum(r.length > wanted for r, wanted in blocks),
    }


def _words(rewards: Sequence[AnswerReward]) -> dict[str, Any]:
    if not rewards:
        return {}
    return {
        name: float(np.mean([getattr(r, name) for r in rewards])) for name in ("score", "accuracy")
    }


def sample_records(
    mllm: Mllm, groups: Sequence[Group], conversations: Sequence[Conversation], count: int
) -> list[dict[str, Any]]:
    """Return the first answer to each of the first `count` prompts, decoded, for samples.jsonl."""
    return [
        {
            "id": c.id,
            "question": c.turns[0].question,
            "answer": mllm.tokenizer.decode(group.ids[0], skip_special_tokens=False),
            "target": list(c.target or ())
            if isinstance(group.rewards[0], Reward)
            else c.turns[0].expected,
            **vars(group.rewards[0]),
            "advantage": group.advantages[0],
        }
        for c, group in zip(conversations[:count], groups)
    ]


def check_prompts(
    mllm: Mllm, conversations: Sequence[Conversation], preset: str, where: str
) -> None:
    """Raise RoboAlignError if these cannot be RL prompts for this model and this preset of the
    reward."""
    if preset not in IN_WORDS and mllm.vocabulary is None:
        raise RoboAlignError(
            "the model has no action tokens", where=where, fix="run SFT with action turns first."
        )
    if not conversations:
        fix = "ask more questions." if preset in IN_WORDS else "raise rl_share of the mixture."
        raise RoboAlignError("there is no RL prompt", where=where, fix=fix)
    if preset in IN_WORDS:
        for conversation in conversations:
            _check_question(conversation.turns[0], preset, f"{where}, prompt {conversation.id}")
        return
    untargeted = [c.id for c in conversations if not c.target]
    if untargeted:
        raise RoboAlignError(
            f"{len(untargeted)} prompts have no target (first: {untargeted[0]})",
            where=where,
            fix="use the rl split of a mixture.",
        )


def _check_question(turn: Turn, preset: str, where: str) -> None:
    """Raise RoboAlignError if a question does not ask to reason, or has no expected answer that the
    preset can score."""
    label = label_of(turn.type)
    if (
        turn.mode != "think"
        or not turn.expected
        or (preset == "trace" and read_trace(turn.expected) is None)
    ):
        raise RoboAlignError(
            f"a question of type {turn.type}, asked in mode {turn.mode} and answered `{label} {turn.expected}`, cannot "
            f"be rewarded as `{preset}`",
            where=where,
            fix="ask questions with a known answer in think mode.",
        )


def _pad(
    rows: Sequence[Sequence[float]], value: float, dtype: torch.dtype
) -> Num[Tensor, "{len(rows)} tokens"]:
    # At least two columns: the processes of a sharded model run their forward passes in step, so a
    # batch of single tokens must not skip the pass over the rest.
    width = max(2, *(len(row) for row in rows))
    return torch.tensor([[*row, *([value] * (width - len(row)))] for row in rows], dtype=dtype)
