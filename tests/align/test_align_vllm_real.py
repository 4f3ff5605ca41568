"""The sampler against a vLLM server that runs already (docs/vllm.md says how it is started); skipped without one.

    export ROBOALIGN_VLLM_URL=http://localhost:8000 ROBOALIGN_VLLM_WEIGHTS=/shared/policy
    pytest tests/align/test_align_vllm_real.py -s

The server computes in float32 and serves `model/` of that folder, which is as before when the test has ended.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import test_align_grpo as tiny_grpo
import torch

from roboalign.align.rollout import STOP, prompt_of
from roboalign.align.vllm import VllmSampler
from roboalign.align.vllm_client import VllmConfig
from roboalign.mllm.encode import Prompt, encode_prompt
from roboalign.mllm.generate import generate
from roboalign.mllm.load import load_mllm

URL, WEIGHTS = os.environ.get("ROBOALIGN_VLLM_URL"), os.environ.get("ROBOALIGN_VLLM_WEIGHTS")


@pytest.mark.skipif(not URL or not WEIGHTS, reason="ROBOALIGN_VLLM_URL and ROBOALIGN_VLLM_WEIGHTS name no server")
def test_a_real_server_takes_new_weights_answers_as_generate_does_and_repeats_what_it_sampled() -> None:
    config = VllmConfig(url=str(URL), weights=str(WEIGHTS), tolerance=1e-3)
    mllm, sampler, rng = load_mllm(Path(str(WEIGHTS)) / "model"), VllmSampler(config), np.random.default_rng(0)
    questions = [prompt_of(c).question for c in tiny_grpo.prompts(8)]
    asked = [Prompt(question, rng.integers(0, 256, (64, 64, 3), np.uint8)) for question in 2 * questions]
    prompts = [encode_prompt(mllm, one.question, one.image) for one in asked]
    greedy = {"samples": 1, "max_new_tokens": 48, "temperature": 0.0, "stop": STOP, "seed": [0] * len(asked)}
    drawn = {**greedy, "samples": 4, "temperature": 1.0, "seed": [1000 * i for i in range(len(asked))]}
    before = {name: value.clone() for name, value in mllm.model.state_dict().items()}
    torch.manual_seed(0)
    answers = []
    try:
        for update in (0, 1):
            if update:  # each weight by about a tenth of what its tensor varies
                changed = {name: value + 0.1 * value.std(unbiased=False) * torch.randn_like(value)
                           for name, value in before.items() if value.is_floating_point()}  # fmt: skip
                mllm.model.load_state_dict({**before, **changed})
            drift = sampler.publish(mllm, asked, update, 48)
            found, wanted = sampler.sample(mllm, asked, prompts, **greedy), generate(mllm, prompts, **greedy)
            same = sum(ours == theirs for ours, theirs in zip(found.tokens, wanted.tokens))
            print(f"weights {update}: {same} of {len(asked)} greedy answers equal, drift {drift}")
            assert found.tokens == wanted.tokens
            answers.append(found.tokens)
            assert sampler.sample(mllm, asked, prompts, **drawn).tokens == (
                sampler.sample(mllm, asked, prompts, **drawn).tokens
            )
        assert answers[0] != answers[1]
    finally:
        mllm.model.load_state_dict(before)
        sampler.publish(mllm, asked, 0, 48)
        sampler.client.close()
