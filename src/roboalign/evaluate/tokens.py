"""Ask an MLLM the held-out questions: with their own image, with another image, and after forced
reasoning.

Decoding is greedy. Every answer becomes one record (see `token_metrics` for its fields), written to
a jsonl file so that two MLLMs can be compared sample by sample.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import Field

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.actions.vocabulary import ActionVocabulary
from roboalign.align.grpo.rollout import encoded_prompt
from roboalign.align.rewards.actions import prefix_accuracy
from roboalign.conversations.blocks import Parsed, parse_response
from roboalign.conversations.conversation import Conversation, with_images_of
from roboalign.conversations.prompts import ACTIONS, Mode, action_answer
from roboalign.conversations.reply import has_reasoning
from roboalign.conversations.styles.base import PromptStyle
from roboalign.conversations.styles.registry import style_of
from roboalign.core.config import Config, Seed
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_text
from roboalign.core.progress import Progress
from roboalign.evaluate.priors import Priors
from roboalign.evaluate.token_metrics import summarize
from roboalign.mllm.continuation import continue_from
from roboalign.mllm.encode import Encoded, end_ids, special_ids
from roboalign.mllm.generate import generate
from roboalign.mllm.load import Mllm
from roboalign.questions.registry import chance, label_of, score_answer

EMPTY_REASONING = "<think></think><answer>"


class TokenEvalConfig(Config):
    """Settings for measuring an MLLM on held-out frames."""

    max_questions: int = Field(600, ge=10)
    """Number of held-out questions asked, direct and reasoned together; question types
    alternate."""
    max_actions: int = Field(400, ge=10)
    """Number of held-out frames for which actions are asked, directly and with reasoning."""
    batch_size: int = Field(64, ge=1)
    """Prompts generated at once."""
    max_new_tokens: int = Field(96, ge=1, le=1_000_000)
    """Tokens after which an answer is cut; a cut answer is scored as it is."""
    seed: Seed = 0
    """Seed that draws the samples and the swaps; two MLLMs are compared under the same one."""


def evaluate_mllm(
    mllm: Mllm,
    heldout: Sequence[Conversation],
    priors: Priors,
    fast: FastTokenizer,
    stats: ActionStats,
    mean_chunk: np.ndarray,
    config: TokenEvalConfig,
    records_path: str | Path,
    *,
    grid: int = 32,
    run_seed: int = 0,
) -> dict[str, Any]:
    """Ask `heldout` (the mixture's held-out split), write the records, and return their `summarize`
    plus "cost".

    The questions have the model's prompt style.

    `mean_chunk` [H, A], normalized, is the mean of the training chunks. `grid` is the mixture's,
    for the chance of a point. A model without action tokens is asked only the questions. Raises
    RoboAlignError if there is nothing to ask.
    """
    questions = draw_questions(heldout, config)
    actions = draw_actions(heldout, config) if mllm.vocabulary else []
    if not questions and not actions:
        raise RoboAlignError(
            "the held-out split has nothing to ask", fix="raise mix.heldout_episode_share"
        )
    asker = Asker(mllm, config)
    records = ask_questions(asker, questions, priors, grid)
    if mllm.vocabulary:
        scorer = ActionScorer(
            asker.text,
            mllm.vocabulary,
            fast,
            stats,
            mean_chunk,
            special_ids(mllm),
            asker.style,
        )
        records += ask_actions(asker, scorer, actions, config.seed)
    for record in records:
        record["run_seed"] = run_seed
    write_text(
        records_path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    )
    return {**summarize(records), "cost": asker.cost()}


class Asker:
    """Generate greedily and keep a running count of the cost."""

    def __init__(self, mllm: Mllm, config: TokenEvalConfig) -> None:
        self.mllm, self.config = mllm, config
        self.style = style_of(mllm.prompts)
        self.began = time.monotonic()
        self.answers = self.prefill_tokens = self.generated_tokens = 0
        self.ends = end_ids(mllm)

    def __call__(self, label: str, encoded: Sequence[Encoded]) -> list[list[int]]:
        """Generate the ids of each prompt, without the end token. Prompts of similar length share a
        batch: less padding."""
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].input_ids))
        answers: list[list[int]] = [[] for _ in encoded]
        with Progress(f"tokens {label}", len(order)) as progress:
            for start in range(0, len(order), self.config.batch_size):
                chosen = order[start : start + self.config.batch_size]
                generation = generate(
                    self.mllm,
                    [encoded[i] for i in chosen],
                    max_new_tokens=self.config.max_new_tokens,
                    temperature=0.0,
                    stop="</answer>",
                )
                for i, (ids,) in zip(chosen, generation.tokens):
                    answers[i] = ids[:-1] if ids and ids[-1] in self.ends else ids
                self.answers += len(chosen)
                self.prefill_tokens += generation.n_prefill_tokens
                self.generated_tokens += generation.n_decoded_tokens
                progress.advance(len(chosen))
        return answers

    def text(self, ids: Sequence[int]) -> str:
        """Decode ids as text; special tokens stay visible."""
        return str(self.mllm.tokenizer.decode(list(ids), skip_special_tokens=False))

    def prompt(self, conversation: Conversation) -> Encoded:
        """Encode a conversation's first question about its images."""
        return encoded_prompt(self.mllm, conversation)

    def cost(self) -> dict[str, Any]:
        """Return the running totals of what was asked."""
        seconds = round(time.monotonic() - self.began, 2)
        return {
            "answers": self.answers,
            "prefill_tokens": self.prefill_tokens,
            "generated_tokens": self.generated_tokens,
            "seconds": seconds,
        }


def ask_questions(
    asker: Asker, questions: Sequence[Conversation], priors: Priors, grid: int
) -> list[dict[str, Any]]:
    """Return records of the questions with their own image and, for the direct ones, with another
    episode's image."""
    records = _question_records(asker, "vqa", questions, priors, grid)
    direct = [c for c in questions if c.turns[0].mode == "direct"]
    donors = other_episode([c.episode_id for c in direct], asker.config.seed)
    if donors is not None:
        blinded = [with_images_of(c, direct[donor]) for c, donor in zip(direct, donors)]
        records += _question_records(asker, "vqa-shuffled", blinded, priors, grid)
    return records


def _question_records(
    asker: Asker, probe: str, questions: Sequence[Conversation], priors: Priors, grid: int
) -> list[dict[str, Any]]:
    answers = asker(probe, [asker.prompt(c) for c in questions])
    records = []
    for conversation, ids in zip(questions, answers):
        turn, text = conversation.turns[0], asker.text(ids)
        answer = asker.style.parse(text, cast(Mode, turn.mode), label_of(turn.type)).answer
        records.append(
            {
                **_common(conversation, probe),
                "kind": turn.kind,
                "type": turn.type,
                "text": text,
                "expected": turn.expected,
                "answered": answer is not None,
                "score": score_answer(turn.type, turn.expected, answer),
                "chance": chance(turn.type, grid),
                "prior": score_answer(turn.type, turn.expected, priors.of_type(turn.type)),
                "text_prior": score_answer(
                    turn.type,
                    turn.expected,
                    priors.of_text(asker.style.bare(turn.question), turn.type),
                ),
            }
        )
    return records


@dataclass(frozen=True)
class ActionScorer:
    """Turn generated ids into the contents of an action record."""

    text: Callable[[Sequence[int]], str]
    vocabulary: ActionVocabulary
    fast: FastTokenizer
    stats: ActionStats
    mean_chunk: np.ndarray
    special_ids: frozenset[int]
    style: PromptStyle

    def parse(self, ids: Sequence[int], mode: Mode = "think") -> Parsed:
        """Return the action block and whether the reply has the form that the mode asks for."""
        return parse_response(
            ids,
            self.vocabulary,
            self.text,
            special_ids=self.special_ids,
            form=self.style.form(mode),
        )

    def record(self, conversation: Conversation, ids: Sequence[int]) -> dict[str, Any]:
        """Return one "action" record. A direct answer is well formed if it is exactly the action
        reply and nothing else."""
        target, chunk = action_target(conversation)
        mode = cast(Mode, conversation.turns[0].mode)
        parsed, text = self.parse(ids, mode), self.text(ids)
        found = parsed.action_ids
        well_formed, reason = parsed.well_formed, parsed.reason
        if mode == "direct" and found is not None:
            reply = self.style.reply(action_answer(found), mode, ACTIONS)
            well_formed = "".join(text.split()) == reply
            reason = "ok" if well_formed else "text around the action block"
        decoded = self.fast.decode(found) if found is not None else None
        l1 = float(np.abs(decoded - chunk).mean()) if isinstance(decoded, np.ndarray) else None
        still = self.stats.normalize(np.zeros(chunk.shape[-1]))
        return {
            **_common(conversation, "action"),
            "text": text,
            "well_formed": well_formed,
            "reason": "" if well_formed else reason,
            "has_action": found is not None,
            "reasoned": has_reasoning(text),
            "decoded": l1 is not None,
            "length": len(found or []),
            "target_length": len(target),
            "prefix": prefix_accuracy(found or [], target),
            "l1": l1,
            "l1_mean_action": float(np.abs(self.mean_chunk - chunk).mean()),
            "l1_zero": float(np.abs(still - chunk).mean()),
        }


def ask_actions(
    asker: Asker, scorer: ActionScorer, actions: Sequence[Conversation], seed: int
) -> list[dict[str, Any]]:
    """Return records of the action prompts in both modes, then of the reasoned ones with forced
    reasoning."""
    encoded = [asker.prompt(c) for c in actions]
    answers = asker("actions", encoded)
    records = [scorer.record(conversation, ids) for conversation, ids in zip(actions, answers)]
    reasoned = [
        (conversation, prompt, list(ids[: ids.index(scorer.vocabulary.start_id)]))
        for conversation, prompt, ids in zip(actions, encoded, answers)
        if conversation.turns[0].mode == "think" and scorer.parse(ids).well_formed
    ]
    donors = other_episode([conversation.episode_id for conversation, _, _ in reasoned], seed)
    if donors is None:
        return records
    empty = asker.mllm.tokenizer(EMPTY_REASONING, add_special_tokens=False)["input_ids"]
    conditions: dict[str, Callable[[int], list[int]]] = {
        "kept": lambda i: reasoned[i][2],
        "emptied": lambda i: empty,
        "swapped": lambda i: reasoned[donors[i]][2],
    }
    for probe, reasoning in conditions.items():
        forced = [reasoning(i) for i in range(len(reasoned))]
        continued = asker(
            probe, [continue_from(prompt, ids) for (_, prompt, _), ids in zip(reasoned, forced)]
        )
        for (conversation, _, _), start, ids in zip(reasoned, forced, continued):
            found = scorer.parse([*start, *ids]).action_ids or []
            prefix = prefix_accuracy(found, action_target(conversation)[0])
            records.append(
                {
                    **_common(conversation, probe),
                    "text": scorer.text([*start, *ids]),
                    "prefix": prefix,
                }
            )
    return records


def other_episode(episode_ids: Sequence[str], seed: int) -> list[int] | None:
    """Return a permutation that gives each sample one of another episode; None if an episode has
    more than half.

    Samples are sorted by episode in a random order, and all shift by the size of the largest
    episode.
    """
    sizes = Counter(episode_ids)
    largest = max(sizes.values(), default=0)
    if not sizes or 2 * largest > len(episode_ids):
        return None
    rng = random.Random(seed)
    rank = {episode: rng.random() for episode in sorted(sizes)}
    order = sorted(range(len(episode_ids)), key=lambda i: (rank[episode_ids[i]], i))
    donors = [0] * len(order)
    for place, sample in enumerate(order):
        donors[sample] = order[(place + largest) % len(order)]
    return donors


def draw_questions(heldout: Sequence[Conversation], config: TokenEvalConfig) -> list[Conversation]:
    """Draw at most `max_questions`, both modes of each, alternating the question types."""
    pairs: dict[str, list[list[Conversation]]] = {}
    for both in _by_sample(c for c in heldout if c.turns[0].kind != "action"):
        pairs.setdefault(both[0].turns[0].type, []).append(both)
    rng = random.Random(config.seed)
    for group in pairs.values():
        rng.shuffle(group)
    drawn: list[Conversation] = []
    for turn in range(max(map(len, pairs.values()), default=0)):
        for group in pairs.values():
            if turn < len(group) and len(drawn) + len(group[turn]) <= config.max_questions:
                drawn += group[turn]
    return drawn


def draw_actions(heldout: Sequence[Conversation], config: TokenEvalConfig) -> list[Conversation]:
    """Draw at most `max_actions` frames, both modes of each."""
    pairs = _by_sample(c for c in heldout if c.turns[0].kind == "action")
    random.Random(config.seed).shuffle(pairs)
    return [conversation for both in pairs[: config.max_actions] for conversation in both]


def action_target(conversation: Conversation) -> tuple[Sequence[int], np.ndarray]:
    """Return FAST ids and normalized chunk [H, A] of an action sample. Raises RoboAlignError if it
    has none."""
    if conversation.target is None or conversation.chunk is None:
        raise RoboAlignError(
            "an action sample has no target", where=conversation.id, fix="build the mixture again"
        )
    return conversation.target, np.asarray(conversation.chunk, dtype=np.float32)


def sample_id(conversation: Conversation) -> str:
    """Return the id of the sample without its mode: both modes of a question share it."""
    return conversation.id.removesuffix(f"-{conversation.turns[0].mode}")


def _by_sample(conversations: Iterable[Conversation]) -> list[list[Conversation]]:
    groups: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        groups.setdefault(sample_id(conversation), []).append(conversation)
    return list(groups.values())


def _common(conversation: Conversation, probe: str) -> dict[str, Any]:
    return {
        "id": sample_id(conversation),
        "task": conversation.task,
        "episode_id": conversation.episode_id,
        "frame": conversation.frame,
        "mode": conversation.turns[0].mode,
        "probe": probe,
    }
