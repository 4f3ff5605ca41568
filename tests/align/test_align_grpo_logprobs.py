"""Log-probabilities with a shared prompt: those of plain rows and of the sampler; other ones stop the training."""

import pytest
import tiny_grpo
import torch
from tiny_grpo import CONFIG, fast, plain_logits, prompts, qwen2_5, tiny
from torch import Tensor

from roboalign.align.dataset import pictures
from roboalign.align.grpo import logprobs as logprobs_module
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.logprobs import completion_statistics
from roboalign.align.grpo.rollout import Rollout, batch_of, roll_out
from roboalign.align.grpo.train import train_grpo
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from roboalign.mllm.encode import encode_prompt
from roboalign.mllm.generate import Generation
from roboalign.mllm.load import Mllm

even_ids_rewarded = tiny_grpo.even_ids_rewarded


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_log_probabilities_and_gradients_are_those_of_plain_rows(family: str) -> None:
    """Prompts of different length, answers of different length, temperature: shared, repeated and plain agree."""
    mllm = tiny() if family == "qwen3_vl" else qwen2_5(tiny())
    assert mllm.model.config.model_type == family
    asked, temperature = prompts(2), 0.7
    answers = [[20, 30, 40, 50], [21], [22, 33], [23, 34, 45]]  # two answers to each prompt
    generation = Generation([answers[:2], answers[2:]], [], [], 0, 0)
    encoded = [encode_prompt(mllm, c.turns[0].question, pictures(c)) for c in asked]
    rolled = Rollout(
        encoded, answers, [[0.0] * len(a) for a in answers], [], torch.zeros(4), generation
    )
    batch = batch_of(mllm, rolled, 0, 2)
    head = mllm.model.model.language_model.layers[
        0
    ].self_attn.k_proj.weight  # its gradient goes through the prompt

    def gradient(loss: Tensor) -> Tensor:
        mllm.model.zero_grad()
        loss.backward()
        return head.grad.clone()

    expected, entropies = [], []
    for row, answer in enumerate(answers):
        c = asked[row // 2]
        logits = plain_logits(mllm, c.turns[0].question, pictures(c), answer) / temperature
        expected.append(logits.log_softmax(-1)[range(len(answer)), answer])
        entropies.append(torch.distributions.Categorical(logits=logits).entropy())
    weights = [torch.arange(1.0, len(a) + 1) for a in answers]
    wanted = gradient(sum((e * w).sum() for e, w in zip(expected, weights)))
    for share in (True, False):
        found = completion_statistics(
            mllm.model,
            batch.prompts,
            batch.completions,
            batch.mask,
            images=batch.images,
            temperature=temperature,
            share_prompt=share,
        )
        for row, answer in enumerate(answers):
            torch.testing.assert_close(
                found.logp[row, : len(answer)], expected[row], atol=2e-5, rtol=1e-4
            )
            torch.testing.assert_close(
                found.entropy[row, : len(answer)], entropies[row], atol=2e-5, rtol=1e-4
            )
        loss = sum(
            (found.logp[row, : len(a)] * w).sum()
            for row, (a, w) in enumerate(zip(answers, weights))
        )
        torch.testing.assert_close(gradient(loss), wanted, atol=1e-4, rtol=1e-3)


def test_sampler_and_trainer_agree_on_log_probabilities() -> None:
    mllm, asked = tiny(), prompts(3)
    rolled = roll_out(
        mllm, fast(), asked, samples=4, max_new_tokens=12, temperature=0.8, preset="paper", seed=3
    )
    batch = batch_of(mllm, rolled, 0, 3)
    with torch.no_grad():
        found = completion_statistics(
            mllm.model,
            batch.prompts,
            batch.completions,
            batch.mask,
            images=batch.images,
            temperature=0.8,
        )
    torch.testing.assert_close(found.logp * batch.mask, batch.old_logp, atol=5e-5, rtol=1e-4)
    assert int(batch.mask.sum()) == rolled.generation.n_decoded_tokens


def test_samples_that_the_trainer_scores_otherwise_stop_the_training(
    tmp_path, monkeypatch, even_ids_rewarded
):
    """Images handed to the wrong answers: each ratio of the first update would be wrong without a word."""
    real = logprobs_module.repeat_rows

    def shifted(prompts, images, times):
        repeated = real(prompts, images, times)
        return repeated | {"pixel_values": 3 * repeated["pixel_values"].flip(0)}

    monkeypatch.setattr(logprobs_module, "repeat_rows", shifted)
    config = RlConfig(**CONFIG | {"gradient_checkpointing": True, "micro_batch_size": 2})
    with pytest.raises(RoboAlignError, match="with the same weights"):
        train_grpo(sensitive(), fast(), prompts(), config, tmp_path)


def test_equal_samples_and_scores_train_on(tmp_path, even_ids_rewarded):
    config = RlConfig(
        **CONFIG | {"gradient_checkpointing": True, "micro_batch_size": 2, "updates": 2}
    )
    train_grpo(sensitive(), fast(), prompts(), config, tmp_path)
    first = read_jsonl(tmp_path / "metrics.jsonl")[0]
    assert first["ratio"] == pytest.approx(1.0, abs=1e-4)


def sensitive() -> Mllm:
    """A model whose output depends strongly on the image: its random weights are enlarged."""
    mllm = tiny()
    with torch.no_grad():
        for parameter in mllm.model.parameters():
            parameter.mul_(4)
    return mllm
