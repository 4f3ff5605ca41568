"""GRPO in two processes that share a server: one hands over the weights, each asks about its own prompts. With whole
models (DDP) and with a split one (FSDP2)."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from two_ranks import split_model, two_ranks  # makes test_align_grpo importable

import test_align_grpo as tiny_grpo  # isort: skip
from fake_vllm import FakeVllm  # isort: skip

from roboalign.align.grpo import RlConfig, train_grpo
from roboalign.align.vllm_client import VllmConfig
from roboalign.files import read_json, read_jsonl


def train(folder: Path, url: str, split: bool = False) -> int:
    """Two rollouts; without a URL the own loop samples them."""
    torch.set_num_threads(1)
    if split:
        split_model()
    vllm = VllmConfig(url=url, weights=str(folder / "policy"), patience=30, tolerance=1e-3) if url else None
    config = RlConfig(**{**tiny_grpo.CONFIG, "updates": 4, "logged_samples": 4, "vllm": vllm})
    with pytest.MonkeyPatch.context() as patch:
        tiny_grpo.even_ids_rewarded.__wrapped__(patch)
        train_grpo(tiny_grpo.tiny(), tiny_grpo.fast(), tiny_grpo.prompts(), config, folder / "rl")
    if url:
        dist.barrier()
        dist.destroy_process_group()
    return 0


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_two_processes_share_a_server(tmp_path: Path, split: bool) -> None:
    server = FakeVllm()
    try:
        ended = two_ranks(train, tmp_path, server.url, split, logs=tmp_path)
    finally:
        server.stop()
    assert [one.status for one in ended] == [0, 0], ended
    assert server.count("/collective_rpc") == 2  # once a rollout, by one process
    # 4 greedy probes and 4 prompts a rollout
    assert server.count("/v1/chat/completions") == 16
    train(tmp_path / "alone", "")
    ours, theirs = ([(one["step"], one["id"], one["answer"]) for one in read_jsonl(folder / "rl" / "samples.jsonl")]
                    for folder in (tmp_path, tmp_path / "alone"))  # fmt: skip
    assert ours == theirs and len(ours) == 8
    assert max(record["sampler_drift_max"] for record in read_jsonl(tmp_path / "rl" / "metrics.jsonl")) < 1e-4
    assert read_json(tmp_path / "rl" / "ledger.json")["answers"] == 24
