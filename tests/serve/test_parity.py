"""Rollouts over websockets are those in process: the same episodes solved, in the same number of steps."""

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from serving import served
from toy_on_path import PACKAGE

from roboalign.actions.normalize import ActionStats
from roboalign.actions.relative import Relative
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.load import load_mllm
from roboalign.mllm.shipped import pretrained_folder
from roboalign.serve.client import RemotePolicy
from roboalign.serve.describe import contract_of
from roboalign.sim.rollout import EnvironmentPool, RolloutConfig, rollout_batch
from roboalign.vla.features import View
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy import Policy

SMALL = {"width": 32, "heads": 2, "layers": 2, "vlm_inner_width": 32, "vlm_heads": 2}


@pytest.fixture(scope="module")
def policy():
    """The shipped model under a head that is not trained."""
    torch.manual_seed(0)
    mllm = load_mllm(pretrained_folder())
    width = mllm.model.config.get_text_config().hidden_size
    shape = HeadShape(vlm_width=width, action_dim=4, state_dim=4, horizon=8)
    head = FlowMatchingHead(HeadConfig(**SMALL, proprioception=True), shape)
    rng = np.random.default_rng(0)
    actions = ActionStats.fit(rng.uniform(-1, 1, (50, 4)))
    states = ActionStats.fit(rng.uniform(-0.25, 0.25, (50, 4)))
    return HeadPolicy(mllm, head.eval(), View(layer=2, cameras=("top",)), actions, states)


@pytest.fixture(scope="module")
def saved(policy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "policy"
    policy.save(folder)
    return folder


def test_the_same_episodes_are_solved(policy, saved, monkeypatch):
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    from toy_benchmark.spec import ToyConfig
    from toy_benchmark.world import Toy

    config = RolloutConfig(replan_every=4, max_steps=24, batch_size=5)
    episodes = [("toy/touch-red", seed) for seed in range(5)]
    episodes += [("toy/touch-blue", seed) for seed in range(5)]

    def outcomes(act):
        results = rollout_batch(
            act, EnvironmentPool(Toy(ToyConfig(radius=0.15)), 10), episodes, config
        )
        return {(r.task, r.seed): (r.success, r.steps, r.crash) for r in results}

    inside = outcomes(policy.act_batch)
    contract = contract_of(policy, saved)
    with served(policy, contract) as server, RemotePolicy(port=server.port) as remote:
        outside = outcomes(remote.act_batch)

        def one_by_one(observations, keys):
            return np.stack([remote.act(one, key) for one, key in zip(observations, keys)])

        alone = outcomes(one_by_one)
    assert outside == inside == alone
    assert 0 < sum(success for success, _, _ in inside.values()) < len(episodes)


def test_a_contract_says_what_the_policy_knows(policy, saved):
    contract = contract_of(policy, saved, keys={"top": "observation/image"})
    metadata = contract.metadata()
    assert metadata["observation"]["observation/image"]["shape"] == [None, None, 3]
    assert metadata["observation"]["observation/state"]["required"]
    assert metadata["fps"] is None and metadata["action"]["space"] is None
    for keys in ({"tpo": "a"}, {"top": "x", "side": "x"}):
        with pytest.raises(RoboAlignError, match="the policy has no camera"):
            contract_of(policy, saved, keys=keys)


def test_rest_of_a_chunk_travels_over_the_wire(policy, saved):
    rng = np.random.default_rng(1)
    observation = SimpleNamespace(
        images={"top": rng.integers(0, 256, (64, 64, 3), np.uint8)},
        state=np.zeros(4, np.float32),
        instruction="Touch the red square.",
    )
    rest = rng.uniform(-0.5, 0.5, (6, 4)).astype(np.float32)
    with (
        served(policy, contract_of(policy, saved)) as server,
        RemotePolicy(port=server.port) as remote,
    ):
        chunk = remote.act(observation, ("k",), previous=rest, delay=3)
        plain = remote.act(observation, ("k",))
        with pytest.raises(RoboAlignError, match="rtc/delay: 7 is not within the 6 actions"):
            remote.act(observation, ("k",), previous=rest, delay=7)
    expected = policy.act_batch([observation], [("k",)], guides=[(rest, 3)])[0]
    np.testing.assert_allclose(chunk, expected, atol=1e-5)
    assert np.abs(plain - rest[0]).max() > np.abs(chunk[:3] - rest[:3]).max()


def test_a_head_that_reads_its_reasoning_acts_alike_over_the_wire(policy, tmp_path):
    """Request by request: the reasoning is written by the server, and its metadata say so."""
    view = View(layer=2, cameras=("top",), reading="reasoned", max_reasoning_tokens=6)
    own = dataclasses.replace(policy, view=view, counts=Counter())
    own.save(tmp_path / "policy")
    rng = np.random.default_rng(1)
    observation = SimpleNamespace(
        images={"top": rng.integers(0, 256, (64, 64, 3), np.uint8)},
        state=np.zeros(4, np.float32),
        instruction="Touch the red square.",
    )
    loaded = Policy.load(tmp_path / "policy")
    contract = contract_of(loaded, tmp_path / "policy")
    assert contract.metadata()["policy"]["reading"] == "reasoned"
    with served(loaded, contract) as server, RemotePolicy(port=server.port) as remote:
        chunk = remote.act(observation, ("k",))
    np.testing.assert_allclose(chunk, own.act(observation, ("k",)), atol=1e-5)
    assert loaded.counts["decisions"] > own.counts["decisions"] == 1  # it warms up
    plain = policy.act(observation, ("k",))
    assert np.abs(plain - chunk).max() > 1e-3


@pytest.mark.parametrize("reads_state", [True, False])
def test_relative_actions_are_made_absolute_once_over_the_wire(policy, tmp_path, reads_state):
    """By the server, from the state of the request; also for a head that does not read the state itself."""
    space = ActionSpace(control="joint", mode="absolute", joints=3, gripper="closed_one")
    plain = policy if reads_state else stateless(policy)
    own = dataclasses.replace(plain, relative=Relative(space=space, pairs=((0, 2), (2, 1))))
    own.save(tmp_path / "policy")
    loaded = Policy.load(tmp_path / "policy")
    rng = np.random.default_rng(1)
    images = {"top": rng.integers(0, 256, (64, 64, 3), np.uint8)}
    states = (np.zeros(4, np.float32), np.array([9, 0.5, -2, 7], np.float32))
    seen = [SimpleNamespace(images=images, state=s, instruction="Touch it.") for s in states]
    rest = np.full((5, 4), 0.25, np.float32)
    with (
        served(loaded, contract_of(loaded, tmp_path / "policy")) as server,
        RemotePolicy(port=server.port) as remote,
    ):
        assert remote.metadata["observation"]["observation/state"]["required"]
        chunks = remote.act_batch(seen, [("k",), ("k",)])
        guided = remote.act(seen[1], ("k",), previous=rest, delay=2)
        without = SimpleNamespace(**{**vars(seen[0]), "state": np.zeros(0, np.float32)})
        with pytest.raises(RoboAlignError, match="observation/state"):
            remote.act(without, ("k",))
    counted = plain.act_batch(seen, [("k",), ("k",)])
    np.testing.assert_allclose(chunks[0], counted[0], atol=1e-5)  # counted from zero
    np.testing.assert_allclose(chunks[1], counted[1] + [-2, 0, 0.5, 0], atol=1e-5)
    inside = own.act_batch(seen[1:], [("k",)], guides=[(rest, 2)])[0]
    np.testing.assert_allclose(guided, inside, atol=1e-5)


def stateless(policy: HeadPolicy) -> HeadPolicy:
    torch.manual_seed(0)
    head = FlowMatchingHead(HeadConfig(**SMALL), policy.head.shape)
    return dataclasses.replace(policy, head=head.eval(), state_stats=None)
