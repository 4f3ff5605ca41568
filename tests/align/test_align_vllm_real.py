"""The sampler against a real vLLM (docs/how-to/vllm-and-verl.md); skipped without one. A server that runs already,

    export ROBOALIGN_VLLM_URL=http://localhost:8000 ROBOALIGN_VLLM_WEIGHTS=/shared/policy

computes in float32 and serves `model/` of that folder, which is as before when the test has ended. With
`ROBOALIGN_VLLM_CLASS` a small random model of that class (`smolvlm`, `llava`, ...) is written there first, and the
server is waited for: start it then. One that the test starts:

    export ROBOALIGN_VLLM_SERVE=/opt/vllm/bin/vllm ROBOALIGN_VLLM_MODEL=runs/quickstart/seed-0/sft/model
    export ROBOALIGN_VLLM_OPTIONS="--dtype float32 --max-model-len 512"
    export ROBOALIGN_VLLM_MEMORY=0.4 ROBOALIGN_VLLM_SLEEP=1  # 0 where vLLM is built for a CPU

Then `pytest tests/align/test_align_vllm_real.py -s`.
"""

import os
import shlex
from pathlib import Path

import backbone_models as backbones
import numpy as np
import pytest
import tiny_grpo
import torch

from roboalign.align.engines.vllm.client import VllmConfig
from roboalign.align.engines.vllm.sampler import VllmSampler
from roboalign.align.engines.vllm.weights import write_policy
from roboalign.align.grpo.rollout import STOP, prompt_of
from roboalign.mllm import tiny_classes
from roboalign.mllm.encode import Prompt, encode_prompt
from roboalign.mllm.generate import generate
from roboalign.mllm.load import Mllm, load_mllm

URL, WEIGHTS, NAME, SERVE, MODEL, OPTIONS = (
    os.environ.get(f"ROBOALIGN_VLLM_{name}", "")
    for name in ("URL", "WEIGHTS", "CLASS", "SERVE", "MODEL", "OPTIONS")
)
SIZES = (
    (32, 32),
    (64, 64),
    (48, 64),
    (24, 96),
)  # height, width: kept, scaled, cut into tiles, padded


@pytest.mark.skipif(
    not URL or not WEIGHTS, reason="ROBOALIGN_VLLM_URL and ROBOALIGN_VLLM_WEIGHTS name no server"
)
def test_a_real_server_takes_new_weights_answers_as_generate_does_and_repeats_what_it_sampled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(WEIGHTS) / "model"
    if NAME and not folder.exists():
        monkeypatch.setitem(
            tiny_classes.TEXT, "hidden_size", 128
        )  # 32 a head: vLLM on a CPU knows no smaller ones
        write_policy(backbones.model_of(NAME), folder, 0)
    config = VllmConfig(url=URL, weights=WEIGHTS, tolerance=1e-3)
    compare(load_mllm(folder), VllmSampler(config))


@pytest.mark.skipif(
    not SERVE or not MODEL, reason="ROBOALIGN_VLLM_SERVE and ROBOALIGN_VLLM_MODEL name no vllm"
)
def test_a_real_server_of_our_own_does_so_too_and_sleeps_in_between(tmp_path: Path) -> None:
    more = {
        name: os.environ[variable]
        for name in ("memory", "sleep")
        if (variable := f"ROBOALIGN_VLLM_{name.upper()}") in os.environ
    }
    config = VllmConfig.model_validate(
        {
            "serve": SERVE,
            "weights": str(tmp_path / "policy"),
            "tolerance": 1e-3,
            "patience": 1200,
            **more,
            "options": shlex.split(OPTIONS),
        }
    )
    mllm = load_mllm(MODEL, device="cuda" if torch.cuda.is_available() else "cpu")
    compare(mllm, VllmSampler(config, tmp_path, mllm.device))


def compare(mllm: Mllm, sampler: VllmSampler) -> None:
    """Two models, one after the other on the same server; the first of them again at the end."""
    rng = np.random.default_rng(0)
    questions = [prompt_of(c).question for c in tiny_grpo.prompts(8)]
    asked = [
        Prompt(question, (rng.integers(0, 256, (*SIZES[i % 4], 3), np.uint8),))
        for i, question in enumerate(2 * questions)
    ]
    prompts = [encode_prompt(mllm, one.question, one.images) for one in asked]
    greedy = {
        "samples": 1,
        "max_new_tokens": 48,
        "temperature": 0.0,
        "stop": STOP,
        "seed": [0] * len(asked),
    }
    drawn = {
        **greedy,
        "samples": 4,
        "temperature": 1.0,
        "seed": [1000 * i for i in range(len(asked))],
    }
    before = {name: value.clone() for name, value in mllm.model.state_dict().items()}
    torch.manual_seed(0)
    answers = []
    try:
        for update in (0, 1):
            if update:  # each weight by about a tenth of what its tensor varies
                changed = {
                    name: value + 0.1 * value.std(unbiased=False) * torch.randn_like(value)
                    for name, value in before.items()
                    if value.is_floating_point()
                }
                mllm.model.load_state_dict({**before, **changed})
            sampler.write(mllm, update)
            drift = sampler.load(mllm, asked, update, 48)
            found, wanted = (
                sampler.sample(mllm, asked, prompts, **greedy),
                generate(mllm, prompts, **greedy),
            )
            same = sum(ours == theirs for ours, theirs in zip(found.tokens, wanted.tokens))
            print(f"weights {update}: {same} of {len(asked)} greedy answers equal, drift {drift}")
            assert found.tokens == wanted.tokens
            answers.append(found.tokens)
            again = [sampler.sample(mllm, asked, prompts, **drawn).tokens for _ in range(2)]
            same = sum(ours == theirs for groups in zip(*again) for ours, theirs in zip(*groups))
            print(f"weights {update}: {same} of {4 * len(asked)} drawn answers the same twice")
            assert again[0] == again[1]
            sampler.rest()
        changed_answers = sum(old != new for old, new in zip(*answers))
        print(f"{changed_answers} of {len(asked)} greedy answers are others with the other weights")
        assert changed_answers
        mllm.model.load_state_dict(before)
        sampler.write(mllm, 0)
        sampler.load(mllm, asked, 0, 48)
    finally:
        sampler.close()
