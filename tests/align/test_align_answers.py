"""The loss at the answers where the action tokens are left out of the softmax behind a reasoning."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import TINY
from torch import Tensor, nn

from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.align.answers import conversation_loss, logits_at_answers
from roboalign.align.dataset import action_ids, collate_conversations
from roboalign.align.sft import SftConfig, train_sft
from roboalign.conversations import prompts
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.reply import write_tagged
from roboalign.core.files import read_jsonl
from roboalign.episodes.episode import encode_png
from roboalign.mllm.encode import IGNORED, Encoded, encode_conversation
from roboalign.mllm.load import Mllm
from roboalign.mllm.tiny import build_tiny

TEXT = "Where should the gripper go next?"
WORDS = write_tagged("movement left", "The cup is left.")
ACTIONS = prompts.action_answer([1, 0])
TALKS = [
    [WORDS, write_tagged("movement up"), write_tagged(ACTIONS)],
    [
        write_tagged(ACTIONS, "The cup is left.")
    ],  # never in a mixture; here the tokens that must not be left out
]


@pytest.fixture
def mllm() -> Mllm:
    mllm = build_tiny(TINY, [TEXT, WORDS] * 20)
    mllm.vocabulary = extend_tokenizer(mllm.tokenizer, 8)
    extend_model(mllm.model, mllm.tokenizer, mllm.vocabulary)
    return mllm


FRAME = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def encoded(mllm: Mllm, replies: list[str]) -> Encoded:
    return encode_conversation(
        mllm, [{"question": TEXT, "answer": reply} for reply in replies], [FRAME]
    )


def batch_of(mllm: Mllm, *, neutral: bool) -> dict[str, Tensor]:
    return collate_conversations(
        mllm, [encoded(mllm, replies) for replies in TALKS], neutral=neutral
    )


def test_no_action_token_is_marked(mllm: Mllm) -> None:
    batch = batch_of(mllm, neutral=True)
    marked, labels = batch["words_only"], batch["labels"]
    assert marked.shape == labels.shape and marked.dtype == torch.bool
    said = [mllm.tokenizer.decode(row[mark]) for row, mark in zip(labels, marked)]
    assert said == ["<answer>movement left</answer><|im_end|>", "<answer></answer><|im_end|>"]
    actions = torch.isin(labels, action_ids(mllm))
    assert int(actions.sum()) == 8 and not (marked & actions).any()


def test_without_it_or_without_action_tokens_nothing_is_marked(mllm: Mllm) -> None:
    assert "words_only" not in batch_of(mllm, neutral=False)
    mllm.vocabulary = None
    assert "words_only" not in batch_of(mllm, neutral=True) and len(action_ids(mllm)) == 0


def test_the_loss_is_a_softmax_without_the_action_columns(mllm: Mllm) -> None:
    nn.init.normal_(
        mllm.model.get_output_embeddings().weight, generator=torch.Generator().manual_seed(0)
    )
    batch = batch_of(mllm, neutral=True)
    marked, labels = batch["words_only"], batch["labels"]
    with torch.no_grad():
        logits = mllm.model(
            **{k: v for k, v in batch.items() if k not in ("words_only", "labels")}
        ).logits.double()
        losses = []
        for row, place in (labels != IGNORED).nonzero().tolist():
            token, mass = int(labels[row, place]), logits[row, place - 1].exp()
            total = mass.sum() - (mass[action_ids(mllm)].sum() if marked[row, place] else 0)
            losses.append(-(mass[token] / total).log())
        found = conversation_loss(mllm.model, batch, action_ids(mllm))
        plain = conversation_loss(mllm.model, batch_of(mllm, neutral=False), action_ids(mllm))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert abs(float(plain - found)) > 1e-3
    hooks = mllm.model.get_output_embeddings()
    assert not hooks._forward_hooks and not hooks._forward_pre_hooks


def test_those_rows_neither_raise_nor_lower_an_action_token(mllm: Mllm) -> None:
    """The weights are tied, but no question here names an action token: the output layer alone can move them."""
    gradients = {}
    for neutral in (False, True):
        batch = collate_conversations(mllm, [encoded(mllm, [WORDS])], neutral=True)
        marked = batch["words_only"]
        batch["labels"] = batch["labels"].masked_fill(~marked, IGNORED)  # those rows and no other
        batch["words_only"] = marked & neutral
        mllm.model.zero_grad()
        conversation_loss(mllm.model, batch, action_ids(mllm)).backward()
        gradients[neutral] = mllm.model.get_output_embeddings().weight.grad.clone()
    assert (gradients[False][action_ids(mllm)] != 0).any(dim=1).all()
    assert (gradients[True][action_ids(mllm)] == 0).all()
    assert torch.isfinite(gradients[True]).all() and (gradients[True] != 0).any()


def test_the_logits_of_other_rows_are_left_alone(mllm: Mllm) -> None:
    batch = batch_of(mllm, neutral=True)
    marked, labels = batch.pop("words_only"), batch.pop("labels")
    with torch.no_grad():
        with logits_at_answers(mllm.model, labels):
            plain = mllm.model(**batch).logits
        with logits_at_answers(mllm.model, labels, marked, action_ids(mllm)):
            masked = mllm.model(**batch).logits
    rows = marked[labels != IGNORED]
    hidden = torch.zeros_like(plain, dtype=torch.bool)
    hidden[:, action_ids(mllm)] = rows[:, None]
    assert torch.equal(masked.isneginf(), hidden) and torch.equal(masked[~hidden], plain[~hidden])


@pytest.mark.parametrize("neutral", [False, True])
def test_sft_trains_on_this_loss(mllm: Mllm, tmp_path: Path, neutral: bool) -> None:
    turns = [
        tuple(Turn("reasoning", "movement", "think", TEXT, reply, "") for reply in replies)
        for replies in TALKS
    ]
    data = [
        Conversation(str(i), "episode", i, "task", (encode_png(FRAME),), turn)
        for i, turn in enumerate(turns)
    ]
    losses = {
        key: float(conversation_loss(mllm.model, batch_of(mllm, neutral=key), action_ids(mllm)))
        for key in (False, True)
    }
    config = SftConfig(
        learning_rate=1e-3,
        max_steps=1,
        batch_size=2,
        micro_batch_size=1,
        log_every=1,
        neutral_reasoning=neutral,
    )
    train_sft(mllm, data, config, tmp_path)
    loss = read_jsonl(tmp_path / "metrics.jsonl")[0]["loss"]
    assert loss == pytest.approx(losses[neutral], rel=1e-4) and loss != pytest.approx(
        losses[not neutral], rel=1e-4
    )
