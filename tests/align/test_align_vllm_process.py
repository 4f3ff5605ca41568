"""GRPO with a vLLM server of its own: a real child process that plays `vllm serve`, and every way both can end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_grpo
import torch
from fake_vllm import FakeVllm, Fault, no_fault, running, vllm_executable
from pydantic import ValidationError
from vllm_case import SETTINGS, nth, train

from roboalign.align.engines.vllm import guard as vllm_guard
from roboalign.align.engines.vllm.client import VllmConfig
from roboalign.align.engines.vllm.process import VllmProcess, environment
from roboalign.align.grpo.config import RlConfig
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl
from roboalign.mllm.load import Mllm

PATIENT = {**SETTINGS, "patience": 30.0}
CHAT = "/v1/chat/completions"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Fault], FakeVllm]]:
    """Starts what answers for the children; whatever they do, none may outlive its test."""
    started: list[FakeVllm] = []

    def start(fault: Fault = no_fault) -> FakeVllm:
        started.append(FakeVllm(fault))
        monkeypatch.setenv("FAKE_VLLM", started[-1].url)
        return started[-1]

    yield start
    for server in started:
        server.stop()
        assert server.alive(0) == []


def own(folder: Path, **more: object) -> VllmConfig:
    here = {"serve": vllm_executable(folder / "bin"), "weights": str(folder / "policy")}
    return VllmConfig(**{**here, **PATIENT, **more})


def apart(one: Mllm, other: Mllm) -> float:
    """The largest difference of two models' weights, over how far the second has moved from where both began."""
    theirs, start = (
        dict(other.model.named_parameters()),
        dict(tiny_grpo.tiny().model.named_parameters()),
    )
    moved = max(float((value - start[name]).abs().max()) for name, value in theirs.items())
    return (
        max(
            float((value - theirs[name]).abs().max())
            for name, value in one.model.named_parameters()
        )
        / moved
    )


# Training.


def test_training_through_an_own_server_is_the_local_one_and_survives_the_servers_death(
    tmp_path: Path, serve: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child is killed in the second rollout, at its third group; the same command goes on with a new one."""
    wanted = train(tmp_path / "local", None, monkeypatch)
    dies = nth(CHAT, 15, "die")

    def kill(path: str, body: dict[str, object]) -> str:
        if dies(path, body):
            os.kill(server.children[0]["pid"], signal.SIGKILL)
        return ""

    server = serve(kill)
    config = own(tmp_path, options=["--max-model-len", "512"], memory=0.25)
    log = tmp_path / "rl" / "vllm-0.log"
    message = rf"{log}: the vLLM server of this process has ended \(status 137\); .*resumes from the last checkpoint"
    with pytest.raises(RoboAlignError, match=message):
        train(tmp_path, config, monkeypatch)
    assert server.alive(0) == []  # its engine neither
    found = train(tmp_path, config, monkeypatch)
    assert apart(found, wanted) < 0.01
    ours, theirs = (
        read_jsonl(folder / "rl" / "samples.jsonl") for folder in (tmp_path, tmp_path / "local")
    )
    assert ours == theirs
    assert (
        max(record["sampler_drift_max"] for record in read_jsonl(tmp_path / "rl" / "metrics.jsonl"))
        < 1e-4
    )
    assert read_json(tmp_path / "rl" / "ledger.json")["rollouts"] == 2

    first, second = server.children
    given = first["given"]
    assert given["model"] == str(tmp_path / "policy" / "model") and given["max_model_len"] == 512
    assert given["gpu_memory_utilization"] == 0.25 and given["enable_sleep_mode"]
    assert not Path(second["given"]["uds"]).parent.exists()
    # The first child: rollout, sleep, wake, half a rollout. The second begins anew with the second rollout.
    turns = [
        path
        for path, _ in server.requests
        if path in ("/started", "/collective_rpc", "/sleep", "/wake_up")
    ]
    assert turns == [
        "/started",
        "/collective_rpc",
        "/sleep",
        "/wake_up",
        "/collective_rpc",
        "/started",
        "/collective_rpc",
        "/sleep",
    ]


def test_without_sleep_it_is_never_told_to(
    tmp_path: Path, serve: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    train(tmp_path, own(tmp_path, sleep=False), monkeypatch)
    assert (
        server.count("/collective_rpc") == 2
        and not server.count("/sleep")
        and not server.count("/wake_up")
    )
    assert not server.children[0]["given"]["enable_sleep_mode"]


def test_a_training_that_fails_ends_its_server(
    tmp_path: Path, serve: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(nth("/collective_rpc", 2, "stale"))
    with pytest.raises(
        RoboAlignError,
        match=r"vllm-0.log: the server answers with other weights.*Fix: where it comp",
    ):
        train(tmp_path, own(tmp_path), monkeypatch, learning_rate=1e-2)
    assert len(server.children) == 1 and server.alive(0) == []


def test_a_server_that_cannot_wake_is_not_asked_again(
    tmp_path: Path, serve: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the trainer has taken the memory that it slept without; 503 for another request is tried again."""
    server = serve(nth("/wake_up", 1, "busy"))
    with pytest.raises(
        RoboAlignError, match=r"/wake_up: the request is refused, HTTP 503: .*lower rl.vllm.memory"
    ):
        train(tmp_path, own(tmp_path), monkeypatch)
    assert server.count("/wake_up") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"options": ["--no-such"]},
            r"ended \(status 2\); its log says: .*vllm: error: unrecognized .*--no-such",
        ),
        (
            {},
            r"status 1\); its log says: ValueError: Free memory .* \| RuntimeError: the eng.* \| shutting down F",
        ),
    ],
    ids=["wrong option", "no memory"],
)
def test_a_server_that_does_not_start_is_quoted(
    tmp_path: Path,
    serve: Callable,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, object],
    message: str,
) -> None:
    serve()
    monkeypatch.setenv(
        "FAKE_VLLM_ENDS", "ValueError: Free memory is less than desired GPU memory utilization"
    )
    began = time.monotonic()
    with pytest.raises(RoboAlignError, match=message):
        train(tmp_path, own(tmp_path, **more), monkeypatch)
    assert time.monotonic() - began < PATIENT["patience"]


def test_a_server_that_never_listens_is_given_up_and_ended(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\necho loading\nexec sleep 600\n")
    program.chmod(0o755)
    config = VllmConfig(serve=str(program), weights=str(tmp_path), patience=0.5)
    process = VllmProcess(
        config, tmp_path / "model", tmp_path / "rl" / "vllm-0.log", torch.device("cpu")
    )
    with pytest.raises(
        RoboAlignError, match=r"the vLLM server is not up after 0.5 s; its log says: loading Fix"
    ):
        process.start()
    pid = int((tmp_path / "pid").read_text())
    assert running(pid)
    process.stop()
    assert not running(pid)


# The guard.

GUARD = f"""
import sys
sys.path.insert(0, {str(Path(vllm_guard.__file__).parent)!r})
import guard
guard.GRACE = 0.5
sys.exit(guard.main(int(sys.argv[1]), sys.argv[2:]))
"""
COMMAND = """
import os, signal, subprocess, sys, time
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1] + "/command", "w").write(f"{os.getpid()} {engine.pid}\\n")
time.sleep(0 if sys.argv[2] == "short" else 600)
"""
TRAINER = """
import os, subprocess, sys, time
_, guard, command, folder, how = sys.argv
guarded = [sys.executable, "-c", guard, str(os.getpid()), sys.executable, "-c", command, folder, how]
guard = subprocess.Popen(guarded, start_new_session=True)
open(folder + "/guard", "w").write(f"{guard.pid}\\n")
guard.wait()
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["trainer", "guard", "stubborn", "short"])
def test_nothing_outlives_who_asked_for_it(tmp_path: Path, how: str) -> None:
    """Killed are the trainer, or the guard; the command may ignore SIGTERM, or end and leave its engine behind."""
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, GUARD, COMMAND, str(tmp_path), how])
    try:
        (guard,), (command, engine) = (written(tmp_path / name) for name in ("guard", "command"))
        if how == "guard":
            os.kill(guard, signal.SIGKILL)
            assert gone([command])  # that it ends what it has started is its own duty
            os.kill(engine, signal.SIGKILL)
        elif how != "short":
            trainer.kill()
        assert gone([guard, command, engine])
    finally:
        trainer.kill()
        trainer.wait()


def written(path: Path) -> list[int]:
    """The numbers in a file, once its line is whole."""
    end = time.monotonic() + 90
    while not path.exists() or not path.read_text().endswith("\n"):
        assert time.monotonic() < end
        time.sleep(0.02)
    return [int(pid) for pid in path.read_text().split()]


def gone(pids: list[int]) -> bool:
    """Whether they have all ended, or do so soon."""
    end = time.monotonic() + 10
    while any(map(running, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(running, pids))


# Settings.


def test_the_child_sees_its_own_gpu_and_nothing_of_the_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        "RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "TORCHELASTIC_RUN_ID",
        "FSDP_VERSION",
        "PYTHONPATH",
        "PYTORCH_CUDA_ALLOC_CONF",
    ):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-5a")
    found = environment(torch.device("cuda", 1))
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-5a" and found["HF_HUB_OFFLINE"] == "1"
    assert "x" not in found.values() and found["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment(torch.device("cpu"))["CUDA_VISIBLE_DEVICES"] == "4, GPU-5a"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert environment(torch.device("cuda", 3))["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either `url`, of a server that runs, or `serve`"),
        (
            {"url": "http://a", "serve": "vllm"},
            "give either `url`, of a server that runs, or `serve`",
        ),
        ({"url": "http://a", "memory": 0.5}, "`memory` goes with `serve`"),
        ({"url": "http://a", "options": ["--x"]}, "`options` goes with `serve`"),
        ({"serve": "vllm", "options": ["--port=1"]}, "--port is set by `rl.vllm` itself"),
        (
            {"serve": "vllm", "options": ["--gpu_memory_utilization", "0.5"]},
            "--gpu-memory-utilization is set by",
        ),
        ({"serve": "vllm", "memory": 1.0}, "memory"),
    ],
)
def test_settings_that_do_not_go_together(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VllmConfig(weights="w", **given)


def test_what_is_no_executable_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").write_text("")
    for program in ("/nowhere/vllm", str(tmp_path / "notes")):
        with pytest.raises(
            RoboAlignError,
            match=rf"rl.vllm.serve: {program}: it is no executable file Fix: name the",
        ):
            train(
                tmp_path, VllmConfig(serve=program, weights=str(tmp_path / "policy")), monkeypatch
            )
    assert not (tmp_path / "policy").exists()


def test_how_it_samples_counts_and_which_server_does_not() -> None:
    other, one, two = (
        RlConfig(vllm=VllmConfig(weights="w", **given)).fingerprint()
        for given in (
            {"url": "http://a"},
            {"serve": "vllm"},
            {"serve": "v", "memory": 0.5, "sleep": 0},
        )
    )
    assert other == one == two
