"""Reward a sampled answer: pure functions on token ids (paper, section on RL, eq. 1 and 2).

A response is `<think> reasoning </think><answer><ACTION_START> FAST tokens <ACTION_END></answer>`.
Action tokens are read as ids, never from decoded text; only the tags around them are read as text.
r = (r_f + r_a) / 2. RL asks to reason, and the replies of every prompt style then have this form.
Rewards of answers in words are in rewards/answers.py.

What the paper leaves open, and the choice made here:

| case | r_f | r_a (`paper`) |
|---|---|---|
| no token matches (the set in the formula is empty) | 1 | 0 |
| shorter than the target, all matching | 1 | matched / m |
| longer than the target, the whole target a prefix | 1 | 1: the formula as written; `length` is also logged |
| tags missing, nested, repeated, or other text around them; empty reasoning | 0 | of the one block, as below |
| a special token (<|im_start|>, <|image_pad|>) in the reasoning | 0 | of the one block |
| two blocks, an unclosed, empty or interrupted block, action tokens outside it (as in the reasoning) | 0 | 0 |
| one block that is not inside `<answer>` | 0 | 0 |

Under `paper`, r_a does not require r_f: the formula adds them, and a policy with a right action and
a wrong tag should learn which of the two is wrong. But only the one block inside <answer> earns it.
If the first, or the best, of several blocks were enough, the cheapest policy would be to list
guesses.

The preset `decoded` differs only in r_a: 0 unless r_f is 1 and the ids decode to a chunk, else the
mean of the prefix accuracy and exp(-L1 / tau), where L1 is between the decoded and the target
chunk. It rewards a valid trajectory that differs from the recorded one, and gives nothing for an
answer of the wrong length, which decodes to no chunk. It requires r_f because a small policy that
was rewarded for its actions in either format dropped its reasoning and relied on r_a.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from roboalign.actions.fast import Chunk, DecodeFailure, FastTokenizer
from roboalign.actions.vocabulary import ActionVocabulary
from roboalign.conversations.blocks import Parsed, parse_response

TAU = 0.3
"""Scale of the closeness, in normalized units: an L1 of 0.1 earns 0.72, the mean action (L1 about
0.5) earns 0.19. At half of this scale, most samples of a model just after SFT earned almost
nothing, whatever their distance."""


@dataclass(frozen=True)
class Reward:
    """One response's reward and its parts, all in [0, 1]; total = (format + action) / 2.

    A reward from outside (`rewards.registry`) sets `total` and `action`, which may be any finite
    number.
    """

    total: float
    format: float
    action: float
    prefix: float
    """Prefix accuracy (paper, eq. 2), whatever the preset."""
    l1: float | None
    """Mean absolute difference from the target chunk, normalized units; None if the ids decode to
    no chunk."""
    decoded: bool
    """Whether the ids decode to a chunk."""
    length: int
    """FAST tokens in the block; 0 without one."""
    reason: str
    """Why the format failed, or "ok"."""


def prefix_accuracy(generated: Sequence[int], target: Sequence[int]) -> float:
    """Return the share of `target` that `generated` matches from the start, in [0, 1] (paper, eq.
    2).

    This is 0.0 if the first token differs. Raises ValueError on an empty target.
    """
    if len(target) == 0:
        raise ValueError("the target is empty")
    matched = 0
    for ours, theirs in zip(generated, target, strict=False):
        if ours != theirs:
            break
        matched += 1
    return matched / len(target)


def paper_reward(
    parsed: Parsed,
    target: Sequence[int],
    chunk: Chunk | DecodeFailure | None,
    target_chunk: Chunk,
) -> Reward:
    """Return the paper's reward: r_a is the prefix accuracy. `chunk` (see `decoded_reward`) is only
    logged."""
    prefix = prefix_accuracy(parsed.action_ids or [], target)
    return _reward(parsed, action=prefix, prefix=prefix, l1=_l1(chunk, target_chunk))


def decoded_reward(
    parsed: Parsed,
    target: Sequence[int],
    chunk: Chunk | DecodeFailure | None,
    target_chunk: Chunk,
    tau: float = TAU,
) -> Reward:
    """Return the reward with r_a = (prefix accuracy + exp(-L1 / tau)) / 2 if the response is well
    formed and its ids decode, else 0.

    `chunk` is `FastTokenizer.decode` of `parsed.action_ids` (None without them), `target_chunk`
    that of `target`.
    """
    prefix, l1 = prefix_accuracy(parsed.action_ids or [], target), _l1(chunk, target_chunk)
    action = 0.0 if l1 is None or not parsed.well_formed else (prefix + math.exp(-l1 / tau)) / 2
    return _reward(parsed, action=action, prefix=prefix, l1=l1)


def action_reward(measured: Reward, *, total: float) -> Reward:
    """Return `measured` with another total: a reward from outside is one number, but the parts are
    still logged."""
    return replace(measured, total=total, action=total)


ACTION_REWARDS: dict[str, Callable[..., Reward]] = {
    "paper": paper_reward,
    "decoded": decoded_reward,
}
"""The reward functions by their names in a recipe."""


def score_responses(
    responses: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    preset: str,
    score: Callable[..., Reward] | None = None,
    vocabulary: ActionVocabulary,
    fast: FastTokenizer,
    decode_text: Callable[[Sequence[int]], str],
    eos_ids: Collection[int] = (),
    special_ids: Collection[int] = (),
) -> list[Reward]:
    """Return the rewards of MLLM ids `responses` against FAST ids `targets`, one each.

    `preset` names a function of `ACTION_REWARDS`, unless `score` is given:
    `rewards.registry.score_action` of a name, which also takes the text of the response.

    The target chunk is decoded from the target itself, so that an exact answer earns 1 under both
    presets. Raises ValueError if a target decodes to no chunk: the data is broken, not the
    response.
    """
    parsed = [
        parse_response(ids, vocabulary, decode_text, eos_ids, special_ids) for ids in responses
    ]
    rewards = []
    chunks = fast.decode_batch([p.action_ids or [] for p in parsed])
    for ids, p, target, chunk, target_chunk in zip(
        responses, parsed, targets, chunks, fast.decode_batch(targets), strict=True
    ):
        if isinstance(target_chunk, DecodeFailure):
            raise ValueError(
                f"a target of {len(target)} tokens decodes to no chunk: {target_chunk}"
            )
        if score is None:
            rewards.append(ACTION_REWARDS[preset](p, target, chunk, target_chunk))
        else:
            ended = bool(ids) and ids[-1] in eos_ids
            text = decode_text(ids[:-1] if ended else ids)
            rewards.append(score(text, p, target, chunk, target_chunk))
    return rewards


def _l1(chunk: Chunk | DecodeFailure | None, target_chunk: Chunk) -> float | None:
    if not isinstance(chunk, np.ndarray):
        return None
    return float(np.abs(chunk - target_chunk).mean())


def _reward(parsed: Parsed, *, action: float, prefix: float, l1: float | None) -> Reward:
    form = float(parsed.well_formed)
    return Reward(
        total=(form + action) / 2,
        format=form,
        action=action,
        prefix=prefix,
        l1=l1,
        decoded=l1 is not None,
        length=len(parsed.action_ids or []),
        reason=parsed.reason,
    )
