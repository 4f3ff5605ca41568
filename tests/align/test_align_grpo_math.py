import math

import pytest
import torch

from roboalign.align.grpo.loss import (
    clipped_loss,
    clipped_loss_tokens,
    group_advantages,
    kl_k3,
    masked_mean,
)


def test_advantages_by_hand():
    # mean 1/3, unbiased std sqrt(1/3): 2/3 / 0.57735 = 1.1547
    found = group_advantages(torch.tensor([1.0, 0.0, 0.0, 2.0, 4.0, 6.0]), 3)
    torch.testing.assert_close(
        found, torch.tensor([1.1547, -0.5774, -0.5774, -1.0, 0.0, 1.0]), atol=1e-4, rtol=0
    )


def test_a_group_without_spread_gives_exact_zeros():
    rewards = torch.tensor([0.1] * 5 + [0.7] * 5)
    assert (group_advantages(rewards, 5, eps=1e-12) == 0).all()


def test_eps_bounds_a_tiny_spread():
    found = group_advantages(torch.tensor([0.0, 1e-6], dtype=torch.float64), 2)
    assert found[1] == pytest.approx(0.5e-6 / (1e-6 / math.sqrt(2) + 1e-6))


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    "rewards", [torch.zeros(7), torch.zeros(2, 5), torch.tensor([0.0] * 4 + [float("nan")])]
)
def test_bad_rewards_are_refused(rewards):
    with pytest.raises(ValueError):
        group_advantages(rewards, 5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (1.25, 2.0, -2.5),  # inside 1.3
        (2.0, 2.0, -2.6),  # clipped at 1.3
        (0.5, 2.0, -1.0),  # a fall of a good token is not clipped
        (0.5, -2.0, 1.6),  # a fall of a bad token is, at 0.8
        (2.0, -2.0, 4.0),  # a rise of a bad token is not...
        (5.0, -2.0, 6.0),  # ...beyond the dual clip of 3
    ],
)
def test_token_loss_by_hand(ratio, advantage, loss):
    found = clipped_loss_tokens(
        torch.tensor([[math.log(ratio)]]), torch.zeros(1, 1), torch.tensor([advantage])
    )
    assert found.item() == pytest.approx(loss, rel=1e-5)


def test_every_token_of_the_batch_weighs_the_same():
    logp = torch.zeros(2, 3, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    loss = clipped_loss(logp, torch.zeros(2, 3), torch.tensor([1.0, -1.0]), mask)
    assert loss.item() == pytest.approx((-3 + 1) / 4)
    loss.backward()
    assert torch.equal(logp.grad, torch.tensor([[-0.25, -0.25, -0.25], [0.25, 0.0, 0.0]]))


def test_masked_tokens_do_not_count_even_where_they_are_infinite():
    values = torch.tensor([[1.0, float("inf")], [3.0, float("nan")]])
    assert masked_mean(values, torch.tensor([[1, 0], [1, 0]])) == 2.0
    with pytest.raises(ValueError, match="no token"):
        masked_mean(values, torch.zeros(2, 2))


def test_a_nan_that_counts_is_not_hidden():
    assert torch.isnan(
        clipped_loss(
            torch.tensor([[float("nan")]]), torch.zeros(1, 1), torch.ones(1), torch.ones(1, 1)
        )
    )


def test_kl_by_hand():
    d = torch.tensor([0.0, 1.0, -1.0, 30.0])
    expected = torch.tensor([0.0, math.e - 2, math.exp(-1), 10.0])
    torch.testing.assert_close(kl_k3(torch.zeros(4), d), expected)


def test_kl_estimates_the_divergence():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
    sampled = torch.multinomial(policy, 200_000, replacement=True, generator=generator)
    exact = (policy * (policy / reference).log()).sum()
    assert kl_k3(policy.log()[sampled], reference.log()[sampled]).mean() == pytest.approx(
        exact.item(), rel=0.05
    )
