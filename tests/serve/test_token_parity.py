"""A token policy behind the server: the same answers and holds as in this process, with and without noise keys."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from serving import CONTRACT, Echo, expected, seen, served

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.hold import HoldRule
from roboalign.actions.normalize import ActionStats
from roboalign.actions.spaces import ActionSpace
from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.conversations.styles.registry import STYLES
from roboalign.mllm.load import load_mllm, save_mllm
from roboalign.mllm.tiny import TinyConfig, build_tiny
from roboalign.serve.client import RemotePolicy
from roboalign.serve.describe import contract_of
from roboalign.vla.policy import Policy
from roboalign.vla.token_policy import TokenPolicy, TokenView
from roboalign.vla.token_writer import TokenPolicyConfig

LOOK = SimpleNamespace(
    images={"top": np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)},
    state=np.zeros(0, np.float32),
    instruction="open the drawer",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved token policy of an untrained model, which draws its tokens."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("run")
    raw = np.random.default_rng(0).uniform(-1, 1, (40, 1, 2)).astype(np.float32)
    stats = ActionStats.fit(raw.reshape(-1, 2))
    fast = FastTokenizer.fit(stats.normalize(raw), scale=1.0, vocab_size=16)
    vision = {"image_size": 32, "vision_width": 32, "vision_depth": 2, "vision_heads": 2}
    config = TinyConfig(**vision, width=48, depth=2, heads=2, kv_heads=2)
    mllm = build_tiny(config, [STYLES["labelled"].action_question("open it", "direct")] * 20)
    mllm.vocabulary = extend_tokenizer(mllm.tokenizer, fast.vocab_size)
    extend_model(mllm.model, mllm.tokenizer, mllm.vocabulary)
    mllm.prompts = "labelled"
    save_mllm(mllm, root / "model")
    space = ActionSpace(control="joint", mode="delta", joints=1, gripper="closed_one")
    policy = TokenPolicy(
        load_mllm(root / "model"),
        fast,
        stats,
        HoldRule(space=space),
        TokenView(mode="direct", cameras=("top",), prompts="labelled"),
        TokenPolicyConfig(max_block_tokens=12, temperature=1.0),
        seed=3,
    )
    policy.save(root / "policy")
    return root / "policy"


def test_the_same_answers_through_the_server(folder):
    here, there = Policy.load(folder), Policy.load(folder)
    contract = contract_of(there, folder)
    keys = [("e", number % 2, number) for number in range(6)]
    with served(there, contract) as server, RemotePolicy(port=server.port) as remote:
        said = remote.metadata["policy"]
        assert (said["kind"], said["mode"], said["temperature"]) == ("tokens", "direct", 1.0)
        assert not remote.metadata["real_time_chunking"]
        outside = [remote.act(LOOK, key) for key in keys]
    np.testing.assert_array_equal(np.stack(outside), [here.act(LOOK, key) for key in keys])
    assert there.counts["decisions"] == 7  # the warm-up too
    assert there.counts["holds"] >= here.counts["holds"] > 0


def test_requests_without_a_key_are_one_robot_a_connection_until_its_reset():
    """`Echo` answers with the lengths of the key's parts; an unkeyed request would add none."""
    asked = []

    class Keyed(Echo):
        def act_batch(self, observations, noise_keys):
            asked.extend(noise_keys)
            return super().act_batch(observations, noise_keys)

    remembers = replace(CONTRACT, remembers=True)
    with (
        served(Keyed(), remembers) as server,
        RemotePolicy(port=server.port) as one,
        RemotePolicy(port=server.port) as two,
    ):
        chunk = one.act(seen(1))
        one.act(seen(2))
        two.act_batch([seen(1), seen(2)])
        named = one.act(seen(1), ("mine", 5))
    np.testing.assert_array_equal(named, expected(seen(1), ("mine", 5)))
    first, *rest = asked[1:]  # after the warm-up
    np.testing.assert_array_equal(chunk, expected(seen(1), first))
    assert rest[-1] == ("mine", 5)
    assert first == ("connection", first[1], 0, 0, 0)
    assert rest[0] == ("connection", first[1], 0, 0, CONTRACT.horizon)
    other = rest[1][1]
    assert other != first[1]
    assert rest[1:3] == [("connection", other, 0, n, 0) for n in range(2)]
    with served(Keyed(), CONTRACT) as server, RemotePolicy(port=server.port) as one:
        one.act(seen(1))
    assert asked[-1] is None
