"""Compiled layers: the same states and gradients, hooks heard, the model as it was afterwards.

With the backend `aot_eager`, which traces as inductor does but makes no code of its own: that takes minutes on a CPU.
`python benchmarks/scale.py --parts act` compares with inductor.
"""

import functools

import pytest
import torch
from torch import _dynamo as dynamo

from roboalign.mllm.compiled import compile_layers, restore_layers
from roboalign.mllm.encode import collate, encode_prompt
from roboalign.mllm.hidden import hidden_states


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without code generation; returns its counters."""
    dynamo.reset()
    dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    yield dynamo.utils.counters
    dynamo.reset()


def test_padding_to_a_multiple_changes_no_state(any_mllm, prompts):
    expected, mask = hidden_states(any_mllm, prompts, 2)
    padded, wider = hidden_states(any_mllm, prompts, 2, multiple=64)
    assert padded.shape[1] == wider.shape[1] == 64 > mask.shape[1]
    torch.testing.assert_close(padded[:, : mask.shape[1]], expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(wider[:, : mask.shape[1]], mask) and not padded[:, mask.shape[1] :].any()
    assert not wider[:, mask.shape[1] :].any()


def test_hidden_states_of_compiled_layers(qwen, prompts, traced):
    """A hook that comes after compilation, and is another at every call, hears the layer."""
    expected, _ = hidden_states(qwen, prompts, 2, multiple=64)
    layers = compile_layers(qwen.model, dynamic=False)
    try:
        assert len(layers) == 3 + 2  # of text and of vision
        found, _ = hidden_states(qwen, prompts, 2, multiple=64)
        graphs = traced["stats"]["unique_graphs"]
        again, _ = hidden_states(qwen, prompts[::-1], 2, multiple=64)
    finally:
        restore_layers(layers)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again.flip(0), expected, atol=1e-5, rtol=1e-4)
    assert (
        0 < graphs == traced["stats"]["unique_graphs"]
    )  # another call of the same shapes compiles nothing


def test_gradients_through_compiled_and_recomputed_layers(fresh_qwen3, prompts, traced):
    batch = collate(
        fresh_qwen3, [encode_prompt(fresh_qwen3, p.question, p.images) for p in prompts[:2]]
    )
    del batch["labels"]
    model = fresh_qwen3.model.train()
    model.set_attn_implementation("sdpa")
    parameters = list(model.parameters())
    loss = model(**batch, use_cache=False).logits.square().mean()
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    model.activation_checkpointing_enable()
    layers = compile_layers(model, dynamic=None)
    try:
        found = torch.autograd.grad(
            model(**batch, use_cache=False).logits.square().mean(), parameters, allow_unused=True
        )
    finally:
        restore_layers(layers)
    assert traced["stats"]["unique_graphs"] > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert not any("forward" in vars(module) for module in model.modules())
