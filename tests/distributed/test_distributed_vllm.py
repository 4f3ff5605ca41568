"""GRPO in two processes that share a server, or have one each: one process writes the weights, each asks about its own
prompts. With whole models (DDP) and with a split one (FSDP2)."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from two_ranks import split_model, two_ranks  # makes tiny_grpo importable

import tiny_grpo  # isort: skip
from fake_vllm import FakeVllm, vllm_executable  # isort: skip

from roboalign.align.engines.vllm.client import VllmConfig
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.train import train_grpo
from roboalign.core.files import read_json, read_jsonl


def train(folder: Path, server: dict[str, str] | None, split: bool = False) -> int:
    """Two rollouts; the own loop samples them where `server` does not say which vLLM does."""
    torch.set_num_threads(1)
    if split:
        split_model()
    settings = {"weights": str(folder / "policy"), "patience": 30, "tolerance": 1e-3}
    vllm = VllmConfig(**server, **settings) if server else None
    config = RlConfig(**{**tiny_grpo.CONFIG, "updates": 4, "logged_samples": 4, "vllm": vllm})
    with pytest.MonkeyPatch.context() as patch:
        tiny_grpo.even_ids_rewarded.__wrapped__(patch)
        train_grpo(tiny_grpo.tiny(), tiny_grpo.fast(), tiny_grpo.prompts(), config, folder / "rl")
    if server:
        dist.barrier()
        dist.destroy_process_group()
    return 0


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_two_processes_share_a_server(tmp_path: Path, split: bool) -> None:
    server = FakeVllm()
    try:
        ended = two_ranks(train, tmp_path, {"url": server.url}, split, logs=tmp_path)
    finally:
        server.stop()
    assert [one.status for one in ended] == [0, 0], ended
    assert server.count("/collective_rpc") == 2  # once a rollout, by one process
    # 4 greedy probes and 4 prompts a rollout
    assert server.count("/v1/chat/completions") == 16
    as_alone(tmp_path)


def as_alone(folder: Path) -> None:
    """What was trained in `folder` is what one process trains that samples itself."""
    train(folder / "alone", None)
    ours, theirs = (
        [
            (one["step"], one["id"], one["answer"])
            for one in read_jsonl(run / "rl" / "samples.jsonl")
        ]
        for run in (folder, folder / "alone")
    )
    assert ours == theirs and len(ours) == 8
    assert (
        max(record["sampler_drift_max"] for record in read_jsonl(folder / "rl" / "metrics.jsonl"))
        < 1e-4
    )
    assert read_json(folder / "rl" / "ledger.json")["answers"] == 24


def own(folder: Path, address: str, split: bool = False) -> int:
    os.environ["FAKE_VLLM"] = address
    return train(folder, {"serve": vllm_executable(folder / f"bin-{os.environ['RANK']}")}, split)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_two_processes_have_a_server_each(tmp_path: Path, split: bool) -> None:
    server = FakeVllm()
    try:
        ended = two_ranks(own, tmp_path, server.url, split, logs=tmp_path)
    finally:
        server.stop()
    assert [one.status for one in ended] == [0, 0], ended
    assert len(server.children) == 2 and server.alive(0) == []
    assert len({child["given"]["uds"] for child in server.children}) == 2
    assert {child["given"]["model"] for child in server.children} == {
        str(tmp_path / "policy" / "model")
    }
    assert not [
        name
        for child in server.children
        for name in child["variables"]
        if name in ("RANK", "MASTER_PORT") or name.startswith(("FSDP_", "TORCHELASTIC_"))
    ]
    assert sorted(path.name for path in (tmp_path / "rl").glob("*.log")) == [
        "vllm-0.log",
        "vllm-1.log",
    ]
    # Each, in each rollout, loads the weights and is asked 4 greedy probes; the 4 prompts are shared.
    assert server.count("/collective_rpc") == 4 and server.count("/v1/chat/completions") == 2 * (
        2 * 4 + 4
    )
    as_alone(tmp_path)


def test_a_process_that_is_killed_takes_its_server_along_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    """Rank 1 is killed in the second rollout; rank 0 is then ended, as torchrun does, without a word of its own."""
    chats: list[dict[str, Any]] = []

    def kill(path: str, body: dict[str, Any]) -> str:
        if path == "/v1/chat/completions" and body["n"] > 1:
            chats.append(body)
            if len(chats) == 6:
                os.kill(int((tmp_path / "rank-1").read_text()), signal.SIGKILL)
        return ""

    server = FakeVllm(kill)
    ended = two_ranks(killed, tmp_path, server.url, logs=tmp_path)
    assert [one.status for one in ended] == [-signal.SIGTERM, -signal.SIGKILL]
    assert len(server.children) == 2 and server.alive(10) == []
    last = time.monotonic() + 10  # the guards are the last to end
    while any(Path(child["given"]["uds"]).parent.exists() for child in server.children):
        assert time.monotonic() < last
        time.sleep(0.05)
    server.stop()
    again = FakeVllm()
    try:
        ended = two_ranks(own, tmp_path, again.url, logs=tmp_path)
    finally:
        again.stop()
    assert [one.status for one in ended] == [0, 0], ended
    assert again.count("/collective_rpc") == 2 and again.alive(0) == []  # one rollout
    as_alone(tmp_path)


def killed(folder: Path, address: str) -> int:
    (folder / f"rank-{os.environ['RANK']}").write_text(str(os.getpid()))
    return own(folder, address)
