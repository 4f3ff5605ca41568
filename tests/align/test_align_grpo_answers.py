"""GRPO on answers in words: a model without action tokens, real rewards, and prompts that cannot be rewarded."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from roboalign.align.grpo import rollout as rollout_module
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.rollout import (
    check_prompts,
    describe_groups,
    groups_of,
    roll_out,
    sample_records,
)
from roboalign.align.grpo.train import train_grpo
from roboalign.align.lora import LoraConfig
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from roboalign.mllm.generate import Generation
from roboalign.mllm.load import Mllm, load_mllm
from roboalign.mllm.shipped import pretrained_folder
from roboalign.questions.registry import label_of

LABELLED = STYLES["labelled"]


@pytest.fixture
def mllm() -> Mllm:
    """The shipped base model: it answers reasoned questions, and has no action tokens."""
    return load_mllm(pretrained_folder())


def asked(number: int, kind: str, text: str, expected: str) -> Conversation:
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    turn = Turn(
        "reasoning", kind, "think", LABELLED.question(text, "think", label_of(kind)), "", expected
    )
    return Conversation(f"q-{number}", "episode", 0, "task", (buffer.getvalue(),), (turn,))


def prompts() -> list[Conversation]:
    return [
        asked(0, "gripper_point", "Where is the gripper?", "12 20"),
        asked(1, "gripper_state", "Is the gripper open, closed or holding?", "open"),
        asked(2, "presence", "Is the mug in the image?", "no"),
        asked(3, "height", "How high is the gripper?", "low"),
    ]


def test_rewards_of_chosen_answers(mllm: Mllm, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sampled is given; the prompts, texts, rewards, advantages and logs are those of a real rollout."""
    texts = [
        [
            "<think>So.</think><answer>point 12 21</answer>",
            "<think></think><answer>point 12 20</answer>",
        ],
        [
            "<think>So.</think><answer>gripper open</answer>",
            "<think>So.</think><answer>gripper closed</answer>",
        ],
    ]
    ids = [
        [mllm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in group]
        for group in texts
    ]
    ids[0][0].append(mllm.tokenizer.eos_token_id)
    logprobs = [[[-1.0] * len(row) for row in group] for group in ids]
    sampled = Generation(ids, logprobs, [[True] * 2] * 2, 0, 0)
    monkeypatch.setattr(rollout_module, "generate", lambda *arguments, **named: sampled)
    chosen = prompts()[:2]
    rollout = roll_out(
        mllm, None, chosen, samples=2, max_new_tokens=9, temperature=1.0, preset="answer", seed=0
    )
    assert [reward.total for reward in rollout.rewards] == [1.0, 0.0, 1.0, 0.5]
    assert rollout.advantages.tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)] * 2, abs=1e-4)
    found = describe_groups(groups_of(rollout), chosen)
    assert (found["reward"], found["format"], found["score"], found["accuracy"]) == (
        0.625,
        0.75,
        0.5,
        0.75,
    )
    assert found["faults"] == {"empty reasoning": 1} and found["no_signal"] == 0.0
    assert not {"action", "prefix", "l1", "undecoded"} & found.keys()
    records = sample_records(mllm, groups_of(rollout), chosen, 9)
    assert [(r["id"], r["target"], r["total"]) for r in records] == [
        ("q-0", "12 20", 1.0),
        ("q-1", "open", 1.0),
    ]
    assert records[1]["answer"] == texts[1][0]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=8, alpha=16)])
def test_a_model_without_action_tokens_is_trained(
    mllm: Mllm, tmp_path: Path, lora: LoraConfig | None
) -> None:
    """The shipped base meets the format, so that its groups differ, and two updates move its weights; with LoRA those
    of the layers, and no embedding."""
    config = RlConfig(
        learning_rate=1e-4,
        prompts_per_rollout=4,
        prompts_per_update=4,
        micro_batch_size=4,
        samples=4,
        updates=2,
        max_new_tokens=72,
        kl=0.01,
        reward="answer",
        logged_samples=1,
        lora=lora,
    )
    before = {name: value.clone() for name, value in mllm.model.state_dict().items()}
    ledger = train_grpo(mllm, None, prompts(), config, tmp_path)
    assert ledger["answers"] == 32 and ledger["rollouts"] == 2
    first, second = read_jsonl(tmp_path / "metrics.jsonl")
    assert first["format"] > 0.5 and first["no_signal"] < 1 and first["grad_norm"] > 0
    assert 0 <= first["score"] <= first["accuracy"] <= 1 and first["kl"] == 0 < second["kl"]
    after = mllm.model.state_dict()
    changed = {
        name.rpartition(".")[0]
        for name, value in before.items()
        if not torch.equal(value, after[name])
    }
    assert "model.language_model.layers.0.mlp.up_proj" in changed and ("lm_head" in changed) == (
        lora is None
    )
    assert load_mllm(tmp_path / "model").vocabulary is None


def test_prompts_that_cannot_be_rewarded_are_named(mllm: Mllm) -> None:
    good = prompts()[0]
    check_prompts(mllm, [good], "answer", "rl")
    check_prompts(mllm, [good], "trace", "rl")  # one point is a short trace
    with pytest.raises(RoboAlignError, match="no RL prompt"):
        check_prompts(mllm, [], "answer", "rl")
    with pytest.raises(
        RoboAlignError, match=r"rl, prompt q-1: a question of type gripper_state.*`trace`"
    ):
        check_prompts(mllm, [good, prompts()[1]], "trace", "rl")
    for change in ({"mode": "direct"}, {"expected": ""}):
        with pytest.raises(RoboAlignError, match=r"q-0: .* cannot be rewarded as `answer`"):
            check_prompts(
                mllm, [replace(good, turns=(replace(good.turns[0], **change),))], "answer", "rl"
            )
    with pytest.raises(RoboAlignError, match="unknown question type 'action'"):
        check_prompts(
            mllm, [replace(good, turns=(replace(good.turns[0], type="action"),))], "answer", "rl"
        )
    with pytest.raises(RoboAlignError, match="no action tokens"):
        check_prompts(mllm, [good], "paper", "rl")
