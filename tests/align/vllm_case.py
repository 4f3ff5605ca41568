"""GRPO of the tiny model through a fake vLLM server: settings, a training, a fault at one request."""

from pathlib import Path
from typing import Any

import pytest
import tiny_grpo
from fake_vllm import FakeVllm, Fault

from roboalign.align.engines.vllm.client import VllmConfig
from roboalign.align.engines.vllm.sampler import Drift, VllmSampler
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.train import train_grpo
from roboalign.mllm.encode import Prompt
from roboalign.mllm.load import Mllm

SETTINGS = {"concurrency": 3, "timeout": 60.0, "patience": 0.3, "tolerance": 1e-3}


def config_of(server: FakeVllm, folder: Path, **more: object) -> VllmConfig:
    return VllmConfig(**{"url": server.url, "weights": str(folder / "policy"), **SETTINGS, **more})


def train(folder: Path, vllm: VllmConfig | None, patch: pytest.MonkeyPatch, **more: object) -> Mllm:
    tiny_grpo.even_ids_rewarded.__wrapped__(patch)
    mllm, config = (
        tiny_grpo.tiny(),
        RlConfig(**{**tiny_grpo.CONFIG, "updates": 4, "vllm": vllm, **more}),
    )
    train_grpo(mllm, tiny_grpo.fast(), tiny_grpo.prompts(), config, folder / "rl")
    return mllm


def published(sampler: VllmSampler, mllm: Mllm, probes: list[Prompt], max_new_tokens: int) -> Drift:
    sampler.write(mllm, 0)
    return sampler.load(mllm, probes, 0, max_new_tokens)


def nth(path: str, number: int, fault: str) -> Fault:
    """The fault at the request of this number (from 1) to `path`, and at no other."""
    seen = []

    def at(requested: str, body: dict[str, Any]) -> str:
        if requested != path:
            return ""
        seen.append(body)
        return fault if len(seen) == number else ""

    return at
