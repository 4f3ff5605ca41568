"""Advantages and losses, by hand and against the functions of verl and rlinf.

Importing them starts with Ray. The functions compared need torch alone, so their source is compiled as it stands:
`pip install --no-deps verl==0.9.1 rlinf==0.3.0` is all that the tests ask for.
"""

import ast
import importlib.metadata
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.align.grpo.loss import clipped_loss_tokens, group_advantages
from roboalign.online.loss import (
    CLIP_HIGH,
    CLIP_LOW,
    DUAL_CLIP,
    GAMMA,
    HUBER,
    LAMBDA,
    VALUE_CLIP,
    gae,
    leave_one_out,
    normalized,
    value_loss,
)


def compiled(package: str, version: str, path: str, names: set[str], **scope: Any) -> Any:
    """These functions of an installed file, without the file's imports, decorators and annotations."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"pip install --no-deps {package}=={version}")
    if distribution.version != version:
        pytest.skip(f"{package} {distribution.version} is installed, {version} was compared")
    source = Path(str(distribution.locate_file(path))).read_text()
    found = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name in names
    ]
    assert {node.name for node in found} == names
    for node in found:
        node.decorator_list = []
    future = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
    module = ast.fix_missing_locations(ast.Module([future, *found], []))
    given_names: dict[str, Any] = {"torch": torch, **scope}
    exec(compile(module, path, "exec"), given_names)
    return SimpleNamespace(**{name: given_names[name] for name in names})


def rlinf(path: str, *names: str, **scope: Any) -> Any:
    return compiled("rlinf", "0.3.0", f"rlinf/{path}", set(names), **scope)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_leave_one_out_by_hand() -> None:
    assert leave_one_out(torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist() == pytest.approx(
        [1, -1 / 3, -1 / 3, -1 / 3]
    )
    assert leave_one_out(torch.ones(7)).tolist() == [0.0] * 7
    for wrong in ([1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="two or more finite rewards"):
            leave_one_out(torch.tensor(wrong))


@settings(deadline=None)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=12))
def test_leave_one_out_sums_to_nothing(rewards: list[int]) -> None:
    found = leave_one_out(torch.tensor(rewards, dtype=torch.float))
    assert float(found.sum()) == pytest.approx(0, abs=1e-5)
    spread = torch.tensor(rewards, dtype=torch.float).std()
    ours = group_advantages(torch.tensor(rewards, dtype=torch.float), len(rewards))
    scaled = ours * (spread + 1e-6) * len(rewards) / (len(rewards) - 1)
    torch.testing.assert_close(found, scaled, atol=1e-5, rtol=1e-4)


def test_leave_one_out_is_verl_s() -> None:
    verl = compiled(
        "verl",
        "0.9.1",
        "verl/trainer/ppo/core_algos.py",
        {"compute_rloo_outcome_advantage"},
        np=np,
        defaultdict=defaultdict,
    )
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    index = np.array([0, 0, 0, 1, 1, 1])
    theirs, _ = verl.compute_rloo_outcome_advantage(rewards[:, None], torch.ones(6, 1), index)
    ours = torch.cat([leave_one_out(rewards[:3]), leave_one_out(rewards[3:])])
    torch.testing.assert_close(ours[:, None], theirs)


def test_gae_by_hand() -> None:
    values = torch.tensor([0.5, 0.2])
    last = 1.0 - 0.2
    first = 0.99 * 0.2 - 0.5 + 0.99 * 0.95 * last
    assert gae(torch.tensor([0.0, 1.0]), values).tolist() == pytest.approx([first, last])


def test_gae_and_normalization_are_rlinf_s() -> None:
    utils = rlinf("algorithms/utils.py", "safe_normalize")
    theirs = rlinf(
        "algorithms/advantages.py",
        "compute_gae_advantages_and_returns",
        safe_normalize=utils.safe_normalize,
    )
    rewards, values = drawn(6), drawn(6, seed=1)
    dones = torch.zeros(7, 1, dtype=torch.bool)
    dones[6] = True
    advantages, returns = theirs.compute_gae_advantages_and_returns(
        rewards[:, None],
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        values=torch.cat([values, torch.tensor([7.0])])[:, None],  # past the end: never counted
        normalize_advantages=False,
        dones=dones,
    )
    ours = gae(rewards, values)
    torch.testing.assert_close(ours[:, None], advantages)
    torch.testing.assert_close((ours + values)[:, None], returns)
    everything = torch.ones(6, dtype=torch.bool)
    torch.testing.assert_close(normalized(ours), utils.safe_normalize(ours, everything))
    assert normalized(torch.ones(1)).tolist() == [0.0]


def test_clipped_loss_and_its_gradient_are_rlinf_s() -> None:
    masked_mean = rlinf("utils/utils.py", "masked_mean").masked_mean
    theirs = rlinf("algorithms/losses.py", "compute_ppo_actor_loss", masked_mean=masked_mean)
    old, advantages = drawn(400), drawn(400, seed=1)
    ours, other = ((old + 0.5 * drawn(400, seed=2)).requires_grad_() for _ in range(2))
    loss = clipped_loss_tokens(
        ours[:, None], old[:, None], advantages, CLIP_LOW, CLIP_HIGH, DUAL_CLIP
    ).mean()
    expected, _ = theirs.compute_ppo_actor_loss(
        other, old, CLIP_LOW, CLIP_HIGH, advantages, clip_ratio_c=DUAL_CLIP
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, other.grad)
    assert ours.grad is not None and (ours.grad == 0).any(), "the case has clipped decisions"


def test_value_loss_is_rlinf_s() -> None:
    masked_mean = rlinf("utils/utils.py", "masked_mean").masked_mean
    huber = rlinf("algorithms/utils.py", "huber_loss").huber_loss
    theirs = rlinf(
        "algorithms/losses.py", "compute_ppo_critic_loss", masked_mean=masked_mean, huber_loss=huber
    )
    values, old, targets = drawn(50), drawn(50, seed=1), 20 * drawn(50, seed=2)
    expected, _ = theirs.compute_ppo_critic_loss(values, targets, old, VALUE_CLIP, HUBER)
    torch.testing.assert_close(value_loss(values, old, targets).mean(), expected)
