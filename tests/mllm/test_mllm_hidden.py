import copy

import pytest
import torch

from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import collate, encode_prompt
from roboalign.mllm.hidden import hidden_states, text_layers, truncate_layers
from roboalign.mllm.load import Mllm


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_equal_to_the_whole_models_hidden_states(any_mllm, prompts, layer):
    batch = collate(any_mllm, [encode_prompt(any_mllm, p.question, p.images) for p in prompts])
    del batch["labels"]
    with torch.no_grad():
        expected = any_mllm.model(**batch, output_hidden_states=True).hidden_states[layer]
    states, mask = hidden_states(any_mllm, prompts, layer, batch_size=2)
    assert torch.equal(mask, batch["attention_mask"].bool())
    torch.testing.assert_close(states, expected * mask[..., None], atol=1e-4, rtol=1e-4)
    assert not states[~mask].any()


def test_the_layers_above_are_not_computed(any_mllm, prompts):
    calls = []
    hooks = [
        one.register_forward_hook(
            lambda module, inputs, output, number=number: calls.append(number)
        )
        for number, one in enumerate(text_layers(any_mllm))
    ]
    hidden_states(any_mllm, prompts, 2)
    for hook in hooks:
        hook.remove()
    assert calls == [0, 1]
    assert len(text_layers(any_mllm)) == 3  # all there again


def test_truncation_for_good_changes_nothing_below(any_mllm, prompts):
    small = Mllm(copy.deepcopy(any_mllm.model), any_mllm.processor)
    expected, _ = hidden_states(any_mllm, prompts, 2)
    truncate_layers(small, 2)
    assert len(text_layers(small)) == 2
    assert torch.equal(hidden_states(small, prompts, 2)[0], expected)
    with pytest.raises(RoboAlignError, match=r"layers 1\.\.2"):
        hidden_states(small, prompts, 3)


def test_the_image_is_seen(any_mllm, prompts):
    """Another image under the same question changes the states of the question's last token."""
    twins = [prompts[0], type(prompts[0])(prompts[0].question, (255 - prompts[0].images[0],))]
    states, _ = hidden_states(any_mllm, twins, 2)
    assert (states[0, -1] - states[1, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_layers_that_are_not_there_are_refused(qwen3, prompts, layer):
    with pytest.raises(RoboAlignError, match=r"layers 1\.\.3"):
        hidden_states(qwen3, prompts, layer)


def test_final_norm_is_that_of_a_model_cut_off_at_the_layer(any_mllm, prompts):
    """Hugging Face normalizes the last layer's output, so a model cut to two layers gives the reference."""
    cut = Mllm(copy.deepcopy(any_mllm.model), any_mllm.processor)
    truncate_layers(cut, 2)
    batch = collate(cut, [encode_prompt(cut, p.question, p.images) for p in prompts])
    del batch["labels"]
    if cut.model.config.model_type == "qwen3_vl":
        cut.model.config.text_config.num_hidden_layers = 2
    with torch.no_grad():
        expected = cut.model.model(**batch, use_cache=False).last_hidden_state
    normed, mask = hidden_states(any_mllm, prompts, 2, final_norm=True)
    torch.testing.assert_close(normed, expected * mask[..., None], atol=1e-4, rtol=1e-4)
    plain, _ = hidden_states(any_mllm, prompts, 2)
    assert (plain - normed).abs().max() > 0.1


def test_final_norm_changes_nothing_at_the_top(any_mllm, prompts):
    plain, _ = hidden_states(any_mllm, prompts, 3)
    assert torch.equal(hidden_states(any_mllm, prompts, 3, final_norm=True)[0], plain)
