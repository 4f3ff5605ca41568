"""GRPO's log-probabilities where the prompts of one micro-batch have images of different sizes."""

import numpy as np
import pytest
import torch

from roboalign.align.grpo.logprobs import completion_statistics
from roboalign.mllm.encode import Prompt, collate, encode_prompt
from roboalign.mllm.pixels import repeat_rows

ANSWERS = 200 + torch.tensor([[5, 9, 7, 11], [6, 8, 12, 5], [9, 9, 5, 7], [10, 6, 7, 8]])


def batch_of(mllm, prompts):
    encoded = [encode_prompt(mllm, one.question, one.images) for one in prompts]
    batch = collate(mllm, encoded, padding_side="left")
    del batch["labels"]
    return batch


def of_two_sizes():
    rng = np.random.default_rng(0)
    shapes = ((32, 32, 3), (48, 64, 3))
    images = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    return [Prompt("Where is the red block?", (image,)) for image in images]


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5"])
@pytest.mark.parametrize("share", [True, False])
def test_equal_to_each_prompt_alone(family, share, request):
    mllm, prompts = request.getfixturevalue(family), of_two_sizes()
    mask = torch.ones_like(ANSWERS)

    def logp(chosen, answers):
        batch = batch_of(mllm, chosen)
        with torch.no_grad():
            found = completion_statistics(
                mllm.model,
                batch,
                answers,
                mask[: len(answers)],
                images=[len(one.images) for one in chosen],
                temperature=1.0,
                share_prompt=share,
            )
        return found.logp

    together = logp(prompts, ANSWERS)
    alone = torch.cat([logp(prompts[:1], ANSWERS[:2]), logp(prompts[1:], ANSWERS[2:])])
    torch.testing.assert_close(together, alone, atol=5e-5, rtol=1e-4)
    # The two images matter: exchanged, the same answers have other log-probabilities.
    swapped = logp(prompts[::-1], ANSWERS)
    assert (swapped - together).abs().max() > 1e-2


def test_patches_stay_with_their_prompt():
    prompts = {
        "input_ids": torch.tensor([[1], [2]]),
        "image_grid_thw": torch.tensor([[1, 1, 2], [1, 2, 2]]),
        "pixel_values": torch.arange(6.0)[:, None],
    }
    repeated = repeat_rows(prompts, [1, 1], 2)
    assert repeated["input_ids"].flatten().tolist() == [1, 1, 2, 2]
    assert repeated["pixel_values"].flatten().tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 2, 3, 4, 5]
    assert repeated["image_grid_thw"].prod(dim=1).tolist() == [2, 2, 4, 4]


def test_rows_that_belong_to_no_prompt_are_refused():
    prompts = {"input_ids": torch.zeros(2, 3), "pixel_values": torch.zeros(3, 4)}
    with pytest.raises(ValueError, match="pixel_values has 3 entries, its images need 2"):
        repeat_rows(prompts, [1, 1], 2)
