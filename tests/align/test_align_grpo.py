"""GRPO: the loss against hand-written steps, resume after SIGKILL, the logs, bad input."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_grpo
import torch
from own_process import die_in_update, status_of
from pydantic import ValidationError
from safetensors.torch import load_file
from small_disk import files_up_to
from tiny_grpo import CONFIG, fast, plain_logits, prompts, reward_of_ids, timeless, tiny
from torch import Tensor

from roboalign.actions.fast import FastTokenizer
from roboalign.align.answers import conversation_loss
from roboalign.align.dataset import Conversations, action_ids, collate_conversations, pictures
from roboalign.align.grpo import rollout as rollout_module
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.rollout import Rollout, describe_groups, groups_of
from roboalign.align.grpo.train import train_grpo
from roboalign.align.grpo.trainer import GrpoTrainer
from roboalign.align.rewards.actions import Reward
from roboalign.conversations.conversation import Conversation
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from roboalign.mllm.encode import collate
from roboalign.mllm.generate import Generation
from roboalign.mllm.load import Mllm, load_mllm

even_ids_rewarded = tiny_grpo.even_ids_rewarded


# The loss.


def hand_written_update(
    mllm: Mllm,
    asked: list[Conversation],
    rolled: Rollout,
    start: Mllm,
    config: RlConfig,
    rows: range,
) -> Tensor:
    """GRPO's loss on some rows of a rollout from its definition, token by token, one unpadded row at a time."""
    losses = []
    for row in rows:
        c, answer = asked[row // config.samples], rolled.ids[row]
        first = row // config.samples * config.samples
        group = [reward_of_ids(ids) for ids in rolled.ids[first : first + config.samples]]
        advantage = (reward_of_ids(answer) - np.mean(group)) / (np.std(group, ddof=1) + 1e-6)
        logp = plain_logits(mllm, c.turns[0].question, pictures(c), answer).log_softmax(-1)[
            range(len(answer)), answer
        ]
        with torch.no_grad():
            reference = plain_logits(start, c.turns[0].question, pictures(c), answer)
            reference = reference.log_softmax(-1)[range(len(answer)), answer]
        for t in range(len(answer)):
            ratio = torch.exp(logp[t] - rolled.logp[row][t])
            policy = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.3))
            if advantage < 0:
                policy = torch.min(policy, torch.tensor(-3.0 * advantage, dtype=torch.float32))
            d = reference[t] - logp[t]
            losses.append(policy + config.kl * (torch.exp(d) - d - 1))
    return torch.stack(losses).mean()  # over all tokens of the update


def test_two_updates_on_one_rollout_are_hand_written_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, even_ids_rewarded: None
) -> None:
    """The second update is off policy, with KL and clipping at work; micro-batches of one prompt are accumulated."""
    config = RlConfig(**{**CONFIG, "updates": 2, "learning_rate": 3e-3})
    rolled: list[tuple[Rollout, list[Conversation]]] = []
    inner = rollout_module.roll_out

    def recorded(
        mllm: Mllm, tokenizer: FastTokenizer, asked: list[Conversation], **named: object
    ) -> Rollout:
        rolled.append((inner(mllm, tokenizer, asked, **named), list(asked)))
        return rolled[-1][0]

    monkeypatch.setattr("roboalign.align.grpo.trainer.roll_out", recorded)
    train_grpo(tiny(), fast(), prompts(), config, tmp_path)
    (rollout, asked), mllm, start = rolled[0], tiny(), tiny()
    decay = [p for p in mllm.model.parameters() if p.ndim > 1]
    rest = [p for p in mllm.model.parameters() if p.ndim == 1]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    for record, rows in zip(
        read_jsonl(tmp_path / "metrics.jsonl"), (range(0, 6), range(6, 12)), strict=True
    ):
        optimizer.zero_grad()
        loss = hand_written_update(mllm, asked, rollout, start, config, rows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(mllm.model.parameters(), 1.0)
        optimizer.step()
        assert record["loss"] == pytest.approx(float(loss), rel=2e-3, abs=2e-5)
        assert record["grad_norm"] == pytest.approx(float(norm), rel=2e-3)
    assert (
        record["kl"] > 1e-3 and record["clipped"] > 0 and record["drift"] > 0.05
    )  # it was off policy


def test_reward_rises(tmp_path: Path, even_ids_rewarded: None) -> None:
    config = RlConfig(
        learning_rate=1e-2,
        prompts_per_rollout=4,
        prompts_per_update=4,
        micro_batch_size=4,
        samples=8,
        updates=25,
        max_new_tokens=6,
        kl=0.0,
    )
    train_grpo(tiny(), fast(), prompts(), config, tmp_path)
    rewards = [record["reward"] for record in read_jsonl(tmp_path / "metrics.jsonl")]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2


def test_nothing_is_learnt_from_groups_that_earn_the_same(tmp_path: Path) -> None:
    """The real reward of an untrained model is 0 for every answer: no signal, no gradient."""
    config = RlConfig(**{**CONFIG, "updates": 2, "kl": 0.0, "max_grad_norm": 1.0})
    train_grpo(tiny(), fast(), prompts(), config, tmp_path)
    for record in read_jsonl(tmp_path / "metrics.jsonl"):
        assert record["no_signal"] == 1.0 and record["reward"] == 0.0 and record["grad_norm"] == 0.0
        assert sum(record["faults"].values()) == record["answers"] == 12


@pytest.mark.parametrize("neutral", [False, True])
def test_replay_adds_the_sft_loss(tmp_path: Path, neutral: bool) -> None:
    """With no signal and no KL, the loss is the replayed conversations' alone."""
    reply = "<think>so</think><answer>left</answer>"
    mllm, replayed = (
        tiny(),
        [replace(c, turns=(replace(c.turns[0], answer=reply),)) for c in prompts(4)],
    )
    config = RlConfig(
        **{
            **CONFIG,
            "updates": 2,
            "kl": 0.0,
            "replay_weight": 0.5,
            "replay_batch": 4,
            "neutral_reasoning": neutral,
        }
    )
    data = Conversations(mllm, replayed)
    batches = [collate_conversations(mllm, [data[i]], neutral=neutral) for i in range(4)]
    losses = [float(conversation_loss(mllm.model, batch, action_ids(mllm))) for batch in batches]
    plain = [float(mllm.model(**collate(mllm, [data[i]])).loss) for i in range(4)]
    assert (losses == pytest.approx(plain, rel=1e-4)) != neutral
    train_grpo(mllm, fast(), prompts(), config, tmp_path, replay=replayed)
    record = read_jsonl(tmp_path / "metrics.jsonl")[0]
    # All four answers are equally long, so that the mean of the micro-batches is the mean of the conversations.
    assert record["replay_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert record["loss"] == pytest.approx(0.5 * record["replay_loss"], rel=1e-4)


def train_until_killed(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        tiny_grpo.even_ids_rewarded.__wrapped__(patch)
        die_in_update(GrpoTrainer, 3)
        train_grpo(tiny(), fast(), prompts(), RlConfig(**CONFIG), folder)


def test_killed_run_ends_like_an_unbroken_one(tmp_path: Path, even_ids_rewarded: None) -> None:
    """SIGKILL in the second update of the second rollout, in a process of its own; then the same call again."""
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    assert status_of(train_until_killed, broken) == -signal.SIGKILL
    assert [p.name for p in (broken / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    ledgers = [
        train_grpo(tiny(), fast(), prompts(), RlConfig(**CONFIG), folder)
        for folder in (broken, unbroken)
    ]
    ours, theirs = (
        load_file(folder / "model" / "model.safetensors") for folder in (broken, unbroken)
    )
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert timeless(broken, "metrics.jsonl") == timeless(unbroken, "metrics.jsonl")
    assert timeless(broken, "samples.jsonl") == timeless(unbroken, "samples.jsonl")
    counts = [
        {k: v for k, v in ledger.items() if not k.startswith("seconds")} for ledger in ledgers
    ]
    assert counts[0] == counts[1]
    assert (
        counts[0]["rollouts"] == 3
        and counts[0]["answers"] == 36
        and counts[0]["unique_prompts"] == 6
    )
    assert json.loads((broken / "ledger.json").read_text()) == ledgers[0]
    assert load_mllm(broken / "model").vocabulary is not None


def test_a_full_disk_at_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, even_ids_rewarded: None
) -> None:
    """It stops with one message, what was written before stays, and with room the run ends like an unbroken one."""
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    config = RlConfig(**{**CONFIG, "updates": 4, "kl": 0.0})

    def write(self: GrpoTrainer, *arguments: Any) -> None:
        if self.state.global_step < 4:
            return inner(self, *arguments)
        with files_up_to(
            (broken / "checkpoints" / "checkpoint-2" / "optimizer.pt").stat().st_size - 1
        ):
            return inner(self, *arguments)

    inner = GrpoTrainer._write_checkpoint
    expected = (
        r"checkpoint-4: cannot be written \(.*resumes from checkpoint-2, which is complete\.$"
    )
    with monkeypatch.context() as patch, pytest.raises(RoboAlignError, match=expected):
        patch.setattr(GrpoTrainer, "_write_checkpoint", write)
        train_grpo(tiny(), fast(), prompts(), config, broken)
    assert [path.name for path in (broken / "checkpoints").rglob("checkpoint-*")] == [
        "checkpoint-2"
    ]
    for folder in (broken, unbroken):
        train_grpo(tiny(), fast(), prompts(), config, folder)
    ours, theirs = (
        load_file(folder / "model" / "model.safetensors") for folder in (broken, unbroken)
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert timeless(broken, "samples.jsonl") == timeless(unbroken, "samples.jsonl")


# Logs and bad input.


def test_describe_counts_by_hand() -> None:
    asked = prompts(2)
    wanted = [len(c.target or ()) for c in asked]
    fault = "text after the action block is not </answer>"
    rewards = [
        Reward(1.0, 1.0, 1.0, 1.0, 0.0, True, wanted[0], "ok"),
        Reward(0.5, 1.0, 0.0, 0.0, None, False, wanted[0] + 2, "ok"),
        Reward(0.0, 0.0, 0.0, 0.0, None, False, 0, "no action block"),
        Reward(0.0, 0.0, 0.0, 0.0, 0.4, True, wanted[1] - 1, fault),
    ]
    ids = [[1, 2, 3], [1], [1, 2], [1, 2]]
    generation = Generation([ids[:2], ids[2:]], [], [[True, False], [True, True]], 0, 8)
    rolled = Rollout([None, None], ids, [], rewards, torch.zeros(4), generation)  # type: ignore[list-item]
    found = describe_groups(groups_of(rolled), asked)
    assert (
        found["reward"] == 0.375
        and found["format"] == 0.5
        and found["decoded"] == 0.5
        and found["l1"] == 0.2
    )
    assert found["reward_std_in_group"] == pytest.approx((0.5 / 2**0.5) / 2)
    assert (found["undecoded"], found["shorter"], found["longer"], found["answers"]) == (1, 1, 1, 4)
    assert found["no_signal"] == 0.5 and found["finished"] == 0.75
    assert found["length_mean"] == 2.0 and found["length_max"] == 3
    assert found["faults"] == {"no action block": 1, fault: 1}


def test_bad_settings_are_named() -> None:
    with pytest.raises(
        ValidationError, match="prompts_per_rollout 10 is no multiple of prompts_per_update 4"
    ):
        RlConfig(prompts_per_rollout=10, prompts_per_update=4)
    with pytest.raises(ValidationError, match="updates 3 is no multiple of 4"):
        RlConfig(updates=3)
    with pytest.raises(ValidationError, match="rewards"):
        RlConfig(rewards="paper")  # type: ignore[call-arg]


def test_bad_input_is_named(tmp_path: Path) -> None:
    config, mllm = RlConfig(**CONFIG), tiny()
    with pytest.raises(RoboAlignError, match="no RL prompt"):
        train_grpo(mllm, fast(), [], config, tmp_path)
    targetless = [Conversation(c.id, "", 0, "", c.images, c.turns) for c in prompts(3)]
    with pytest.raises(RoboAlignError, match=r"3 prompts have no target \(first: rl-0\)"):
        train_grpo(mllm, fast(), targetless, config, tmp_path)
    with pytest.raises(RoboAlignError, match="replay_weight"):
        train_grpo(mllm, fast(), prompts(), config, tmp_path, replay=prompts())
    with pytest.raises(
        RoboAlignError, match="2 prompts per update cannot be split into micro-batches of 3"
    ):
        train_grpo(mllm, fast(), prompts(), RlConfig(**{**CONFIG, "micro_batch_size": 3}), tmp_path)
    mllm.vocabulary = None
    with pytest.raises(RoboAlignError, match="no action tokens"):
        train_grpo(mllm, fast(), prompts(), config, tmp_path)
