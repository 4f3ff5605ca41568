import numpy as np
import pytest
from transformers import (
    LlavaOnevisionImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SmolVLMImageProcessorPil,
)

from roboalign.mllm.presets import MODEL_PRESETS, image_tokens, meta_model, preset_config, preset_of

SIZES = [(224, 224), (64, 64), (480, 640), (1080, 1920), (200, 900), (700, 128)]


@pytest.mark.parametrize(
    "name", [name for name, preset in MODEL_PRESETS.items() if preset.published]
)
def test_a_preset_has_the_published_number_of_parameters(name):
    preset, model = MODEL_PRESETS[name], meta_model(preset_config(name))
    assert sum(p.numel() for p in model.parameters()) == preset.published
    assert 1 <= preset.layer <= model.config.get_text_config().num_hidden_layers


def test_the_layer_is_the_papers_for_its_model_and_the_same_share_elsewhere():
    assert MODEL_PRESETS["qwen2.5-vl-7b"].layer == 18
    for name, preset in MODEL_PRESETS.items():
        assert preset.layer == round(
            preset_config(name).get_text_config().num_hidden_layers * 18 / 28
        ), name


def pixels(height, width):
    return [[np.zeros((height, width, 3), dtype=np.uint8)]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "patch"), [("qwen2.5-vl-7b", 14), ("qwen3-vl-8b", 16)])
def test_qwens_image_tokens_are_the_processors(name, patch, size):
    image = MODEL_PRESETS[name].image
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch, size={"shortest_edge": image["least"], "longest_edge": image["most"]}
    )
    _, rows, columns = processor(pixels(*size), return_tensors="np")["image_grid_thw"][0]
    assert image_tokens(image, *size) == rows * columns // 4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["smolvlm2-256m", "smolvlm2-2.2b"])
def test_smolvlms_tiles_are_the_processors(name, size):
    image = MODEL_PRESETS[name].image
    processor = SmolVLMImageProcessorPil(
        size={"longest_edge": image["longest"]}, max_image_size={"longest_edge": image["tile"]}
    )
    tiles = processor(pixels(*size), return_tensors="np")["pixel_values"].shape[1]
    assert image_tokens(image, *size) == tiles * image["tokens"]


def test_onevisions_image_tokens_are_the_processors():
    from transformers import LlavaOnevisionProcessor

    image = MODEL_PRESETS["llava-onevision-7b"].image
    processor = LlavaOnevisionProcessor.__new__(
        LlavaOnevisionProcessor
    )  # its counting alone: the rest needs video
    processor.num_image_tokens, processor.vision_feature_select_strategy = 729, "full"
    processor.vision_aspect_ratio = "anyres_max_9"
    processor.image_processor = LlavaOnevisionImageProcessorPil(image_grid_pinpoints=image["grids"])
    for height, width in SIZES:
        expected = processor._get_number_of_features(height, width, 384, 384)
        assert image_tokens(image, height, width) == expected, (height, width)


def test_a_preset_is_found_by_name_and_by_the_folders_name():
    assert preset_of("qwen3-vl-4b") is MODEL_PRESETS["qwen3-vl-4b"]
    assert preset_of("/models/Qwen2.5-VL-7B-Instruct") is MODEL_PRESETS["qwen2.5-vl-7b"]
    assert preset_of("/models/qwen2.5-vl-7b-instruct/") is MODEL_PRESETS["qwen2.5-vl-7b"]
    assert preset_of("/models/of-my-own") is None
