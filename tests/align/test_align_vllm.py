"""GRPO with a server as its sampler: a real HTTP server that answers with our own model, and every way it can fail."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import backbone_models as backbones
import pytest
import tiny_grpo
import torch
from fake_vllm import FakeVllm, Fault, no_fault
from safetensors.torch import load_file
from vllm_case import config_of, nth, published, train

from roboalign.align.engines.vllm.sampler import VllmSampler, own_logp
from roboalign.align.grpo.logprobs import completion_statistics
from roboalign.align.grpo.rollout import STOP, batch_of, prompt_of, roll_out
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from roboalign.mllm.encode import encode_prompt
from roboalign.mllm.generate import generate

torch.set_num_threads(1)


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeVllm]]:
    started: list[FakeVllm] = []

    def start(fault: Fault = no_fault, port: int = 0) -> FakeVllm:
        started.append(FakeVllm(fault, port))
        return started[-1]

    yield start
    for server in started:
        if not server.released.is_set():
            server.stop()


# Answers.


def test_greedy_answers_and_log_probabilities_are_those_of_generate(
    tmp_path: Path, serve: Callable
) -> None:
    mllm, server = tiny_grpo.tiny(), serve()
    sampler = VllmSampler(config_of(server, tmp_path))
    asked = [prompt_of(c) for c in tiny_grpo.prompts()]
    drift = published(sampler, mllm, asked[:4], 8)
    assert drift.tokens == 32 and drift.largest < 1e-4
    prompts = [encode_prompt(mllm, one.question, one.images) for one in asked]
    settings = {
        "samples": 1,
        "max_new_tokens": 12,
        "temperature": 0.0,
        "stop": STOP,
        "seed": [0] * 6,
    }
    found, wanted = (
        sampler.sample(mllm, asked, prompts, **settings),
        generate(mllm, prompts, **settings),
    )
    assert found.tokens == wanted.tokens and found.finished == wanted.finished
    assert (
        found.n_prefill_tokens == wanted.n_prefill_tokens
        and found.n_decoded_tokens == wanted.n_decoded_tokens
    )
    for ours, theirs in zip(found.logprobs, wanted.logprobs):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4)
    sampler.client.close()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm", "llava", "llava_onevision"])
def test_other_classes(name: str, tmp_path: Path, serve: Callable) -> None:
    """The ids of the prompt, made by the chat template and the stock way, are ours: one of them has a begin token."""
    mllm, sampler = backbones.model_of(name), VllmSampler(config_of(serve(), tmp_path))
    published(sampler, mllm, backbones.questions(2), 4)
    stored = load_file(tmp_path / "policy" / "model" / "model.safetensors")
    assert [key for key in stored if key.endswith("lm_head.weight")]
    assert not [
        key for key in stored if key.startswith("vision_tower.") and ".vision_model." not in key
    ]
    sampler.client.close()


def test_own_log_probabilities_replace_those_of_the_server(tmp_path: Path) -> None:
    """At a temperature the server's are of the plain logits: compared at 1, replaced at the temperature."""
    mllm, asked = tiny_grpo.tiny(), tiny_grpo.prompts(2)
    rolled = roll_out(
        mllm,
        tiny_grpo.fast(),
        asked,
        samples=3,
        max_new_tokens=6,
        temperature=0.7,
        preset="paper",
        seed=[3, 4],
    )
    wanted = batch_of(mllm, rolled, 0, 2)
    with torch.no_grad():
        plain = completion_statistics(
            mllm.model,
            wanted.prompts,
            wanted.completions,
            wanted.mask,
            images=wanted.images,
            temperature=1.0,
        ).logp
    served = copy.copy(wanted)
    object.__setattr__(served, "old_logp", plain + 0.25 * (torch.arange(6) % 2)[:, None])
    found, drift = own_logp(mllm, served, temperature=0.7)
    torch.testing.assert_close(
        found.old_logp * found.mask, wanted.old_logp * wanted.mask, atol=5e-5, rtol=1e-4
    )
    assert drift.tokens == int(wanted.mask.sum()) and drift.largest == pytest.approx(0.25, abs=1e-5)
    assert drift.mean == pytest.approx(
        0.25 * float(wanted.mask[1::2].sum()) / drift.tokens, abs=1e-5
    )


# Training.


def test_training_through_the_server_is_the_local_one_and_survives_its_death(
    tmp_path: Path, serve: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server draws with our own random numbers, so both must arrive at the same weights; it dies in a rollout."""
    local, remote = tmp_path / "local", tmp_path / "remote"
    wanted = train(local, None, monkeypatch)
    # A rollout asks for 4 greedy probes and 4 groups: this is the third request of the second one's groups.
    server = serve(nth("/v1/chat/completions", 15, "die"))
    config = config_of(server, remote)
    with pytest.raises(
        RoboAlignError,
        match=f"{config.url}.*no answer.*same command resumes from the last checkpoint",
    ):
        train(remote, config, monkeypatch)
    assert [p.name for p in (remote / "rl" / "checkpoints").glob("checkpoint-*")] == [
        "checkpoint-2"
    ]
    assert server.closed.wait(60)
    again = serve(port=server.port)
    found = train(remote, config, monkeypatch)
    assert (
        again.count("/collective_rpc") == 1
    )  # the rollout that was lost; the first is not sampled again
    start = dict(tiny_grpo.tiny().model.named_parameters())
    theirs = dict(wanted.model.named_parameters())
    apart = max(
        float((value - theirs[name]).abs().max()) for name, value in found.model.named_parameters()
    )
    moved = max(
        float((value - start[name]).abs().max()) for name, value in found.model.named_parameters()
    )
    assert apart < 0.01 * moved
    records = read_jsonl(remote / "rl" / "metrics.jsonl")
    for ours, other in zip(records, read_jsonl(local / "rl" / "metrics.jsonl"), strict=True):
        assert ours["reward"] == other["reward"] and ours["answers"] == other["answers"]
        assert ours["sampler_drift"] <= ours["sampler_drift_max"] < 1e-4
    assert records[0]["ratio"] == pytest.approx(1, abs=1e-6)
    assert read_jsonl(remote / "rl" / "samples.jsonl") == read_jsonl(local / "rl" / "samples.jsonl")
    ledger = json.loads((remote / "rl" / "ledger.json").read_text())
    assert ledger["rollouts"] == 2 and ledger["answers"] == 24 and ledger["seconds_publishing"] > 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            nth("/collective_rpc", 2, "stale"),
            "other weights than the trainer's.*greedy answers to 4 prompts after",
        ),
        (
            nth("/v1/chat/completions", 7, "other weights"),
            "other weights than the trainer's.*a rollout of 60 tokens",
        ),
        (
            nth("/v1/chat/completions", 1, "other prompt"),
            r"other tokens than the trainer \(\d+ and \d+, the first",
        ),
        (nth("/v1/chat/completions", 6, "garbage"), "not JSON: '<html>'"),
        (
            nth("/collective_rpc", 1, "refuse"),
            "refused, HTTP 404: nothing here.*VLLM_SERVER_DEV_MODE=1",
        ),
    ],
    ids=[
        "stale weights",
        "weights change in a rollout",
        "other prompt",
        "no JSON",
        "no development mode",
    ],
)
def test_nothing_is_learnt_from_a_server_in_doubt(
    tmp_path: Path, serve: Callable, monkeypatch: pytest.MonkeyPatch, fault: Fault, message: str
) -> None:
    config = config_of(serve(fault), tmp_path)
    with pytest.raises(RoboAlignError, match=message) as caught:
        train(tmp_path, config, monkeypatch, learning_rate=1e-2)
    assert config.url in str(caught.value)


def test_a_hung_server_is_given_up(
    tmp_path: Path, serve: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = serve(
        lambda path, body: "hang" if path == "/v1/chat/completions" and body["n"] > 1 else ""
    )
    config = config_of(hangs, tmp_path, timeout=0.3, patience=0.5)
    with pytest.raises(
        RoboAlignError, match=r"no answer after \d tries \(ReadTimeout.*vllm serve .*/policy/model"
    ):
        train(tmp_path, config, monkeypatch)
    assert not (tmp_path / "rl" / "metrics.jsonl").exists()


def test_what_passes_is_tried_again(
    tmp_path: Path, serve: Callable, capsys: pytest.CaptureFixture
) -> None:
    """Busy, then still at work with a request of a killed run; neither ends anything."""
    busy, held = nth("/collective_rpc", 1, "busy"), nth("/reset_prefix_cache", 1, "held")
    server = serve(lambda path, body: busy(path, body) or held(path, body))
    sampler = VllmSampler(config_of(server, tmp_path, patience=60.0))
    published(sampler, tiny_grpo.tiny(), [prompt_of(c) for c in tiny_grpo.prompts(1)], 2)
    assert server.count("/collective_rpc") == 2 and server.count("/reset_prefix_cache") == 2
    assert "HTTP 503: overloaded; tried again" in capsys.readouterr().err
