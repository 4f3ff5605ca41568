"""A mixture of packed robot sources and reasoning on its whole road: `mix`, SFT, GRPO and the token evaluation."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_episodes import make_episode
from mixing_sources import encoded, picture, settings, write_robot, write_talks

from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.train import train_grpo
from roboalign.align.sft import SftConfig, train_sft
from roboalign.conversations.conversation import (
    Conversation,
    Turn,
    read_conversations,
    write_conversations,
)
from roboalign.conversations.stored import StoredConversations
from roboalign.conversations.styles.registry import style_of
from roboalign.core.files import hash_file, read_json, read_jsonl, write_json
from roboalign.episodes.episode import Episode
from roboalign.episodes.rewrite import rewrite
from roboalign.episodes.robot_data import RobotData
from roboalign.evaluate.priors import language_priors
from roboalign.evaluate.tokens import TokenEvalConfig, evaluate_mllm
from roboalign.mixture.builder import build
from roboalign.mixture.manifest import verify_manifest
from roboalign.mixture.tokens import load_tokens
from roboalign.mllm.load import load_mllm
from roboalign.mllm.tiny_classes import build_class
from roboalign.questions.registry import types_from

LEARNED = {"learning_rate": 1e-3, "freeze_vision": True}


def recordings() -> list[Episode]:
    """The simulator's episodes as a robot would record them: nobody knows where things are."""
    bare = {"privileged": None, "privileged_names": (), "nouns": {}, "success_step": None}
    made = [make_episode("button-press", seed, 20) for seed in range(4)]
    return [replace(one, episode_id=f"recorded/{n}", **bare) for n, one in enumerate(made)]


def taught(folder: Path, episodes: list[Episode]) -> str:
    """A teacher's replies about every frame, with reasoning."""
    style, rows = style_of("labelled"), []
    for one in episodes:
        for t in range(len(one)):
            asked = style.question("What is pressed?", "think", "answer")
            reply = style.reply("a button", "think", "answer", "It is below the hand.")
            turn = Turn("reasoning", "text", "think", asked, reply, "a button")
            name = f"{one.episode_id}/{t}"
            image = one.png("workspace", t)
            rows.append(Conversation(name, one.episode_id, t, one.task, (image,), (turn,)))
    folder.mkdir()
    write_conversations(folder / "train-00000.parquet", rows)
    shards = {"train-00000.parquet": hash_file(folder / "train-00000.parquet")}
    write_json(folder / "manifest.json", {"prompts": "labelled", "shards": shards})
    return str(folder)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    made = recordings()
    rewrite(RobotData("recorded", "test", lambda: iter(made)), folder / "recorded")
    write_robot(folder / "simulated")
    write_talks(folder / "talks", [encoded(picture(seed)) for seed in range(12)])
    both = {"space": "metaworld", "count": 14}
    few = {"min_turns": 3, "max_turns": 4}
    config = settings(
        {"name": "state", "robot": str(folder / "simulated"), **both, "pack": few},
        {
            "name": "motion",
            "robot": str(folder / "recorded"),
            **both,
            "pack": {**few, "teacher": taught(folder / "taught", made)},
        },
        {"name": "talks", "conversations": str(folder / "talks"), "count": 6},
        tokenizer={"fit": True, "horizon": 3, "scale": 2.0, "vocab_size": 64},
        heldout={"share": 0.4},
        rl={"source": "motion", "count": 4, "at_most": 0.2},
    )
    build(config, folder / "mixture")
    return folder / "mixture"


def test_the_mixture_has_turns_from_state_motion_and_a_teacher(mixture: Path) -> None:
    verify_manifest(mixture)
    found: dict[str, Counter[str]] = {}
    for one in read_conversations(mixture, "train"):
        turns = found.setdefault(one.id.split("/")[0], Counter())
        turns.update(turn.type if turn.kind != "reasoning" else "taught" for turn in one.turns)
    assert found["state"]["action"] == found["motion"]["action"] == 14
    assert found["motion"]["taught"] and found["talks"] == {"taught": 6}
    assert found["state"].keys() & types_from("scene").keys() - types_from("motion").keys()
    assert found["motion"].keys() - {"action", "taught"} <= types_from("motion").keys()
    held = [c for c in read_conversations(mixture, "heldout") if c.target]
    modes = Counter(c.turns[0].mode for c in held)
    assert modes["direct"] == modes["think"] >= 10
    assert {c.id.rsplit("-", 1)[1] for c in held} == {"direct", "think"}


def test_sft_grpo_and_the_evaluation_take_it(mixture: Path, tmp_path: Path) -> None:
    data, tokens = StoredConversations(mixture, "train"), load_tokens(mixture / "tokenizer")
    texts = [text for c in data for turn in c.turns for text in (turn.question, turn.answer)]
    mllm = build_class("qwen3_vl", texts)
    mllm.vocabulary = extend_tokenizer(mllm.tokenizer, tokens.fast.vocab_size)
    extend_model(mllm.model, mllm.tokenizer, mllm.vocabulary)
    updates = SftConfig(batch_size=17, micro_batch_size=17, epochs=2, log_every=1, **LEARNED)
    trained = train_sft(mllm, data, updates, tmp_path / "sft")
    assert trained["samples"] == 2 * len(data) == 68
    losses = [row["loss"] for row in read_jsonl(tmp_path / "sft" / "metrics.jsonl")]
    assert losses[-1] < losses[0]

    prompts = read_conversations(mixture, "rl")
    config = RlConfig(
        prompts_per_rollout=4,
        prompts_per_update=4,
        micro_batch_size=2,
        samples=2,
        updates=1,
        max_new_tokens=6,
        replay="all",
        replay_weight=0.5,
        replay_batch=2,
        **LEARNED,
    )
    mllm = load_mllm(tmp_path / "sft" / "model")
    train_grpo(mllm, tokens.fast, prompts, config, tmp_path / "rl", replay=data)
    (record,) = read_jsonl(tmp_path / "rl" / "metrics.jsonl")
    assert record["answers"] == 8 and record["ratio"] == pytest.approx(1, abs=1e-3)

    described = read_json(mixture / "tokenizer" / "tokenizer.json")
    metrics = evaluate_mllm(
        load_mllm(tmp_path / "rl" / "model"),
        read_conversations(mixture, "heldout"),
        language_priors(data, style_of("labelled")),
        tokens.fast,
        tokens.stats,
        np.array(described["mean_chunk"], np.float32),
        TokenEvalConfig(max_questions=12, max_actions=10, max_new_tokens=6),
        tmp_path / "answers.jsonl",
    )
    for mode in ("direct", "think"):
        assert metrics["actions"][mode]["prefix"]["n"] == 10
        assert metrics["vqa"][mode]["answered"]["n"] > 0
    assert metrics["think_minus_direct"]["prefix"]["n"] == 10
    records = [json.loads(line) for line in (tmp_path / "answers.jsonl").open()]
    assert {row["id"].split("/")[0] for row in records} >= {"state", "motion"}
