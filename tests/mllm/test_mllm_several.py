"""Conversations with no image, one or several, of different sizes, in one batch: each as it is alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from roboalign.align.backbone import ImagesConfig
from roboalign.align.grpo.logprobs import completion_statistics
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import (
    IGNORED,
    Prompt,
    collate,
    encode_conversation,
    encode_prompt,
)
from roboalign.mllm.generate import generate
from roboalign.mllm.hidden import hidden_states
from roboalign.mllm.load import Mllm, load_mllm, save_mllm
from roboalign.mllm.pixels import repeat_rows
from roboalign.mllm.processors import bound_pixels
from roboalign.mllm.tiny_classes import build_class

TEXTS = ["Where is the red block? Is it left of the box, or right?", "left right one two"] * 9
CLASSES = ("qwen2_5_vl", "qwen3_vl", "smolvlm", "llava_onevision")
SIZES = ((32, 32), (48, 64), (96, 40))
IMAGES = [
    np.random.default_rng(n).integers(0, 256, (*size, 3), np.uint8) for n, size in enumerate(SIZES)
]
PROMPTS = [
    Prompt("Where is the red block?", (IMAGES[0],)),
    Prompt("Is it left?", ()),
    Prompt("Is the block of <image> that of <image>, or of <image>?", tuple(IMAGES)),
    Prompt("One or two?", (IMAGES[2], IMAGES[1])),
]


@pytest.fixture(scope="module", params=CLASSES)
def mllm(request: pytest.FixtureRequest) -> Mllm:
    return build_class(request.param, TEXTS)


def own_ids(mllm: Mllm, prompt: Prompt) -> list[int]:
    """What the class's own chat template and processor make of a prompt."""
    parts = prompt.question.split("<image>")
    content = [{"type": "image"}] * (len(prompt.images) if len(parts) == 1 else 0)
    for number, piece in enumerate(parts):
        content += [{"type": "image"}] * (number > 0) + [{"type": "text", "text": piece}]
    text = mllm.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    images = [list(prompt.images)] if prompt.images else None
    found = mllm.processor(text=[text], images=images, add_special_tokens=False)
    return list(found["input_ids"][0])


@pytest.mark.parametrize("number", range(4))
def test_ids_are_those_of_the_models_own_processor(mllm: Mllm, number: int) -> None:
    prompt = PROMPTS[number]
    found = encode_prompt(mllm, prompt.question, prompt.images).input_ids.tolist()
    assert found == own_ids(mllm, prompt)


def test_a_template_that_moves_images_to_the_front_does_not_move_those_in_a_question() -> None:
    """LLaVA-OneVision's published template writes all images of a message before its texts."""
    mllm = build_class("llava_onevision", TEXTS)
    mllm.processor.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }} "
        "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ '\n' + part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    inside = encode_prompt(mllm, PROMPTS[2].question, PROMPTS[2].images).input_ids.tolist()
    token = mllm.processor.image_token_id
    written = [
        one for place, one in enumerate(inside) if one != token or inside[place - 1] != token
    ]
    text = "<|im_start|>user \n" + PROMPTS[2].question + "<|im_end|><|im_start|>assistant\n"
    assert written == mllm.tokenizer(text)["input_ids"]
    before = encode_prompt(mllm, "Which?", IMAGES[:2]).input_ids.tolist()
    assert before == own_ids(mllm, Prompt("Which?", tuple(IMAGES[:2])))


def test_images_in_later_turns(mllm: Mllm) -> None:
    turns = [
        {"question": "Where?", "answer": "left"},
        {"question": "<image> Is it left?", "answer": "<think>one</think><answer>two</answer>"},
        {"question": "Or <image>?", "answer": "right"},
    ]
    found = encode_conversation(mllm, turns, IMAGES[:2])
    spoken = mllm.tokenizer.decode(found.labels[found.labels != IGNORED])
    for turn in turns:
        assert turn["answer"] in spoken
    image_ids = mllm.processor.image_token_ids
    assert not np.isin(found.labels, image_ids).any()
    shown = np.isin(found.input_ids, image_ids)
    alone = [encode_prompt(mllm, "Where?", [one]) for one in IMAGES[:2]]
    if mllm.model.config.model_type != "llava_onevision":  # which shows several images coarsely
        assert shown.sum() == sum(np.isin(one.input_ids, image_ids).sum() for one in alone)
    # The first turn begins as if there were no image at all.
    first = encode_prompt(mllm, "Where?", []).input_ids
    assert (found.input_ids[: len(first)] == first).all()
    after = mllm.tokenizer.decode(found.input_ids[found.after_reasoning])
    assert after.startswith("<answer>two</answer>") and "right" not in after


def test_hidden_states_are_those_of_each_alone(mllm: Mllm) -> None:
    states, mask = hidden_states(mllm, PROMPTS, 2)
    for row, prompt in enumerate(PROMPTS):
        alone, real = hidden_states(mllm, [prompt], 2)
        assert mask[row].sum() == real.sum()
        torch.testing.assert_close(states[row][mask[row]], alone[0][real[0]], atol=2e-5, rtol=1e-4)
    swapped = Prompt(PROMPTS[3].question, PROMPTS[3].images[::-1])
    other, real = hidden_states(mllm, [swapped], 2)
    assert (other[0][real[0]][-1] - states[3][mask[3]][-1]).abs().max() > 1e-4  # order matters


def test_answers_are_those_of_each_alone(mllm: Mllm) -> None:
    settings = {"samples": 2, "max_new_tokens": 4, "temperature": 1.0}
    found = generate(mllm, PROMPTS, seed=[1, 2, 3, 4], **settings)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(mllm, [prompt], seed=[row + 1], **settings)
        assert alone.tokens[0] == found.tokens[row]
        np.testing.assert_allclose(alone.logprobs[0][0], found.logprobs[row][0], atol=5e-5)


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[1:2] * 2])
def test_the_trainer_scores_what_the_sampler_sampled(mllm: Mllm, prompts: list[Prompt]) -> None:
    """With the prompt shared and repeated (as gradient checkpointing needs), and without any image."""
    encoded = [encode_prompt(mllm, one.question, one.images) for one in prompts]
    found = generate(mllm, encoded, samples=2, max_new_tokens=4, temperature=1.0)
    rows = [row for group in found.tokens for row in group]
    width = max(2, *map(len, rows))
    completions = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    batch = collate(mllm, encoded, padding_side="left")
    del batch["labels"]
    sampled = [value for group in found.logprobs for row in group for value in row]
    for share in (True, False):
        with torch.no_grad():
            scored = completion_statistics(
                mllm.model,
                batch,
                completions,
                mask,
                images=[len(one.images) for one in prompts],
                temperature=1.0,
                share_prompt=share,
            )
        np.testing.assert_allclose(scored.logp[mask.bool()], sampled, atol=5e-5)


def test_rows_are_repeated_with_their_own_images(mllm: Mllm) -> None:
    """Repeated pixels are those of the repeated conversations, made anew by the processor."""
    encoded = [encode_prompt(mllm, one.question, one.images) for one in PROMPTS]
    twice = [one for one in encoded for _ in range(2)]
    wanted = collate(mllm, twice, padding_side="left")
    batch = collate(mllm, encoded, padding_side="left")
    del wanted["labels"], batch["labels"]
    found = repeat_rows(batch, [len(one.images) for one in encoded], 2)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_several_images_of_a_class_that_takes_one_are_refused_by_name() -> None:
    mllm = build_class("llava", TEXTS)
    with pytest.raises(RoboAlignError, match="it has 2 images, and models of type llava take one"):
        encode_prompt(mllm, "Which?", IMAGES[:2])
    without = collate(mllm, [encode_prompt(mllm, "Which?", []), encode_prompt(mllm, "Is it?", [])])
    assert "pixel_values" not in without
    mixed = [Prompt("Which?", ()), Prompt("Where?", (IMAGES[0],))]
    states, mask = hidden_states(mllm, mixed, 2)
    alone, _ = hidden_states(mllm, mixed[:1], 2)
    torch.testing.assert_close(states[0][mask[0]], alone[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_blank_image_changes_nothing_but_takes_part(mllm: Mllm, side: str) -> None:
    """Where a batch has no image, the vision tower runs and gets gradients of 0, as other processes wait for it."""
    texts = ["Is it left?", "Where is the red block, left or right?"]
    encoded = [encode_prompt(mllm, text, []) for text in texts]
    plain, blank = (collate(mllm, encoded, padding_side=side, blank=one) for one in (False, True))
    assert "pixel_values" in blank and "pixel_values" not in plain

    def logits(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        mask = batch["attention_mask"]
        places = (mask.cumsum(1) - 1).clamp(min=0)
        arguments = {key: value for key, value in batch.items() if key != "labels"}
        return mllm.model(**arguments, position_ids=places).logits[mask.bool()]

    with torch.no_grad():
        expected = logits(plain)
    mllm.model.zero_grad()
    found = logits(blank)
    torch.testing.assert_close(found.detach(), expected, atol=2e-5, rtol=1e-4)
    found.pow(2).sum().backward()
    tower = [p for name, p in mllm.model.named_parameters() if "visual" in name or "vision" in name]
    touched = [p.grad for p in tower if p.grad is not None]
    assert len(touched) > 0.9 * len(tower) and all(float(one.abs().max()) == 0 for one in touched)
    mllm.model.zero_grad()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_bounds_on_pixels_are_saved_with_the_model(name: str, tmp_path: Path) -> None:
    mllm = build_class(name, TEXTS)
    images = mllm.processor.image_processor
    step = images.patch_size * images.merge_size
    bound_pixels(mllm.processor, 4 * step**2, 9 * step**2)
    save_mllm(mllm, tmp_path / "model")
    loaded = load_mllm(tmp_path / "model")
    for side, tokens in ((1, 4), (3, 9), (40, 9)):
        blank = np.zeros((side * step, side * step, 3), np.uint8)
        for one in (mllm, loaded):
            found = encode_prompt(one, "Where?", [blank]).input_ids
            assert np.isin(found, one.processor.image_token_ids).sum() == tokens


def test_bounds_that_no_image_can_meet_are_refused() -> None:
    with pytest.raises(RoboAlignError, match="at least 9000000 and at most"):
        bound_pixels(build_class("qwen3_vl", TEXTS).processor, 9_000_000, None)
    with pytest.raises(RoboAlignError, match="has no bounds on pixels"):
        bound_pixels(build_class("smolvlm", TEXTS).processor, None, 100)
    with pytest.raises(ValueError, match="min_pixels 5 is above max_pixels 4"):
        ImagesConfig(min_pixels=5, max_pixels=4)
