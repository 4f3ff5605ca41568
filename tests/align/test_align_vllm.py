"""GRPO with a server as its sampler: a real HTTP server that answers with our own model, and every way it can fail."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import backbone_checks as backbones
import pytest
import test_align_grpo as tiny_grpo
import torch
from fake_vllm import FakeVllm, Fault, no_fault
from pydantic import ValidationError
from safetensors.torch import load_file

from roboalign.align.engines.vllm.chat import read_completion
from roboalign.align.engines.vllm.client import VllmClient, VllmConfig
from roboalign.align.engines.vllm.sampler import Drift, VllmSampler, own_logp
from roboalign.align.engines.vllm.weights import check_served, write_policy
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.logprobs import completion_statistics
from roboalign.align.grpo.rollout import STOP, batch_of, prompt_of, roll_out
from roboalign.align.grpo.train import train_grpo
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import locked, read_jsonl
from roboalign.mllm.encode import Prompt, encode_prompt
from roboalign.mllm.generate import generate
from roboalign.mllm.load import Mllm, load_mllm, save_mllm

torch.set_num_threads(1)
SETTINGS = {"concurrency": 3, "timeout": 60.0, "patience": 0.3, "tolerance": 1e-3}


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


def test_the_weights_names_are_the_published_ones_whatever_the_models_folder_had(
    tmp_path: Path,
) -> None:
    """A folder with the names that a LLaVA built here has, and one with those of a published LLaVA."""
    mllm = backbones.model_of("llava", tied=False)
    write_policy(mllm, tmp_path / "published", 0)
    save_mllm(mllm, tmp_path / "built")
    wanted = load_file(tmp_path / "published" / "model.safetensors")
    assert load_file(tmp_path / "built" / "model.safetensors").keys() != wanted.keys()
    for name in ("published", "built"):
        loaded = load_mllm(tmp_path / name)
        before = loaded.model._weight_conversions
        write_policy(loaded, tmp_path / f"from-{name}", 0)
        found = load_file(tmp_path / f"from-{name}" / "model.safetensors")
        assert found.keys() == wanted.keys() and all(
            torch.equal(found[key], wanted[key]) for key in wanted
        )
        assert loaded.model._weight_conversions is before


@pytest.mark.parametrize(("kind", "tower"), [("idefics3", "idefics3_vision"), ("llava", "dinov2")])
def test_a_class_that_was_not_compared_is_refused(kind: str, tower: str) -> None:
    config = SimpleNamespace(model_type=kind, vision_config=SimpleNamespace(model_type=tower))
    with pytest.raises(
        RoboAlignError,
        match=f"of type {kind} whose vision tower is of type {tower} was not compared",
    ):
        check_served(config)


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


# One reply, and what can be wrong with it.


def reply_and_prompt(mllm: Mllm) -> tuple[dict[str, Any], Any]:
    one = prompt_of(tiny_grpo.prompts(1)[0])
    prompt = encode_prompt(mllm, one.question, one.images)
    found = generate(mllm, [prompt], samples=2, max_new_tokens=4, seed=[1])
    choices = [
        {
            "index": i,
            "token_ids": ids,
            "logprobs": {"content": [{"logprob": value} for value in logp]},
        }
        for i, (ids, logp) in enumerate(zip(found.tokens[0], found.logprobs[0]))
    ]
    return {"prompt_token_ids": prompt.input_ids.tolist(), "choices": choices}, prompt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda reply: reply.pop("choices"), "no chat completion with token ids"),
        (
            lambda reply: reply.update(prompt_token_ids=None),
            r"\(0 and \d+, the first difference at 0\)",
        ),
        (lambda reply: reply["choices"][1].pop("token_ids"), "no chat completion with token ids"),
        (
            lambda reply: reply["choices"][1].update(logprobs=None),
            "no chat completion with token ids",
        ),
        (lambda reply: reply["choices"].pop(), "it holds 1 answers, not 2"),
        (
            lambda reply: reply["choices"][0].update(token_ids=[], logprobs={"content": []}),
            "an answer is empty",
        ),
        (
            lambda reply: reply["choices"][0]["token_ids"].pop(),
            "an answer of 3 tokens has 4 log-probabilities",
        ),
        (
            lambda reply: reply["choices"][0]["logprobs"]["content"][0].update(
                logprob=float("nan")
            ),
            "of 4 tokens has 4",
        ),
        (
            lambda reply: reply["choices"][0]["token_ids"].__setitem__(0, 10**6),
            "token 1000000 is none that may be",
        ),
        (
            lambda reply: reply["choices"][0]["token_ids"].__setitem__(0, "7"),
            "token 7 is none that may be",
        ),
        (
            lambda reply: [
                part.pop()
                for part in (
                    reply["choices"][0]["token_ids"],
                    reply["choices"][0]["logprobs"]["content"],
                )
            ],
            "an answer stops after 3 tokens, at neither an end token nor `</answer>`",
        ),
    ],
)
def test_a_reply_that_is_not_the_answers_is_one_clear_error(change: Callable, message: str) -> None:
    mllm = tiny_grpo.tiny()
    reply, prompt = reply_and_prompt(mllm)
    assert len(read_completion(mllm, copy.deepcopy(reply), prompt, 2, 4, STOP, "http://here")) == 2
    change(reply)
    with pytest.raises(
        RoboAlignError, match=f"http://here: a reply cannot be trained on: .*{message}"
    ):
        read_completion(mllm, reply, prompt, 2, 4, STOP, "http://here")


def test_an_answer_that_ends_with_the_stop_text_is_finished() -> None:
    mllm = tiny_grpo.tiny()
    reply, prompt = reply_and_prompt(mllm)
    ids = mllm.tokenizer.encode("up</answer>", add_special_tokens=False)
    whole = {"token_ids": ids, "logprobs": {"content": [{"logprob": -1.0}] * len(ids)}}
    cut = {"token_ids": ids[:-1], "logprobs": {"content": [{"logprob": -1.0}] * (len(ids) - 1)}}
    for choice, found, limit in ((whole, True, len(ids) + 5), (cut, False, len(ids) - 1)):
        reply["choices"] = [{"index": 0, **choice}]
        assert read_completion(mllm, reply, prompt, 1, limit, STOP, "")[0][2] is found


# Weights and settings.


def test_the_policy_is_a_folder_with_an_output_embedding_of_its_own(tmp_path: Path) -> None:
    mllm = tiny_grpo.tiny()
    assert mllm.model.lm_head.weight is mllm.model.get_input_embeddings().weight
    write_policy(mllm, tmp_path / "model", 7)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(weights["lm_head.weight"], mllm.model.lm_head.weight)
    loaded = load_mllm(tmp_path / "model")
    assert loaded.model.lm_head.weight is not loaded.model.get_input_embeddings().weight
    assert json.loads((tmp_path / "model" / "roboalign-policy.json").read_text()) == {"update": 7}
    write_policy(mllm, tmp_path / "model", 8)  # what it wrote itself, it replaces
    write_policy(loaded, tmp_path / "untied", 0)
    again = load_file(tmp_path / "untied" / "model.safetensors")
    assert again.keys() == weights.keys() and all(
        torch.equal(again[name], weights[name]) for name in weights
    )
    (tmp_path / "mine").mkdir()
    with pytest.raises(RoboAlignError, match=r"something other than a policy.*new folder"):
        write_policy(mllm, tmp_path / "mine", 0)
    assert list(tmp_path.glob(".*partial")) == []


def test_a_folder_serves_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = VllmConfig(url="http://127.0.0.1:9", weights=str(tmp_path / "policy"), **SETTINGS)
    with (
        locked(tmp_path / "policy"),
        pytest.raises(RoboAlignError, match="another command is at work in this folder"),
    ):
        train(tmp_path, config, monkeypatch)


def test_settings() -> None:
    one, two = (VllmConfig(url=url, weights="w") for url in ("http://a:8000/v1/", "https://b"))
    assert one.url == "http://a:8000"
    for url in ("a:8000", "ftp://a", "http://user:key@a", "http://a?key=1", "http://a:none"):
        with pytest.raises(ValidationError, match="url"):
            VllmConfig(url=url, weights="w")
    local, here, there = (RlConfig(vllm=vllm).fingerprint() for vllm in (None, one, two))
    assert (
        here == there
        and here["sampler"] == "vllm"
        and "sampler" not in local
        and "vllm" not in local
    )
    assert {**local, "sampler": "vllm"} == here


def test_the_key_is_sent_and_a_refusal_names_it(
    serve: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    config = VllmConfig(url="http://127.0.0.1:9", weights="w", **{**SETTINGS, "patience": 0.1})
    client = VllmClient(config, "start it")
    assert client._http.headers["Authorization"] == "Bearer secret"
    with pytest.raises(
        RoboAlignError,
        match=r"127.0.0.1:9/v1/models: no answer after 1 tries \(ConnectError.*start",
    ):
        client.request("/v1/models")
