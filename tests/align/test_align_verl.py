"""GRPO's arithmetic against verl's own, an independent implementation of what EasyR1 (its fork) runs.

Importing verl starts with Ray. The functions compared here need torch alone, so their source is taken out of the
installed file and compiled as it stands: `pip install --no-deps verl==0.9.1` is all that the test asks for.
"""

import ast
import importlib.metadata
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from roboalign.align.grpo.loss import clipped_loss, group_advantages, kl_k3, masked_mean

VERSION = "0.9.1"


def verl_root() -> Path:
    try:
        distribution = importlib.metadata.distribution("verl")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(
            f"verl is not installed: pip install --no-deps verl=={VERSION}", allow_module_level=True
        )
    if distribution.version != VERSION:
        pytest.skip(
            f"verl {distribution.version} is installed, {VERSION} was compared",
            allow_module_level=True,
        )
    return Path(str(distribution.locate_file("verl")))


def functions_of(path: Path, names: set[str], scope: dict) -> SimpleNamespace:
    """The named top-level functions of a file, compiled in `scope` without the file's imports and annotations."""
    found = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name in names
    ]
    assert {node.name for node in found} == names
    for node in found:
        node.decorator_list = []
    future = ast.ImportFrom(
        "__future__", [ast.alias("annotations")], 0
    )  # annotations name types of other modules
    module = ast.fix_missing_locations(ast.Module([future, *found], []))
    exec(compile(module, str(path), "exec"), scope)
    return SimpleNamespace(**{name: scope[name] for name in names})


ROOT = verl_root()
TENSORS = functions_of(
    ROOT / "utils/torch_functional.py", {"masked_sum", "masked_mean"}, {"torch": torch}
)
VERL = functions_of(
    ROOT / "trainer/ppo/core_algos.py",
    {
        "compute_grpo_outcome_advantage",
        "compute_policy_loss_vanilla",
        "agg_loss",
        "kl_penalty",
        "kl_penalty_forward",
    },
    {
        "torch": torch,
        "np": np,
        "defaultdict": defaultdict,
        "verl_F": TENSORS,
        "AlgoConfig": type(None),
    },
)


class ActorSettings(dict):
    """The fields of verl's ActorConfig that its policy loss reads."""

    clip_ratio, clip_ratio_low, clip_ratio_high = 0.2, 0.2, 0.3
    global_batch_info: dict = {}  # noqa: RUF012


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    old, logp, ref = (
        -3 * torch.rand(30, 17, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    mask = torch.arange(17)[None] < torch.randint(1, 18, (30, 1), generator=generator)
    rewards = torch.rand(30, generator=generator, dtype=torch.float64).round(decimals=1)
    rewards[5:10] = 0.5  # a group without spread
    return SimpleNamespace(old=old, logp=logp, ref=ref, mask=mask, rewards=rewards)


def test_advantages(batch):
    at_last_token = torch.zeros(30, 17, dtype=torch.float64)
    at_last_token[torch.arange(30), batch.mask.sum(dim=1) - 1] = batch.rewards
    theirs, _ = VERL.compute_grpo_outcome_advantage(
        at_last_token, batch.mask, np.repeat(np.arange(6), 5)
    )
    ours = group_advantages(batch.rewards, 5)[:, None] * batch.mask
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    assert ours.abs().max() > 1


def test_advantages_of_verls_own_example():
    theirs, _ = VERL.compute_grpo_outcome_advantage(
        torch.tensor([[1.0], [0.0], [0.0]]), torch.ones(3, 1), np.zeros(3, dtype=int)
    )
    torch.testing.assert_close(group_advantages(torch.tensor([1.0, 0.0, 0.0]), 3)[:, None], theirs)


def test_policy_loss_and_gradient(batch):
    advantages = group_advantages(batch.rewards, 5)
    ours_logp, their_logp = (batch.logp.clone().requires_grad_() for _ in range(2))
    ours = clipped_loss(ours_logp, batch.old, advantages, batch.mask)
    theirs, metrics = VERL.compute_policy_loss_vanilla(
        batch.old,
        their_logp,
        advantages[:, None].expand(30, 17),
        batch.mask.double(),
        "token-mean",
        config=ActorSettings(clip_ratio_c=3.0),
    )
    assert (
        metrics["actor/pg_clipfrac"] > 0.1 and metrics["actor/pg_clipfrac_lower"] > 0.01
    )  # both clips are at work
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-7)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours_logp.grad, their_logp.grad, atol=1e-9, rtol=1e-6)


def test_kl(batch):
    ref = batch.ref.clone()
    ref[0, 0] = batch.logp[0, 0] + 40  # beyond the clamp
    ours, theirs = kl_k3(batch.logp, ref), VERL.kl_penalty(batch.logp, ref, "low_var_kl")
    torch.testing.assert_close(ours, theirs)
    mask = batch.mask.double()
    torch.testing.assert_close(
        masked_mean(ours, batch.mask),
        VERL.agg_loss(theirs, mask, "token-mean"),
        atol=1e-7,
        rtol=1e-7,
    )
