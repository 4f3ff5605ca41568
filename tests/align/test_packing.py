"""Micro-batches by a budget of tokens: the same update in other pieces, none over the budget."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sft_process import uneven
from tiny_sft import CONFIG, assert_equal_weights, stop_in_update_6, tiny, weights

from roboalign.align.budget import token_counts
from roboalign.align.packing import pack_update, pack_updates
from roboalign.align.sft import SftConfig, SftTrainer, train_sft
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl

BUDGET = 75


def fewest(lengths: list[int], budget: int) -> int:
    """The smallest number of padded batches of any partition into runs of the sorted lengths."""
    ordered = sorted(lengths, reverse=True)

    @cache
    def best(first: int) -> int:
        if first == len(ordered):
            return 0
        ends = range(first + 1, len(ordered) + 1)
        return min(1 + best(e) for e in ends if (e - first) * ordered[first] <= budget)

    return best(0)


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=24),
    st.integers(100, 400),
    st.integers(1, 4),
)
@settings(deadline=None)
def test_an_update_is_split_within_the_budget(
    lengths: list[int], budget: int, devices: int
) -> None:
    lengths = lengths * devices  # an update divides over the devices
    counts = np.array([0, *lengths])
    update = list(range(1, len(counts)))
    shares = pack_update(update, counts, budget, devices)
    assert len(shares) == devices
    assert len({len(share) for share in shares}) == 1
    assert sorted(one for share in shares for batch in share for one in batch) == update
    assert all(len(b) * max(counts[b]) <= budget for share in shares for b in share)
    passes = -(-fewest(lengths, budget) // devices)
    assert len(shares[0]) == passes


def test_a_long_conversation_gets_a_pass_of_its_own() -> None:
    counts = np.array([10, 100, 12, 11, 9, 10, 95, 12])
    shares = pack_updates(range(8), counts, 4, 100, 1)
    assert shares == [[[1], [2, 3, 0]], [[6], [7, 5, 4]]]
    one, two = pack_update(range(8), counts, 100, 2)
    assert one == [[1], [0, 5, 4]]
    assert two == [[6], [2, 7, 3]]


def test_training_is_that_of_equal_micro_batches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = uneven(12)
    counts = token_counts(tiny(), data)
    assert counts.max() <= BUDGET < 2 * counts.max()
    sizes: list[tuple[int, int]] = []
    inner = SftTrainer.compute_loss

    def loss(self: SftTrainer, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        sizes.append(tuple(inputs["input_ids"].shape))
        return inner(self, model, inputs, *rest, **named)

    plain = train_sft(tiny(), data, SftConfig(**CONFIG), tmp_path / "plain")
    with monkeypatch.context() as patch:
        patch.setattr(SftTrainer, "compute_loss", loss)
        config = SftConfig(**CONFIG, tokens_per_micro_batch=BUDGET)
        ledger = train_sft(tiny(), data, config, tmp_path / "packed")
    assert all(rows * width <= BUDGET for rows, width in sizes)
    assert len({rows for rows, _ in sizes}) > 1, "pieces of several sizes"
    same = ("updates", "samples", "tokens", "answer_tokens", "turns")
    assert {name: ledger[name] for name in same} == {name: plain[name] for name in same}
    ours, theirs = weights(tmp_path / "packed"), weights(tmp_path / "plain")
    start = dict(tiny().model.named_parameters())
    moved = max(float((theirs[n] - start[n]).abs().max()) for n in theirs if n in start)
    apart = max(float((ours[n] - theirs[n]).abs().max()) for n in theirs)
    assert moved > 1e-3
    assert apart < 0.01 * moved
    losses = [
        [record["loss"] for record in read_jsonl(tmp_path / name / "metrics.jsonl")]
        for name in ("packed", "plain")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_killed_training_ends_with_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    config = SftConfig(**CONFIG, tokens_per_micro_batch=BUDGET)
    train_sft(tiny(), uneven(12), config, tmp_path / "whole")
    stop_in_update_6(monkeypatch, tmp_path / "killed", uneven(12), config)
    train_sft(tiny(), uneven(12), config, tmp_path / "killed")
    assert_equal_weights(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_a_conversation_over_the_budget_is_named_before_the_first_update(tmp_path: Path) -> None:
    data = uneven(12)
    counts = token_counts(tiny(), data)
    longest = int(np.argmax(counts))
    config = SftConfig(**CONFIG, tokens_per_micro_batch=int(counts.max()) - 1)
    with pytest.raises(RoboAlignError) as error:
        train_sft(tiny(), data, config, tmp_path)
    assert f"{data[longest].id}, has {counts.max()}" in error.value.problem
    assert error.value.where == "sft.tokens_per_micro_batch"
    assert f"sft.max_tokens={counts.max() - 1}" in error.value.fix
    assert not (tmp_path / "model").exists()
    fewer = config.model_copy(update={"max_tokens": int(counts.max()) - 1})
    ledger = train_sft(tiny(), data, fewer, tmp_path)
    assert ledger["too_long"] == int((counts == counts.max()).sum())
