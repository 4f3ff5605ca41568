import copy
import dataclasses

import numpy as np
import pytest
import torch

from roboalign.core.errors import RoboAlignError
from roboalign.mllm import generate as module
from roboalign.mllm.encode import Encoded, collate, encode_prompt, end_ids
from roboalign.mllm.generate import generate, suppressed_ids


def hugging_face_greedy(mllm, prompts, max_new_tokens):
    batch = collate(
        mllm, [encode_prompt(mllm, p.question, p.images) for p in prompts], padding_side="left"
    )
    del batch["labels"]
    output = mllm.model.generate(
        **batch,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        suppress_tokens=suppressed_ids(mllm),
    )
    ends = end_ids(mllm)
    answers = []
    for row in output[:, batch["input_ids"].shape[1] :].tolist():
        end = next((place for place, token in enumerate(row, start=1) if token in ends), len(row))
        answers.append(row[:end])
    return answers


def own_logprobs(mllm, prompt, tokens, temperature):
    """Log-probabilities of `tokens` from one forward over prompt and answer, as a trainer computes them."""
    encoded = encode_prompt(mllm, prompt.question, prompt.images)
    ids = np.concatenate([encoded.input_ids, np.array(tokens, dtype=np.int64)])
    batch = collate(mllm, [Encoded(ids, ids, encoded.images)])
    del batch["labels"]
    with torch.no_grad():
        logits = mllm.model(**batch).logits[0, len(encoded.input_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]


def test_greedy_equals_hugging_face_token_for_token(any_mllm, prompts):
    ours = generate(any_mllm, prompts, samples=2, max_new_tokens=12, temperature=0)
    expected = hugging_face_greedy(any_mllm, prompts, 12)
    assert [rows[0] for rows in ours.tokens] == expected
    assert [rows[1] for rows in ours.tokens] == expected
    assert (
        len({tuple(row) for row in expected}) > 1
    )  # else the images and questions would not matter


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_full_forward(any_mllm, prompts, temperature):
    made = generate(
        any_mllm, prompts, samples=3, max_new_tokens=10, temperature=temperature, seed=3
    )
    for prompt, answers, logprobs in zip(prompts, made.tokens, made.logprobs):
        for tokens, got in zip(answers, logprobs):
            expected = own_logprobs(any_mllm, prompt, tokens, temperature)
            torch.testing.assert_close(torch.tensor(got), expected, atol=2e-5, rtol=1e-4)


def test_same_seed_same_answers_and_samples_differ(any_mllm, prompts):
    first, again, other = (
        generate(any_mllm, prompts, samples=4, max_new_tokens=8, seed=seed) for seed in (5, 5, 6)
    )
    assert first == again
    assert first.tokens != other.tokens
    assert all(len({tuple(row) for row in rows}) > 1 for rows in first.tokens)


def test_answers_do_not_depend_on_what_shares_the_batch(any_mllm, prompts):
    together = generate(
        any_mllm, prompts, samples=3, max_new_tokens=8, seed=range(len(prompts))
    ).tokens
    alone = [
        generate(any_mllm, [prompt], samples=3, max_new_tokens=8, seed=[i]).tokens[0]
        for i, prompt in enumerate(prompts)
    ]
    assert together == alone
    assert (
        generate(any_mllm, prompts[::-1], samples=3, max_new_tokens=8, seed=1).tokens != alone[::-1]
    )


def test_sampling_follows_the_models_distribution(qwen, prompts):
    """Frequencies of the first token over 4000 samples against the softmax of a full forward (5 sigma)."""
    n = 4000
    made = generate(qwen, prompts[:1], samples=n, max_new_tokens=1, max_rows=n)
    every = torch.arange(len(qwen.tokenizer))
    encoded = collate(qwen, [encode_prompt(qwen, prompts[0].question, prompts[0].images)])
    del encoded["labels"]
    with torch.no_grad():
        probabilities = qwen.model(**encoded).logits[0, -1].softmax(-1)
    probabilities[suppressed_ids(qwen)] = 0
    probabilities /= probabilities.sum()
    counts = torch.bincount(torch.tensor([row[0] for row in made.tokens[0]]), minlength=len(every))
    error = (counts / n - probabilities).abs() / (
        probabilities * (1 - probabilities) / n
    ).sqrt().clamp(min=1e-3)
    assert error.max() < 5
    assert counts[suppressed_ids(qwen)].sum() == 0


def test_rows_that_end_early_leave_the_others_unchanged(qwen, prompts, monkeypatch):
    """Greedy answers with eager, with no compaction, and without any end token agree up to each one's end."""
    plain = generate(qwen, prompts, max_new_tokens=16, temperature=0)
    common = max(
        {token for rows in plain.tokens for token in rows[0]},
        key=[t for r in plain.tokens for t in r[0]].count,
    )
    monkeypatch.setattr(qwen.model.generation_config, "eos_token_id", common)
    results = []
    for threshold in (0.0, 1.0):
        monkeypatch.setattr(module, "COMPACT_BELOW", threshold)
        results.append(generate(qwen, prompts, samples=2, max_new_tokens=16, temperature=0))
    assert results[0].tokens == results[1].tokens
    for before, after, ended in zip(plain.tokens, results[0].tokens, results[0].finished):
        assert before[0][: len(after[0])] == after[0]
        assert ended[0] == (after[0][-1] in end_ids(qwen))
        assert (len(after[0]) == 16) or ended[0]
    assert any(ended[0] for ended in results[0].finished)


def test_stop_text_ends_an_answer(any_mllm, prompts):
    """With the text of a greedy answer's middle as stop, that answer ends exactly where its text first holds it."""
    plain = generate(any_mllm, prompts[:1], max_new_tokens=12, temperature=0).tokens[0][0]
    decode = any_mllm.tokenizer.decode
    stop = next(
        text
        for text in (decode(plain[i : i + 2]) for i in range(3, 10))
        if text.isascii() and text.strip()
    )
    first = next(n for n in range(1, 13) if stop in decode(plain[:n]))
    made = generate(any_mllm, prompts[:1], max_new_tokens=12, temperature=0, stop=stop)
    assert made.tokens[0][0] == plain[:first]
    assert made.finished[0][0]


def test_counts_and_cut_answers(qwen, prompts):
    made = generate(qwen, prompts, samples=2, max_new_tokens=3, seed=1)
    assert made.n_decoded_tokens == sum(len(row) for rows in made.tokens for row in rows)
    lengths = [len(encode_prompt(qwen, p.question, p.images).input_ids) for p in prompts]
    assert made.n_prefill_tokens == sum(lengths)
    for rows, logprobs, finished in zip(made.tokens, made.logprobs, made.finished):
        for row, logprob, end in zip(rows, logprobs, finished):
            assert len(row) == len(logprob)
            assert end == (row[-1] in end_ids(qwen))


def test_small_batches_give_the_same_greedy_answers(qwen, prompts):
    whole = generate(qwen, prompts, samples=2, max_new_tokens=8, temperature=0)
    assert (
        generate(qwen, prompts, samples=2, max_new_tokens=8, temperature=0, max_rows=4).tokens
        == whole.tokens
    )


def test_image_tokens_are_never_sampled(any_mllm, prompts):
    """Even where the model wants nothing else."""
    head = any_mllm.model.get_output_embeddings()
    suppressed = suppressed_ids(any_mllm)
    assert set(any_mllm.processor.image_token_ids) <= set(suppressed)
    hook = head.register_forward_hook(
        lambda module, inputs, output: output.index_fill(-1, torch.tensor(suppressed), 99.0)
    )
    try:
        made = generate(any_mllm, prompts[:2], samples=2, max_new_tokens=6)
    finally:
        hook.remove()
    assert not {token for rows in made.tokens for row in rows for token in row} & set(suppressed)


def test_training_goes_on_after_generation(qwen, prompts):
    """No state of generation (mode, rope_deltas) reaches a training step."""
    batch = collate(qwen, [encode_prompt(qwen, p.question, p.images) for p in prompts])
    batch["labels"] = batch["input_ids"]
    qwen.model.train()
    before = qwen.model(**batch).loss.detach()
    generate(qwen, prompts[:2], max_new_tokens=3)
    assert qwen.model.training
    after = qwen.model(**batch).loss
    after.backward()
    qwen.model.zero_grad()
    qwen.model.eval()
    assert torch.equal(before, after.detach())


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}])
def test_impossible_settings_are_refused(qwen3, prompts, wrong):
    with pytest.raises(RoboAlignError, match="cannot generate"):
        generate(qwen3, prompts, **({"max_new_tokens": 2} | wrong))


def test_generation_is_plain_data(qwen3, prompts):
    made = generate(qwen3, prompts[:1], samples=1, max_new_tokens=2)
    assert set(dataclasses.asdict(made)) == {
        "tokens",
        "logprobs",
        "finished",
        "n_prefill_tokens",
        "n_decoded_tokens",
    }
    assert all(isinstance(token, int) for token in made.tokens[0][0])


def test_a_repetition_penalty_of_the_folder_is_not_applied(idefics3, prompts):
    plain = generate(idefics3, prompts, samples=2, max_new_tokens=8, seed=1)
    stored = idefics3.model.generation_config
    changed = copy.deepcopy(stored)
    changed.repetition_penalty, changed.top_p, changed.temperature = 5.0, 0.1, 0.1
    idefics3.model.generation_config = changed
    try:
        assert generate(idefics3, prompts, samples=2, max_new_tokens=8, seed=1) == plain
        assert idefics3.model.generation_config is changed
    finally:
        idefics3.model.generation_config = stored
