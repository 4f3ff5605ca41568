import colorsys

import numpy as np
import pytest

from roboalign.vla.augment import AugmentConfig, augment

NONE = {"crop": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def image(seed=0, height=40, width=60):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def plain(color, size=16):
    return np.full((size, size, 3), color, np.uint8)


def test_a_copy_is_a_function_of_its_name():
    config = AugmentConfig()
    first = augment(image(), config, "episode", "front", 3, 1)
    assert first.shape == image().shape and first.dtype == np.uint8
    np.testing.assert_array_equal(augment(image(), config, "episode", "front", 3, 1), first)
    for name in (
        ("other", "front", 3, 1),
        ("episode", "wrist", 3, 1),
        ("episode", "front", 4, 1),
        ("episode", "front", 3, 2),
    ):
        assert (augment(image(), config, *name) != first).mean() > 0.5


def test_with_everything_off_nothing_changes():
    np.testing.assert_array_equal(augment(image(), AugmentConfig(**NONE), "x"), image())


def test_a_crop_is_a_window_of_its_size_anywhere():
    """On a ramp, the picture's own positions can be read off its pixels."""
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 100, axis=0).repeat(
        3, axis=2
    )
    config, lefts = AugmentConfig(**{**NONE, "crop": 0.8}), []
    for copy in range(40):
        row = augment(ramp, config, copy)[50, :, 0].astype(float) / 2
        # Enlarged by 1 / 0.8, the ramp rises by 0.8 columns a pixel.
        assert np.polyfit(np.arange(10, 90), row[10:90], 1)[0] == pytest.approx(0.8, abs=0.01)
        lefts.append(row[50] - 40)
    assert min(lefts) < 3 and max(lefts) > 17 and min(lefts) > -1.5 and max(lefts) < 21.5


def test_brightness_scales_every_channel_within_its_bounds():
    config = AugmentConfig(**{**NONE, "brightness": 0.3})
    ratios = []
    for copy in range(40):
        got = augment(plain((100, 50, 150)), config, copy)[0, 0].astype(float)
        ratios.append(got[0] / 100)
        np.testing.assert_allclose(got, np.array([100, 50, 150]) * ratios[-1], atol=1.5)
    assert 0.69 <= min(ratios) < 0.8 and 1.2 < max(ratios) <= 1.31


def test_contrast_and_saturation_move_pixels_to_and_from_the_grey():
    for setting, grey in (
        ("contrast", None),
        ("saturation", 0.299 * 170 + 0.587 * 100 + 0.114 * 60),
    ):
        config = AugmentConfig(**{**NONE, setting: 0.5})
        picture = plain((170, 100, 60))
        if setting == "contrast":
            picture[:, 8:] = 20
            grey = round((0.299 * 170 + 0.587 * 100 + 0.114 * 60 + 20) / 2)
        factors = []
        for copy in range(30):
            got = augment(picture, config, copy)[0, 0].astype(float)
            factors.append((got[0] - grey) / (170 - grey))
            np.testing.assert_allclose(
                got, grey + factors[-1] * (np.array([170, 100, 60]) - grey), atol=3
            )
        assert 0.45 < min(factors) < 0.7 and max(factors) > 1.1


def test_hue_turns_both_ways_and_no_further():
    config = AugmentConfig(**{**NONE, "hue": 0.08})
    turned = []
    for copy in range(40):
        red, green, blue = augment(plain((200, 80, 80)), config, copy)[0, 0] / 255
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        turned.append((hue + 0.5) % 1 - 0.5)  # from red, hue 0
        assert saturation == pytest.approx(0.6, abs=0.02) and value == pytest.approx(
            200 / 255, abs=0.01
        )
    assert min(turned) < -0.04 and max(turned) > 0.04 and max(map(abs, turned)) < 0.085
