"""Several answers or noises of one decision: how one is chosen, against hand computations."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from synthetic_readings import policy_of, seen
from synthetic_tokens import DIM, HORIZON, OPEN, make
from synthetic_tokens import seen as seen_by_tokens

from roboalign.mllm.encode import collate
from roboalign.vla.best_of import (
    Candidates,
    Medoid,
    Redrawn,
    redrawn_key,
)
from roboalign.vla.token_answer import TokenAnswer, confidences, median_chunk, medoid_of
from roboalign.vla.token_policy import TokenPolicy
from roboalign.vla.token_writer import TokenPolicyConfig

KEY = ("t", 1, 4)


def answer(chunk: np.ndarray | None, logprob: float = 0.0, ids: Any = ()) -> TokenAnswer:
    return TokenAnswer(
        list(ids), chunk, "ok" if chunk is not None else "no block", 5, False, logprob
    )


def chunk_of(value: float, gripper: float = 1.0) -> np.ndarray:
    chunk = np.full((HORIZON, DIM), value, np.float32)
    chunk[:, 3] = gripper
    return chunk


def answering(policy: TokenPolicy, row: list[TokenAnswer], monkeypatch: Any) -> TokenPolicy:
    """The policy gives these answers to any observation."""
    monkeypatch.setattr(TokenPolicy, "answers", lambda self, seen, keys, samples: [row] * len(seen))
    return policy


def test_the_median_is_elementwise_and_the_gripper_is_a_command_of_the_majority() -> None:
    chunks = np.stack([chunk_of(0.1, -1), chunk_of(0.3, 1), chunk_of(0.9, 1)])
    middle = median_chunk(chunks, slice(3, None))
    np.testing.assert_allclose(middle[:, :3], 0.3)
    np.testing.assert_array_equal(middle[:, 3], 1)
    two = median_chunk(chunks[:2], slice(3, None))
    np.testing.assert_allclose(two[:, :3], 0.2)
    np.testing.assert_array_equal(two[:, 3], -1)  # not 0: half open is no command
    assert middle.dtype == np.float32


def test_the_medoid_is_a_sample_and_not_an_outlier() -> None:
    chunks = np.stack([chunk_of(v) for v in (5.0, 0.0, 0.1)])
    # Sums of |differences| of one number: 9.9, 5.1 and 5.0.
    assert medoid_of(chunks) == 2
    assert medoid_of(chunks[:2]) == 0


@pytest.mark.parametrize(
    ("choose", "value"), [("median", 0.2), ("likelihood", 0.1), ("mg-select", 0.3)]
)
def test_answers_that_are_no_chunk_are_left_out(
    parts: Any, monkeypatch: Any, choose: Any, value: float
) -> None:
    row = [
        answer(None, 0.0),
        answer(chunk_of(0.1), -3.0, [1]),
        answer(chunk_of(0.3), -4.0, [2]),
    ]
    scored = {(1,): 0.5, (2,): 0.7}
    monkeypatch.setattr(
        "roboalign.vla.token_policy.confidences",
        lambda mllm, full, blank, answers, start: [scored[tuple(ids)] for ids in answers],
    )
    policy = make(parts, temperature=1.0, answers=3, choose=choose)
    chunks, [counts] = answering(policy, row, monkeypatch).act_and_count([seen_by_tokens()], [KEY])
    np.testing.assert_allclose(chunks[0, :, :3], value, atol=1e-6)
    assert counts == {"decisions": 1, "holds": 0, "tokens": 15, "closed": 0, "unreadable": 1}


def test_no_chunk_among_the_answers_holds_with_the_last_command(
    parts: Any, monkeypatch: Any
) -> None:
    best = make(parts, temperature=1.0, answers=2)
    policy = answering(best, [answer(chunk_of(0.5, 1.0))], monkeypatch)
    best.act_and_count([seen_by_tokens()], [("t", 1, 0)])
    answering(policy, [answer(None), answer(None)], monkeypatch)
    chunks, [counts] = best.act_and_count([seen_by_tokens()], [("t", 1, 4)])
    held = np.zeros((HORIZON, DIM), np.float32)
    held[:, 3] = 1.0
    np.testing.assert_array_equal(chunks[0], held)
    assert counts["holds"] == 1 and counts["unreadable"] == 2
    other, _ = best.act_and_count([seen_by_tokens()], [("t", 2, 4)])
    assert (other[0, :, 3] == OPEN).all()
    assert best.counts["holds"] == 2 and best.counts["decisions"] == 3


def test_greedy_answers_are_refused_and_one_is_not() -> None:
    with pytest.raises(ValidationError, match="4 greedy answers are one answer"):
        TokenPolicyConfig(answers=4)
    TokenPolicyConfig(answers=1)


def test_a_policy_of_several_answers_is_saved_and_does_their_median(
    parts: Any, tmp_path: Path
) -> None:
    policy = make(parts, temperature=1.0, answers=3)
    policy.save(tmp_path / "policy")
    again = TokenPolicy.load(tmp_path / "policy")
    assert again.metadata()["answers"] == 3 and again.metadata()["choose"] == "median"
    one, gripper = seen_by_tokens(), policy.hold.space.gripper_part
    found = [a.chunk for a in policy.answers([one], [KEY], samples=3)[0] if a.chunk is not None]
    wanted = median_chunk(np.stack(found), gripper) if found else None
    chunk, [counts] = again.act_and_count([one], [KEY])
    assert counts["holds"] == int(wanted is None) and counts["unreadable"] == 3 - len(found)
    if wanted is not None:
        np.testing.assert_array_equal(chunk[0], wanted)


def test_more_answers_contain_the_fewer_and_the_first_is_the_policys_own(parts: Any) -> None:
    policy = make(parts, temperature=1.0)
    [two], [four] = (policy.answers([seen_by_tokens()], [KEY], samples=n) for n in (2, 4))
    assert [one.ids for one in four[:2]] == [one.ids for one in two]
    assert len({tuple(one.ids) for one in four}) == 4
    assert all(one.logprob < 0 for one in four)
    alone = policy.answers([seen_by_tokens()], [KEY])[0][0]
    assert alone.ids == two[0].ids and alone.logprob == pytest.approx(two[0].logprob, abs=1e-3)


def test_mg_select_is_the_divergence_from_the_prompt_without_the_instruction(parts: Any) -> None:
    """By a plain forward pass of each sequence alone, and a KL written out."""
    policy = make(parts, temperature=1.0)
    vocabulary, mllm, one = policy.vocabulary, policy.mllm, seen_by_tokens()
    start, end, fast = vocabulary.start_id, vocabulary.end_id, vocabulary.fast_ids
    before = mllm.tokenizer("<think></think><answer>", add_special_tokens=False)["input_ids"]
    answers = [[*before, start, *fast[:3], end], [*before, start, *fast[5:10], end]]
    blank = policy.prompt(one, without_instruction=True)
    found = confidences(mllm, policy.prompt(one), blank, answers, start)

    def predicted(instruction: str, ids: list[int]) -> torch.Tensor:
        seen = SimpleNamespace(images=one.images, state=one.state, instruction=instruction)
        prompt = policy.prompt(seen)
        whole = replace(prompt, input_ids=np.append(prompt.input_ids, ids))
        whole = replace(whole, labels=whole.input_ids)
        batch = {k: v for k, v in collate(mllm, [whole]).items() if k != "labels"}
        with torch.no_grad():
            logits = mllm.model(**batch).logits[0]
        tail = len(ids) - len(before) - 1
        return logits[-tail - 1 : -1].double().softmax(-1)

    for ids, score in zip(answers, found):
        p, q = predicted(one.instruction, ids), predicted("", ids)
        assert score == pytest.approx(float((q * (q / p).log()).sum()), rel=1e-3, abs=1e-5)
        assert score > 0


def test_the_medoid_of_a_head_is_among_its_noises_and_one_noise_is_the_policy(
    mllm: Any, episodes: Any
) -> None:
    policy = policy_of(mllm, episodes, "direct")
    observations = [seen(episodes[0], 1), seen(episodes[1], 1)]
    keys = [("a", 0, 0), ("b", 0, 0)]
    every, _ = policy.answers(observations, keys, 5)
    assert every.shape[:2] == (2, 5)
    own = policy.act_batch(observations, keys)
    np.testing.assert_allclose(every[:, 0], own, atol=1e-5)
    np.testing.assert_allclose(
        Medoid(policy, 1).act_and_count(observations, keys)[0], own, atol=1e-5
    )
    chosen, _ = Medoid(policy, 5).act_and_count(observations, keys)
    for row, one in zip(policy.action_stats.normalize(every), every):
        sums = [sum(np.abs(a - b).sum() for b in row) for a in row]
        best = one[int(np.argmin(sums))]
        assert any(np.allclose(best, done, atol=1e-5) for done in chosen)
    candidates, _ = Candidates(policy, 5).act_and_count(observations[:1], keys[:1])
    np.testing.assert_allclose(candidates[0], every[0], atol=1e-5)


def test_draws_differ_and_the_first_is_the_policys_own(mllm: Any, episodes: Any) -> None:
    policy, one = policy_of(mllm, episodes, "direct"), seen(episodes[0], 1)
    own = policy.act_batch([one], [KEY])
    drawn = [Redrawn(policy, n).act_and_count([one], [KEY])[0] for n in range(3)]
    np.testing.assert_array_equal(drawn[0], own)
    assert np.abs(drawn[1] - own).max() > 1e-3 < np.abs(drawn[1] - drawn[2]).max()
    assert redrawn_key(KEY, 2) == ("t", 1, "draw 2", 4)  # its step is still the last


def test_an_oracle_is_given_every_chunk_or_the_hold(parts: Any, monkeypatch: Any) -> None:
    row = [answer(None), answer(chunk_of(0.1)), answer(chunk_of(0.3))]
    policy = answering(make(parts, temperature=1.0), row, monkeypatch)
    chunks, [counts] = Candidates(policy, 3).act_and_count([seen_by_tokens()], [KEY])
    np.testing.assert_allclose(chunks[0, :, 0, 0], [0.1, 0.3])
    assert counts["tokens"] == 15 and counts["holds"] == 0
    answering(policy, [answer(None)], monkeypatch)
    chunks, [counts] = Candidates(policy, 3).act_and_count([seen_by_tokens()], [("x", 0)])
    assert chunks.shape == (1, 1, HORIZON, DIM) and counts["holds"] == 1
