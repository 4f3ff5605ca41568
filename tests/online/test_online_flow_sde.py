"""The flow head as a stochastic policy: the Gaussian case, and its density."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.online.flow_sde import (
    explore,
    gaussian_kl,
    log_density,
    sde_mean,
    sde_std,
    velocity_of,
)
from roboalign.vla import dit
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape

MEAN, STD = 0.3, 0.4
SHAPE = HeadShape(vlm_width=24, action_dim=4, state_dim=3, horizon=5)
SMALL = HeadConfig(width=32, heads=2, layers=2, vlm_inner_width=32, vlm_heads=2)


def exact(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The velocity of data N(MEAN, STD^2): E[action - noise | x_t = x], by Gaussian conditioning."""
    t = t[:, None, None]
    variance = (1 - t) ** 2 + (t * STD) ** 2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


def moments(steps: int, noise: float, *, all_steps: bool = True) -> tuple[float, float]:
    """Mean and deviation of x_1. Each step is linear in x: two points give its slope and offset."""
    mean, variance = 0.0, 1.0
    points = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None]
    for number in range(steps):
        step = torch.full((2,), number)
        t = torch.full((2,), number / steps, dtype=torch.float64)
        strength = noise if all_steps else 0.0
        low, high = sde_mean(points, exact(points, t), step, steps, strength).flatten().tolist()
        added = float(sde_std(step, steps, strength)[0]) ** 2
        mean, variance = low + (high - low) * mean, (high - low) ** 2 * variance + added
    return mean, math.sqrt(variance)


@pytest.mark.parametrize(
    ("steps", "ode", "sde"), [(4, 0.260, 0.326), (10, 0.339, 0.367), (100, 0.394, 0.398)]
)
def test_gaussian_data_keep_their_mean_and_get_a_known_width(
    steps: int, ode: float, sde: float
) -> None:
    for noise, width in ((0.0, ode), (0.5, sde)):
        mean, std = moments(steps, noise)
        assert mean == pytest.approx(MEAN, abs=1e-6)
        assert std == pytest.approx(width, abs=6e-4)


def test_deviations_of_four_steps() -> None:
    assert sde_std(torch.arange(4), 4, 0.5).flatten().tolist() == pytest.approx(
        [0.5, 0.4330, 0.25, 0.1443], abs=1e-4
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.data())
def test_without_noise_the_drawn_step_is_the_flow_s(steps: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    start, draw = torch.from_numpy(rng.normal(size=(2, 3, 5, 4)))
    step = torch.tensor(data.draw(st.lists(st.integers(0, steps - 1), min_size=3, max_size=3)))
    found = explore(exact, start, step, draw, steps=steps, noise=0.0)
    x = start
    for number in range(steps):
        x = x + exact(x, torch.full((3,), number / steps, dtype=x.dtype)) / steps
    torch.testing.assert_close(found.chunk, x.float(), check_dtype=False, atol=1e-5, rtol=1e-5)


def test_one_step_is_drawn_and_the_rest_is_the_flow() -> None:
    """From the drawn chunk on, and up to the one before it, nothing else moved."""
    generator = torch.Generator().manual_seed(0)
    start, draw = torch.randn(2, 4, 5, 4, generator=generator)
    step = torch.arange(4)
    found = explore(exact, start, step, draw, steps=4, noise=0.5)
    for row in range(4):
        x = start[row : row + 1]
        for number in range(4):
            if number == row:
                torch.testing.assert_close(found.before[row], x[0])
                drawn = found.mean[row] + sde_std(step, 4, 0.5)[row] * draw[row]
                torch.testing.assert_close(found.after[row], drawn)
                x = found.after[row : row + 1]
            else:
                x = x + exact(x, torch.tensor([number / 4])) / 4
        torch.testing.assert_close(found.chunk[row], x[0])


def test_density_and_divergence_are_torch_s() -> None:
    generator = torch.Generator().manual_seed(0)
    after, mean, other = torch.randn(3, 4, 5, 2, generator=generator)
    std = sde_std(torch.arange(4), 4, 0.5)
    normal, moved = (torch.distributions.Normal(one, std) for one in (mean, other))
    torch.testing.assert_close(log_density(after, mean, std), normal.log_prob(after).sum(-1))
    kl = torch.distributions.kl_divergence(normal, moved).sum(-1)
    torch.testing.assert_close(gaussian_kl(mean, other, std), kl)


def test_gradient_of_the_log_density_is_that_of_finite_differences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_double = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(dit, "_attend", lambda *given: in_double(*given[:3], attn_mask=given[3]))
    torch.manual_seed(0)
    head = FlowMatchingHead(SMALL, SHAPE).double().eval()
    states, mask = torch.randn(3, 6, 24, dtype=torch.double), torch.ones(3, 6, dtype=torch.bool)
    before, after = torch.randn(2, 3, 5, 4, dtype=torch.double)
    step = torch.tensor([0, 2, 3])

    def logprob() -> torch.Tensor:
        velocity = velocity_of(head, states, mask, None)(before, step / 4)
        mean = sde_mean(before, velocity, step, 4, 0.5)
        return log_density(after, mean, sde_std(step, 4, 0.5)).sum()

    logprob().backward()
    for weight in (head.decoder[2].bias, head.vlm_norm.weight, head.action_in.weight):
        assert weight.grad is not None
        where = int(weight.grad.abs().argmax())
        flat, change = weight.data.view(-1), 1e-5
        flat[where] += change
        high = logprob()
        flat[where] -= 2 * change
        low = logprob()
        flat[where] += change
        slope = float(high - low) / (2 * change)
        assert float(weight.grad.view(-1)[where]) == pytest.approx(slope, rel=1e-4)
