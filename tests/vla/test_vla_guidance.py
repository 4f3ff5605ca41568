"""Real-time chunking's weights, gain and pull, by hand."""

import math

import numpy as np
import pytest
import torch

from roboalign.actions.normalize import ActionStats
from roboalign.vla.guidance import Guide, gain, make_guide, prefix_weights


def test_weights_are_the_papers():
    """Six actions, four left of the last chunk, one of which is executed meanwhile: c = 3/4, 2/4, 1/4."""
    soft = [c * (math.exp(c) - 1) / (math.e - 1) for c in (0.75, 0.5, 0.25)]
    np.testing.assert_allclose(prefix_weights(6, 4, 1), [1, *soft, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(prefix_weights(3, 3, 3), [1, 1, 1])
    weights = prefix_weights(16, 12, 5)
    assert (np.diff(weights) <= 0).all() and (weights[:5] == 1).all() and (weights[12:] == 0).all()


def test_gain_is_the_papers_and_never_passes_the_target():
    assert gain(0.0, 4) == 4 and gain(0.5, 4) == pytest.approx(2.0)
    assert gain(0.75, 4) == pytest.approx(10 / 3)  # (9/16 + 1/16) / (3/16)
    assert gain(0.99, 100) == pytest.approx((0.99**2 + 0.01**2) / (0.99 * 0.01))
    assert max(gain(step / 5, 5) for step in range(5)) == 5


def test_the_pull_moves_the_guess_towards_the_target():
    guide = Guide(torch.ones(1, 2, 1), torch.tensor([1.0, 0.0])[None, :, None])
    actions, velocity = torch.full((1, 2, 1), 0.2), torch.full((1, 2, 1), 0.4)
    # Half-way: the guess is 0.2 + 0.5 * 0.4 = 0.4, the gain 2, and the second action is free.
    torch.testing.assert_close(
        guide.pull(actions, velocity, 2, 4), torch.tensor([1.2, 0.0])[None, :, None]
    )


def test_a_sample_without_a_rest_is_free_and_units_are_normalised():
    stats = ActionStats.fit(np.stack([np.linspace(0, 10, 101), np.linspace(-1, 1, 101)], axis=1))
    rest = np.array([[5.0, 0.0], [10.0, 1.0]], np.float32)
    guide = make_guide([None, (rest, 1)], stats, 4, torch.device("cpu"))
    assert guide.weights[0].abs().sum() == 0
    np.testing.assert_array_equal(guide.weights[1, :, 0] > 0, [True, True, False, False])
    np.testing.assert_allclose(guide.target[1, :2], stats.normalize(rest), atol=1e-6)
    assert guide.weights[1, 0, 0] == 1
