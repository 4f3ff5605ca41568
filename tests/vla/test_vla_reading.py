"""What a head reads: the direct question, the one in think mode, or that one with the reasoning."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_readings import BUDGET, READINGS, SMALL, policy_of, seen, view_of

from roboalign.actions.normalize import ActionStats
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import Encoded, encode_prompt
from roboalign.mllm.generate import Generation, generate
from roboalign.mllm.hidden import hidden_states
from roboalign.sim.rollout import Planned
from roboalign.vla import reasoning
from roboalign.vla.export import export_policy
from roboalign.vla.features import FeatureConfig, View, compute_features, feature_bytes
from roboalign.vla.head import HeadConfig
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy import Policy
from roboalign.vla.reasoning import write_thoughts
from roboalign.vla.train import HeadTrainConfig, train_head


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch, mllm: Any) -> Callable[..., list[dict[str, Any]]]:
    """Make the model write given texts, one a prompt and call; returns the list of calls."""

    def force(*texts: str) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def write(mllm: Any, prompts: Sequence[Encoded], **settings: Any) -> Generation:
            calls.append({"prompts": list(prompts), **settings})
            rows = [ids_of(mllm, text)[: settings["max_new_tokens"]] for text in texts]
            return Generation([[row] for row in rows], [], [], 0, 0)

        monkeypatch.setattr(reasoning, "generate", write)
        return calls

    return force


def ids_of(mllm: Any, text: str) -> list[int]:
    return list(mllm.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("dtype", ["float16", "float8"])
@pytest.mark.parametrize("reading", READINGS)
def test_serving_reads_what_training_read(mllm, episodes, tmp_path, reading, dtype):
    view = view_of(reading, dtype=dtype)
    store = compute_features(mllm, episodes[:1], view, FeatureConfig(batch_size=1), tmp_path)
    for t in (0, 3):
        trained, there = store.gather(np.array([t]))
        one = seen(episodes[0], t)
        served, mask = view.encode(mllm, [view.prompt(one.images, one.instruction)])
        assert torch.equal(trained, served) and torch.equal(there, mask)


def test_what_is_stored_does_not_depend_on_the_batch(mllm, episodes, tmp_path):
    """Greedy writing in a batch of prompts of several lengths gives each prompt its own words."""
    view = view_of("reasoned")
    one, many = (
        compute_features(mllm, episodes[:3], view, FeatureConfig(batch_size=n), tmp_path / str(n))
        for n in (1, 16)
    )
    np.testing.assert_array_equal(one.lengths, many.lengths)
    for frame in range(len(one)):
        a, b = (store.gather(np.array([frame]))[0] for store in (one, many))
        torch.testing.assert_close(a, b, atol=5e-3, rtol=0)


def test_each_reading_is_another_sequence_of_tokens(mllm, episodes):
    one = seen(episodes[0], 0)
    asked = {name: view_of(name).question(one.instruction) for name in READINGS}
    assert (
        'Answer directly as "<' in asked["direct"]
        and 'Think first, then answer as "<' in (asked["think"])
    )
    assert asked["think"] == asked["reasoned"]
    lengths = {}
    for name in READINGS:
        view = view_of(name)
        prompt = view.prompt(one.images, one.instruction)
        lengths[name] = int(view.encode(mllm, [prompt])[1].sum())
        written = len(encode_prompt(mllm, prompt.question, prompt.images).input_ids)
        assert (lengths[name] == written) == (name != "reasoned")
    assert len(set(lengths.values())) == 3


def test_reasoned_reads_the_prompt_and_the_words_up_to_the_closing_tag(mllm, episodes, forced):
    calls = forced("<think>Go down.</think>")
    view = view_of("reasoned").model_copy(update={"max_reasoning_tokens": 99})
    one = seen(episodes[1], 2)
    prompt = view.prompt(one.images, one.instruction)
    states, mask = view.encode(mllm, [prompt])
    begun = encode_prompt(mllm, prompt.question, prompt.images)
    whole = np.concatenate([begun.input_ids, ids_of(mllm, "<think>Go down.</think>")])
    wanted, there = hidden_states(mllm, [Encoded(whole, whole, begun.images)], 2)
    torch.testing.assert_close(states, wanted.half())
    assert torch.equal(mask, there)
    [call] = calls
    assert call["temperature"] == 0 and call["max_new_tokens"] == 99
    assert call["stop"] == "</think>"


def test_a_reasoning_that_does_not_end_is_cut_and_closed(mllm, episodes, forced):
    one = seen(episodes[0], 0)
    prompt = view_of("reasoned").prompt(one.images, one.instruction)
    encoded = encode_prompt(mllm, prompt.question, prompt.images)
    end = mllm.tokenizer.eos_token
    long, tag = "<think>" + "the gripper is open " * 9, ids_of(mllm, "</think>")
    forced("<think>down</think>", long, f"<think>down{end}", f"{end}")
    ended, _, stopped, empty = write_thoughts(mllm, [encoded] * 4, 99)
    assert ended.ids == ids_of(mllm, "<think>down</think>") and not ended.closed
    assert stopped.ids == ids_of(mllm, "<think>down") + tag and stopped.closed
    assert empty.ids == tag and empty.generated == 1
    forced(long)
    [cut] = write_thoughts(mllm, [encoded], BUDGET)
    assert cut.ids == ids_of(mllm, long)[:BUDGET] + tag and cut.closed
    assert cut.counts() == {"decisions": 1, "tokens": BUDGET, "closed": 1}


def test_an_action_block_is_no_part_of_a_reasoning(mllm, episodes, forced):
    [start] = ids_of(mllm, mllm.tokenizer.eos_token)  # any token stands for <ACTION_START>
    other = dataclasses.replace(mllm, vocabulary=SimpleNamespace(start_id=start))
    one = seen(episodes[0], 0)
    prompt = view_of("reasoned").prompt(one.images, one.instruction)
    forced(f"<think>go{mllm.tokenizer.eos_token}up")
    [thought] = write_thoughts(other, [encode_prompt(mllm, prompt.question, prompt.images)], 99)
    assert thought.ids == ids_of(mllm, "<think>go") + ids_of(mllm, "</think>")


def test_the_written_reasoning_is_the_models_greedy_one(mllm, episodes):
    one = seen(episodes[2], 1)
    prompt = view_of("reasoned").prompt(one.images, one.instruction)
    [thought] = view_of("reasoned").think(mllm, [prompt])
    [[ids]] = generate(mllm, [prompt], max_new_tokens=BUDGET, temperature=0.0).tokens
    kept = thought.ids[: -len(ids_of(mllm, "</think>"))] if thought.closed else thought.ids
    assert kept == ids[: len(kept)] and thought.generated <= BUDGET


@pytest.mark.parametrize("reading", READINGS)
def test_a_saved_and_an_exported_policy_act_as_the_trained_one(
    mllm, backbone, episodes, tmp_path, reading
):
    policy = policy_of(mllm, episodes, reading)
    policy.save(tmp_path / "policy")
    export_policy(tmp_path / "policy", tmp_path / "out", {"instructions": ["open the drawer"]})
    observations = [seen(episodes[n], 2) for n in range(2)]
    keys = [("a", 0), ("b", 0)]
    wanted = policy.act_batch(observations, keys)
    loaded, exported = Policy.load(tmp_path / "policy"), Policy.load(tmp_path / "out")
    np.testing.assert_array_equal(loaded.act_batch(observations, keys), wanted)
    tolerance = 0 if reading == "reasoned" else 0.05  # else rounded to bfloat16
    np.testing.assert_allclose(
        exported.act_batch(observations, keys), wanted, atol=tolerance, rtol=0
    )
    told = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert told["view"]["reading"] == reading
    assert told["facts"]["prompt"] == view_of(reading).question("open the drawer")
    assert loaded.metadata().get("reading", "direct") == reading
    depth = 3 if reading == "reasoned" else 2
    assert len(loaded.mllm.model.get_decoder().layers) == depth
    assert len(exported.mllm.model.get_decoder().layers) == depth


def test_a_decision_is_counted_where_something_is_written(mllm, episodes):
    observations = [seen(episodes[0], 0), seen(episodes[1], 0)]
    keys = [("t", 0, 0), ("t", 1, 0)]
    plain = policy_of(mllm, episodes, "think")
    assert Planned(*plain.act_and_count(observations, keys)).counts == [{}, {}]
    assert plain.counts == {}
    writing = policy_of(mllm, episodes, "reasoned")
    _, counts = writing.act_and_count(observations, keys)
    assert [one["decisions"] for one in counts] == [1, 1]
    assert all(1 <= one["tokens"] <= BUDGET for one in counts)
    assert writing.counts["tokens"] == sum(one["tokens"] for one in counts)


@pytest.mark.parametrize("trained", READINGS)
def test_a_head_does_not_read_what_it_was_not_trained_on(
    mllm, backbone, episodes, tmp_path, trained
):
    folder = tmp_path / "policy"
    policy_of(mllm, episodes, trained).save(folder)
    record = json.loads((folder / "policy.json").read_text())
    for reading in READINGS:
        record["view"]["reading"] = reading
        (folder / "policy.json").write_text(json.dumps(record))
        if reading == trained:
            assert Policy.load(folder).metadata().get("reading", "direct") == trained
            continue
        problem = f"view.reading is `{reading}`, and the head was trained on `{trained}`"
        with pytest.raises(RoboAlignError, match=problem):
            Policy.load(folder)


def test_a_policy_of_the_time_before_there_were_readings_is_direct(mllm, episodes, tmp_path):
    policy = policy_of(mllm, episodes, "direct")
    policy.save(tmp_path / "policy")
    path = tmp_path / "policy" / "policy.json"
    record = json.loads(path.read_text())
    del record["view"]["reading"], record["view"]["max_reasoning_tokens"]
    path.write_text(json.dumps(record))
    one = seen(episodes[0], 1)
    np.testing.assert_array_equal(
        Policy.load(path.parent).act(one, ("a", 0)), policy.act(one, ("a", 0))
    )
    policy_of(mllm, episodes, "think").save(tmp_path / "thinking")
    path = tmp_path / "thinking" / "policy.json"
    record = json.loads(path.read_text())
    del record["view"]["reading"]
    path.write_text(json.dumps(record))
    with pytest.raises(RoboAlignError, match="trained on `think`"):
        Policy.load(path.parent)
    record["view"]["reading"] = "silent"
    path.write_text(json.dumps(record))
    with pytest.raises(RoboAlignError, match=r"view\.reading"):
        Policy.load(path.parent)


def test_stored_states_are_told_apart_by_what_changes_them(mllm, episodes, tmp_path):
    """Those of the direct question keep the name that they had before there was a choice."""
    before = View(layer=2, cameras=("front",)).identity()
    assert set(before) == {
        *("layer", "cameras", "cameras_as", "blind", "final_norm", "dtype", "prompts")
    }
    views = [view_of(name) for name in READINGS]
    views += [view.model_copy(update={"max_reasoning_tokens": 5}) for view in views]
    told = [json.dumps(view.identity()) for view in views]
    assert told[0] == told[3] == json.dumps(before) and told[1] == told[4]
    assert len(set(told)) == 4


def test_a_policy_that_writes_is_not_compiled(mllm, backbone, episodes, tmp_path):
    policy_of(mllm, episodes, "reasoned").save(tmp_path / "policy")
    with pytest.raises(RoboAlignError, match="writes a reasoning is not compiled"):
        Policy.load(tmp_path / "policy", compile=True)


def test_a_head_is_trained_and_acts_on_its_reasonings(backbone, mllm, episodes, tmp_path):
    """The states that the policy's act reads equal those that its head was trained on."""
    shutil.copytree(backbone, tmp_path / "backbone")
    from roboalign.mllm.load import load_mllm

    own = load_mllm(tmp_path / "backbone")
    view, config = view_of("reasoned"), HeadTrainConfig(steps=2, batch_size=4, eval_every=2)
    stats = ActionStats.fit(np.concatenate([one.actions for one in episodes]))
    ledger = train_head(
        own,
        episodes[:2],
        episodes[2:3],
        HeadConfig(**SMALL),
        config,
        view,
        stats,
        tmp_path / "head",
        horizon=3,
    )
    files = list((tmp_path / "head" / "features").glob("*.safetensors"))
    written = sum(path.stat().st_size for path in files)
    assert 0.5 * ledger["feature_bytes"] < written < 1.2 * ledger["feature_bytes"]
    assert ledger["feature_bytes"] > feature_bytes(
        own, episodes[:3], view_of("think"), config.features
    )
    policy = Policy.load(tmp_path / "head" / "policy")
    assert isinstance(policy, HeadPolicy) and policy.view == view
    one = seen(episodes[0], 1)
    [thought] = policy.view.think(policy.mllm, [policy.view.prompt(one.images, one.instruction)])
    again = policy.view.encode(policy.mllm, [thought.encoded])[0]
    alone = compute_features(own, episodes[:1], view, FeatureConfig(batch_size=1), tmp_path / "f")
    assert torch.equal(alone.gather(np.array([1]))[0], again)
