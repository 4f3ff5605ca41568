"""Token policies: forced answers decoded by hand, holds, the budget of a reasoning, and the folder."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_tokens import DIM, EPISODES, HORIZON, OPEN, SPACE, make, seen

from roboalign.actions.hold import HoldRule
from roboalign.conversations.prompts import action_answer
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import Encoded
from roboalign.mllm.generate import Generation
from roboalign.vla import token_writer
from roboalign.vla.command_memory import MOST_EPISODES, CommandMemory
from roboalign.vla.policy import Policy, policy_files
from roboalign.vla.token_policy import TokenPolicy


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Make the model write given texts, one a prompt and call; returns the list of calls."""

    def force(policy: TokenPolicy, *turns: Sequence[str]) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        left = list(turns)

        def generate(mllm: Any, prompts: Sequence[Encoded], **settings: Any) -> Generation:
            calls.append({"prompts": list(prompts), **settings})
            ids = [policy.mllm.tokenizer(text)["input_ids"] for text in left.pop(0)]
            ids = [row[: settings["max_new_tokens"]] for row in ids]
            return Generation(
                [[row] for row in ids], [[[-0.5] * len(row)] for row in ids], [], 0, 0
            )

        monkeypatch.setattr(token_writer, "generate", generate)
        return calls

    return force


def block(parts: dict[str, Any], number: int) -> str:
    chunk = parts["stats"].normalize(parts["raw"][number : number + 1])
    return action_answer(parts["fast"].encode(chunk)[0])


def test_forced_tokens_decode_to_the_chunk_that_they_spell(parts: Any, forced: Any) -> None:
    policy = make(parts)
    calls = forced(policy, [f"<think></think><answer>{block(parts, n)}" for n in (3, 5)])
    chunks = policy.act_batch([seen(0), seen(1)], [("t", 0, 0), ("t", 1, 0)])
    # At scale 8 a DCT coefficient is off by up to 1/16, so a normalized action by less than 0.13.
    wanted = parts["stats"].normalize(parts["raw"][[3, 5]])
    assert np.abs(parts["stats"].normalize(chunks) - wanted).max() < 0.13
    assert chunks.shape == (2, HORIZON, DIM) and chunks.dtype == np.float32
    assert policy.counts["decisions"] == 2 and policy.counts["holds"] == 0
    [call] = calls
    assert call["temperature"] == 0.0 and call["stop"] == "<ACTION_END>" and call["samples"] == 1
    asked = [policy.mllm.tokenizer.decode(one.input_ids) for one in call["prompts"]]
    assert 'Task: open the drawer. What should the robot do next? Answer directly as "<' in asked[0]
    np.testing.assert_array_equal(call["prompts"][1].images[0], EPISODES[1].frame("front", 0))


def test_an_answer_that_is_no_chunk_holds_with_the_last_command_executed(
    parts: Any, forced: Any
) -> None:
    """The robot had done 2 of the 4 actions, so the gripper stays as the second one put it."""
    policy = make(parts)
    number = next(n for n, raw in enumerate(parts["raw"]) if raw[1, 3] != raw[3, 3])
    good, bad = f"<think></think><answer>{block(parts, number)}", "<think></think><answer>down"
    forced(policy, [bad], [good], [bad], [bad], [bad], [bad])
    first = policy.act(seen(), ("t", 7, 0))
    np.testing.assert_array_equal(first, np.tile([0, 0, 0, OPEN], (HORIZON, 1)))
    chunk = policy.act(seen(), ("t", 7, 2))
    assert np.sign(chunk[1, 3]) != np.sign(chunk[3, 3])
    held = np.zeros((HORIZON, DIM), np.float32)
    held[:, 3] = chunk[1, 3]
    np.testing.assert_array_equal(policy.act(seen(), ("t", 7, 4)), held)
    np.testing.assert_array_equal(policy.act(seen(), ("t", 7, 4)), held)  # asked for again
    np.testing.assert_array_equal(policy.act(seen(), ("t", 7, 8)), held)  # held twice
    other = policy.act(seen(), ("t", 8, 4))  # another episode
    np.testing.assert_array_equal(other, first)
    assert policy.counts == {
        "decisions": 6,
        "holds": 5,
        "hold: no action block": 5,
        "tokens": policy.counts["tokens"],
        "closed": 0,
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no action block"),
        ("<think></think><answer><ACTION_START><FAST_1>", "unclosed action block"),
        ("<think></think><answer><ACTION_START><ACTION_END>", "empty action block"),
        ("<ACTION_START><FAST_1><ACTION_END>", "action block outside <answer>"),
        ("<answer><ACTION_START>down<ACTION_END>", "other tokens inside the action block"),
        ("<answer><ACTION_START><FAST_1><ACTION_END>", "wrong number of coefficients"),
    ],
)
def test_every_undecodable_answer_is_a_counted_hold(
    parts: Any, forced: Any, text: str, reason: str
) -> None:
    policy = make(parts)
    forced(policy, [text])
    chunks, [counts] = policy.act_and_count([seen()], [("t", 0, 0)])
    np.testing.assert_array_equal(chunks[0], np.tile([0, 0, 0, OPEN], (HORIZON, 1)))
    assert counts["holds"] == 1 and counts[f"hold: {reason}"] == 1
    assert counts["tokens"] == len(policy.mllm.tokenizer(text)["input_ids"])


def test_a_reasoning_without_end_is_closed_and_the_block_asked_for(parts: Any, forced: Any) -> None:
    policy = make(parts, "think", max_reasoning_tokens=12, max_block_tokens=40)
    short = f"<think>down.</think><answer>{block(parts, 2)}"
    endless = "<think>" + "The gripper should move down. " * 30
    rest = block(parts, 4).removeprefix("<ACTION_START>")
    calls = forced(policy, [short, endless], [rest])
    (kept,), (closed,) = policy.answers([seen(0), seen(1)], [("t", 0, 0), ("t", 1, 0)])
    assert [call["max_new_tokens"] for call in calls] == [52, 40]
    cut = policy.mllm.tokenizer(endless)["input_ids"]
    opening = policy.mllm.tokenizer("</think><answer><ACTION_START>")["input_ids"]
    prompt = calls[0]["prompts"][1].input_ids.tolist()
    assert calls[1]["prompts"][0].input_ids.tolist() == prompt + cut[:12] + opening
    assert not kept.closed and closed.closed
    assert closed.generated == 52 + len(policy.mllm.tokenizer(rest)["input_ids"])
    for answer, number in ((kept, 2), (closed, 4)):
        wanted = parts["stats"].normalize(parts["raw"][number])
        assert np.abs(parts["stats"].normalize(answer.chunk) - wanted).max() < 0.13


@pytest.mark.parametrize(("mode", "temperature"), [("direct", 0.0), ("think", 0.0), ("think", 1.0)])
def test_an_answer_does_not_depend_on_the_batch(parts: Any, mode: str, temperature: float) -> None:
    limits = {"max_reasoning_tokens": 8, "max_block_tokens": 12, "temperature": temperature}
    policy = make(parts, mode, **limits)
    observations = [seen(number, 1) for number in range(5)]
    keys = [("t", number, 0) for number in range(5)]
    together = policy.answers(observations, keys)
    for number in (4, 0, 2, 1, 3):
        [[alone]] = policy.answers([observations[number]], [keys[number]])
        assert alone.ids == together[number][0].ids
    batch = policy.act_batch(observations, keys)
    alone = [policy.act(one, key) for one, key in zip(observations, keys)]
    np.testing.assert_array_equal(batch, np.stack(alone))
    if temperature:
        other = policy.answers(observations, [("u", *key) for key in keys])
        assert [row[0].ids for row in other] != [row[0].ids for row in together]


def test_several_answers_share_one_prefill_and_differ(parts: Any) -> None:
    policy = make(parts, "direct", max_block_tokens=8, temperature=1.0)
    [four] = policy.answers([seen()], [("t", 0, 0)], samples=4)
    assert len(four) == 4 and len({tuple(one.ids) for one in four}) > 1


def test_a_folder_opens_as_the_policy_that_was_saved(
    parts: Any, forced: Any, tmp_path: Path
) -> None:
    policy = make(parts, "think", max_reasoning_tokens=9, max_block_tokens=30)
    policy.save(tmp_path / "arm" / "policy")
    loaded = Policy.load(tmp_path / "arm" / "policy")
    assert isinstance(loaded, TokenPolicy)
    assert (loaded.config, loaded.view, loaded.hold) == (policy.config, policy.view, policy.hold)
    text = f"<think>down.</think><answer>{block(parts, 1)}"
    forced(policy, [text], [text])
    mine, there = (one.act(seen(), ("t", 0, 0)) for one in (policy, loaded))
    np.testing.assert_array_equal(mine, there)
    inside, files = policy_files(tmp_path / "arm" / "policy")
    names = {Path(name).name for name in files if name.startswith(inside)}
    assert {"policy.json", "tokenizer.json", "processor_config.json"} <= names
    with pytest.raises(RoboAlignError, match="a token policy is not compiled"):
        Policy.load(tmp_path / "arm" / "policy", compile=True)


def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        record = json.loads((folder / name).read_text())
        change(record)
        (folder / name).write_text(json.dumps(record))

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited("policy.json", lambda r: r.update(kind="dance")), "no kind of policy 'dance'"),
        (edited("policy.json", lambda r: r.pop("kind")), "field 'view"),  # read as a head's
        (edited("policy.json", lambda r: r.pop("hold")), "'hold' is missing"),
        (edited("policy.json", lambda r: r["config"].pop("temperature")), "'config.temperature'"),
        (edited("policy.json", lambda r: r["view"].update(mode="shout")), "'view.mode'"),
        (edited("policy.json", lambda r: r["view"].update(prompts="paper")), "style"),
        (edited("policy.json", lambda r: r["backbone"].update(sha256="0" * 64)), "sha256 differs"),
        (edited("processor_config.json", lambda r: r.update(scale=3)), "FAST tokenizer is not"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: the file does not"),
    ],
)
def test_a_damaged_folder_is_refused(
    parts: Any, tmp_path: Path, edit: Callable[[Path], None], message: str
) -> None:
    make(parts).save(tmp_path / "policy")
    edit(tmp_path / "policy")
    with pytest.raises(RoboAlignError, match=message):
        Policy.load(tmp_path / "policy")


def test_what_does_not_belong_together_is_refused(parts: Any) -> None:
    policy = make(parts)
    wrong = HoldRule(space=SPACE.model_copy(update={"gripper": "none"}))
    with pytest.raises(RoboAlignError, match="have 4, 4 and 3 dimensions"):
        TokenPolicy(
            policy.mllm, policy.fast, policy.action_stats, wrong, policy.view, policy.config
        )
    policy.mllm.vocabulary = None
    with pytest.raises(RoboAlignError, match="the model has no action tokens"):
        TokenPolicy(
            policy.mllm, policy.fast, policy.action_stats, policy.hold, policy.view, policy.config
        )
    with pytest.raises(RoboAlignError, match="1 observations but 2 noise keys"):
        make(parts).act_batch([seen()], [None, None])


def test_the_memory_of_commands() -> None:
    memory = CommandMemory()
    chunk = np.arange(8, dtype=np.float32).reshape(4, 2)
    first = memory.recall(("t", 0, 10), 0)
    assert first.last is None
    memory.keep(first, chunk)
    executed = {11: 0, 13: 2, 14: 3, 99: 3}
    for step, row in executed.items():
        np.testing.assert_array_equal(memory.recall(("t", 0, step), 5).last, chunk[row])
    assert memory.recall(("t", 0, 9), 0).last is None  # the episode starts over
    assert memory.recall(("t", 1, 11), 0).last is None
    memory.keep(memory.recall(None, 2), chunk)  # without a key: the robot at this place
    np.testing.assert_array_equal(memory.recall(None, 2).last, chunk[3])
    assert memory.recall(None, 1).last is None
    for number in range(MOST_EPISODES):
        memory.keep(memory.recall(("u", number, 0), 0), chunk)
    assert memory.recall(("t", 0, 11), 0).last is None  # forgotten
    np.testing.assert_array_equal(memory.recall(("u", 0, 1), 0).last, chunk[0])


def test_copies_are_whole(parts: Any, tmp_path: Path) -> None:
    shutil.copytree(parts["folder"], tmp_path / "model")
    policy = make({**parts, "folder": tmp_path / "model"})
    policy.save(tmp_path / "policy")
    record = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert record["backbone"]["path"] == "../model" and record["kind"] == "tokens"
