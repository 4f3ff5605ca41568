"""Make the pixels of a batch whose rows have different numbers and sizes of images, none included."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from roboalign.core.errors import RoboAlignError
from roboalign.mllm.load import Mllm

SEVERAL = frozenset({"qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "llava_onevision"})
"""Model types that are trained on several images a conversation."""
COARSE_IF_SEVERAL = frozenset({"llava_onevision"})
"""Model types whose processor cuts an image into tiles only if it is the conversation's only one."""


def require_images(mllm: Mllm, count: int) -> None:
    """Raise RoboAlignError if a conversation has more images than the model's class takes."""
    kind = mllm.model.config.model_type
    if count > 1 and kind not in SEVERAL:
        raise RoboAlignError(
            f"it has {count} images, and models of type {kind} take one",
            fix=f"use a model of type {', '.join(sorted(SEVERAL))}, conversations with one image, or for several "
            "cameras `backbone.cameras_as: side_by_side`",
        )


def pixels_of(mllm: Mllm, rows: Sequence[Sequence[np.ndarray]]) -> dict[str, Tensor]:
    """Return the model's image arguments for rows of images, each uint8 [H, W, 3]; {} without any.

    They come from the model's own image processor; which entries it returns (pixel_values,
    image_grid_thw, pixel_attention_mask, ...) depends on the model. Their floats are of its dtype.
    """
    shown = [list(images) for images in rows if images]
    if not shown:
        return {}
    found = mllm.processor.image_processor(
        shown, return_tensors="pt", input_data_format="channels_last"
    )
    unused = set(mllm.processor.unused_input_names)
    pixels = {
        key: value.to(mllm.model.dtype) if value.is_floating_point() else value
        for key, value in found.items()
        if key not in unused
    }
    if len(shown) == len(rows) or not _by_row(pixels):
        return pixels
    there = torch.tensor([bool(images) for images in rows])
    return {key: _spread(value, there) for key, value in pixels.items()}


def repeat_rows(
    arguments: dict[str, Tensor], images: Sequence[int], times: int
) -> dict[str, Tensor]:
    """Repeat each row's part of the model's arguments `times` times, side by side.

    `images` is the number of images of each row. Raises ValueError if an argument does not have as
    many entries as they say.
    """
    repeated = {}
    for name, value in arguments.items():
        parts = _entries(name, arguments, images)
        if sum(parts) != len(value):
            raise ValueError(f"{name} has {len(value)} entries, its images need {sum(parts)}")
        rows = value.split(parts)
        repeated[name] = torch.cat([part for part in rows for _ in range(times)])
    return repeated


def _entries(name: str, arguments: dict[str, Tensor], images: Sequence[int]) -> list[int]:
    """Return how many entries of an argument belong to each row."""
    by_row = [1] * len(images)
    if name in ("input_ids", "attention_mask", "mm_token_type_ids") or _by_row(arguments):
        return by_row
    if name == "batch_num_images":  # LLaVA-OneVision: of the rows that have an image
        return [min(count, 1) for count in images]
    grid = arguments.get("image_grid_thw")
    if name == "pixel_values" and grid is not None:  # Qwen: the patches of all images in a row
        patches = grid.prod(dim=1).split(list(images))
        return [int(part.sum()) for part in patches]
    return list(images)


def _by_row(arguments: dict[str, Tensor]) -> bool:
    """Return whether the pixels are [rows, most images of a row, 3, H, W], padded with zeros, as
    SmolVLM and Idefics3 have them."""
    pixels = arguments.get("pixel_values")
    return pixels is not None and pixels.dim() == 5 and "image_sizes" not in arguments


def _spread(value: Tensor, there: Tensor) -> Tensor:
    """Return [rows, ...] with the entries of `value` where `there` is true, and zeros elsewhere."""
    result = value.new_zeros(len(there), *value.shape[1:])
    result[there] = value
    return result
