"""The folder that a vLLM server loads, the models that it may hold, and the settings of its servers."""

import json
from pathlib import Path
from types import SimpleNamespace

import backbone_models as backbones
import pytest
import tiny_grpo
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from vllm_case import SETTINGS, train

from roboalign.align.engines.vllm.client import VllmClient, VllmConfig
from roboalign.align.engines.vllm.weights import check_served, write_policy
from roboalign.align.grpo.config import RlConfig
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import locked
from roboalign.mllm.load import load_mllm, save_mllm


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


def test_the_key_is_sent_and_a_refusal_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    config = VllmConfig(url="http://127.0.0.1:9", weights="w", **{**SETTINGS, "patience": 0.1})
    client = VllmClient(config, "start it")
    assert client._http.headers["Authorization"] == "Bearer secret"
    with pytest.raises(
        RoboAlignError,
        match=r"127.0.0.1:9/v1/models: no answer after 1 tries \(ConnectError.*start",
    ):
        client.request("/v1/models")
