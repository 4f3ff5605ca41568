"""Stages of `roboalign distill`: GRPO on checkable questions, sampling answers, and selecting what
is kept of them.

Questions come from the training split of the run's mixture, so that none is held out. They are
ordered by a hash: the first are trained on, the next are sampled, and a larger number includes the
smaller. The model is the pretrained MLLM without action tokens.
"""

import hashlib
import heapq
import json
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from roboalign import __version__
from roboalign.align.distill import (
    DUPLICATE,
    ENOUGH,
    PAPER_KEPT,
    DistillConfig,
    as_prompt,
    as_trace,
    judge,
)
from roboalign.align.grpo.rollout import STOP, decoded_text, encoded_prompt
from roboalign.align.grpo.train import train_grpo
from roboalign.conversations.conversation import (
    Conversation,
    image_hash,
    iterate_conversations,
    write_conversations,
)
from roboalign.conversations.reply import ParsedReply
from roboalign.conversations.styles.base import PromptStyle
from roboalign.conversations.styles.registry import style_of
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file, read_json, read_jsonl, write_json, write_text
from roboalign.core.outcomes import Refused
from roboalign.core.progress import Progress
from roboalign.evaluate.statistics import proportion
from roboalign.mixture.manifest import Tally
from roboalign.mllm.generate import generate
from roboalign.mllm.load import Mllm
from roboalign.run.folder import mixture_folder
from roboalign.run.stage import Context
from roboalign.run.stages.base import LANGUAGE, source_folder

SHARD = 256  # questions whose answers are written together: the most that a kill can lose


def distill_rl(context: Context) -> dict[str, Any]:
    """Train with GRPO and the reward `answer` from the pretrained MLLM; write model/, metrics.jsonl
    and samples.jsonl."""
    config = context.recipe.distill
    prompts, _ = draw_prompts(context)
    mllm = context.load(pretrained(context))
    settings = config.rl.model_copy(update={"seed": config.seed})
    return train_grpo(mllm, None, prompts, settings, context.folder, label=context.name)


def sample(context: Context) -> dict[str, Any]:
    """Sample answers to the questions that GRPO did not see.

    Writes answers/NNNNN.jsonl, each atomically, and special_tokens.json: the strings that no trace
    may contain.
    """
    config, (_, questions) = context.recipe.distill, draw_prompts(context)
    if not questions:
        raise RoboAlignError(
            "the training split has no question left to sample",
            where="distill.questions",
            fix="lower distill.rl_questions, or raise mix.conversations",
        )
    mllm = context.load(context.run_dir / "distill" / "rl" / "model")
    write_json(context.folder / "special_tokens.json", mllm.tokenizer.all_special_tokens)
    parts = [questions[first : first + SHARD] for first in range(0, len(questions), SHARD)]
    paths = [context.folder / "answers" / f"{number:05d}.jsonl" for number in range(len(parts))]
    done = sum(len(part) for part, path in zip(parts, paths) if path.exists())
    with Progress(context.name, len(questions), start=done) as progress:
        for number, (part, path) in enumerate(zip(parts, paths)):
            if not path.exists():
                records = ask_mllm(mllm, part, config, number)
                write_text(
                    path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
                )
                progress.advance(len(part))
    records = [record for path in paths for record in read_jsonl(path)]
    return {
        "questions": len(questions),
        "answers": len(questions) * config.samples,
        "generated_tokens": sum(record["tokens"] for record in records),
    }


def traces(context: Context) -> dict[str, Any]:
    """Judge the answers; write train-*.parquet, a source for a mixture, and manifest.json."""
    config, (_, questions) = context.recipe.distill, draw_prompts(context)
    sampled, style = context.run_dir / "distill" / "sample", style_of(context.recipe.prompts)
    answers, special = read_answers(sampled / "answers"), read_json(sampled / "special_tokens.json")
    judged = [
        (question, judge(question, answers[question.id], config, style, special))
        for question in questions
    ]
    tally = Tally()
    kept = tally.count(
        [
            as_trace(question, verdict, number, style)
            for question, verdicts in judged
            for number, verdict in enumerate(verdicts)
            if isinstance(verdict, ParsedReply)
        ]
    )
    for path in context.folder.glob("train-*.parquet"):
        path.unlink()  # left by a start that was killed
    size = context.recipe.mix.shard_size
    for number, first in enumerate(range(0, len(kept), size)):
        write_conversations(
            context.folder / f"train-{number:05d}.parquet", kept[first : first + size]
        )
    manifest = {
        "config": config.model_dump(mode="json"),
        "prompts": style.name,
        "seed": config.seed,
        "counts": {"train": tally.summary()},
        **keep_rates(judged),
        "paper": {**PAPER_KEPT, "share": PAPER_KEPT["kept"] / PAPER_KEPT["questions"]},
        "shards": {path.name: hash_file(path) for path in sorted(context.folder.glob("*.parquet"))},
        "versions": {
            "roboalign": __version__,
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
        },
    }
    write_json(context.folder / "manifest.json", manifest)
    if not kept:
        raise RoboAlignError(
            "no answer passed the filters",
            where=str(context.folder / "manifest.json"),
            fix="see its outcomes; raise distill.rl.updates, or begin with a model that reasons",
        )
    share = manifest["kept_questions"]
    return {
        "questions": len(questions),
        "samples": len(kept),
        "keep_rate": share["value"],
        "keep_rate_low": share["low"],
        "keep_rate_high": share["high"],
        "passing_answers": manifest["passing_answers"],
    }


def draw_prompts(context: Context) -> tuple[list[Conversation], list[Conversation]]:
    """Return (the questions that GRPO trains on, those that are sampled), each a prompt of
    `as_prompt`.

    Each group gives its share of both, or what it has. A question about an image counts once,
    however often the mixture asks it.
    """
    config = context.recipe.distill
    found = iterate_conversations(mixture_folder(context.run_dir), "train", kinds=LANGUAGE)
    trained, sampled = (
        count // len(config.groups) for count in (config.rl_questions, config.questions)
    )
    style = style_of(context.recipe.prompts)
    chosen = first_of_groups(found, config, trained + sampled, style)
    return (
        [question for group in chosen for question in group[:trained]],
        [question for group in chosen for question in group[trained:]],
    )


def first_of_groups(
    found: Iterable[Conversation], config: DistillConfig, count: int, style: PromptStyle
) -> list[list[Conversation]]:
    """Return the first `count` questions of each group, in the order of a hash of the seed, image
    and question.

    Only these, and the hashes of those already seen, are held in memory.
    """
    group_of = {name: group for group, types in config.groups.items() for name in types}
    heaps: dict[str, list[tuple[int, Conversation]]] = {group: [] for group in config.groups}
    seen: set[int] = set()
    for conversation in found:
        image = " ".join(map(image_hash, conversation.images))
        for number, turn in enumerate(conversation.turns):
            if turn.type not in group_of:
                continue
            key = _place(f"{config.seed} {image} {style.bare(turn.question)} {turn.type}")
            heap = heaps[group_of[turn.type]]
            if key in seen or (len(heap) == count and key > -heap[0][0]):
                continue
            seen.add(key)
            (heapq.heappush if len(heap) < count else heapq.heapreplace)(
                heap, (-key, as_prompt(conversation, number, style))
            )
    return [
        [question for _, question in sorted(heap, key=lambda entry: -entry[0])]
        for heap in heaps.values()
    ]


def _place(text: str) -> int:
    """Return a 64-bit number to sort by."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def ask_mllm(
    mllm: Mllm, questions: Sequence[Conversation], config: DistillConfig, number: int
) -> list[dict[str, Any]]:
    """Sample answers to one shard of questions, decoded: {id, answers, tokens} each."""
    generation = generate(
        mllm,
        [encoded_prompt(mllm, question) for question in questions],
        samples=config.samples,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        stop=STOP,
        seed=_place(f"{config.seed} answers {number}") >> 1,
    )
    return [
        {
            "id": question.id,
            "answers": [decoded_text(mllm, row) for row in rows],
            "tokens": sum(map(len, rows)),
        }
        for question, rows in zip(questions, generation.tokens)
    ]


def read_answers(folder: Path) -> dict[str, list[str]]:
    """Read the sampled answers by the id of their question."""
    return {
        record["id"]: record["answers"]
        for path in sorted(folder.glob("*.jsonl"))
        for record in read_jsonl(path)
    }


def keep_rates(
    judged: Sequence[tuple[Conversation, Sequence[ParsedReply | Refused]]],
) -> dict[str, Any]:
    """Return the share that was kept, overall and by question type.

    `kept_questions`: share of the questions that gave a trace, with its Wilson interval; it grows
    with the number of answers sampled per question. `passing_answers`: share of single answers that
    pass, which does not depend on that number. `outcomes`: what became of each answer. The last two
    have no interval, because answers to one question are alike.
    """
    by_type: dict[str, list[Sequence[ParsedReply | Refused]]] = {}
    for question, verdicts in judged:
        by_type.setdefault(question.turns[0].type, []).append(verdicts)
    return {
        **_rates([verdicts for _, verdicts in judged]),
        "by_type": {name: _rates(verdicts) for name, verdicts in sorted(by_type.items())},
    }


def _rates(judged: Sequence[Sequence[ParsedReply | Refused]]) -> dict[str, Any]:
    outcomes = Counter(
        "kept" if isinstance(one, ParsedReply) else one.reason
        for verdicts in judged
        for one in verdicts
    )
    kept = [float(any(isinstance(one, ParsedReply) for one in verdicts)) for verdicts in judged]
    passing = sum(outcomes[name] for name in ("kept", DUPLICATE, ENOUGH))
    return {
        "questions": len(judged),
        "answers": outcomes.total(),
        "kept_questions": asdict(proportion(kept)),
        "passing_answers": passing / max(outcomes.total(), 1),
        "outcomes": dict(outcomes.most_common()),
    }


def pretrained(context: Context) -> Path:
    """Return the folder of the MLLM as it came, or as pretrained in this run, without action
    tokens."""
    source = context.recipe.backbone.source
    return (
        context.run_dir / "base" / "pretrain" / "model"
        if source == "train"
        else source_folder(source)
    )


def print_keep_rate(run_dir: Path) -> None:
    """Print what was kept, and why the rest was not."""
    folder = run_dir / "distill" / "traces"
    manifest = read_json(folder / "manifest.json")
    share, paper = manifest["kept_questions"], manifest["paper"]
    print(
        f"distill: {share['value']:.1%} of {share['n']} questions gave a trace (95%: {share['low']:.1%} to "
        f"{share['high']:.1%}; the paper: {paper['share']:.0%} of {paper['questions']:,})"
    )
    print(
        f"  {manifest['passing_answers']:.1%} of the {manifest['answers']} answers pass the filters by themselves:"
    )
    for reason, count in manifest["outcomes"].items():
        print(f"  {count:8d}  {reason}")
    print(f"traces: {folder}")
