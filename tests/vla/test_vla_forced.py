"""Acting after another reasoning: kept is the policy itself, the others change the text alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from synthetic_readings import policy_of
from synthetic_readings import seen as seen_by_head
from synthetic_tokens import HORIZON, make, seen

from roboalign.conversations.prompts import action_answer
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import Encoded
from roboalign.mllm.generate import Generation
from roboalign.vla import reasoning, token_writer
from roboalign.vla.forced import CONDITIONS, Donor, Forced, shuffled

OWN = "the gripper is open and the handle is far"
KEYS = [("t", 0, 0), ("t", 1, 0)]
DONORS = [
    Donor(instruction="open the drawer", episode_id="a", step=0, text=OWN),
    Donor(instruction="open the drawer", episode_id="a", step=4, text="now pull"),
    Donor(instruction="close it", episode_id="b", step=1, text="push it shut"),
]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, parts: Any) -> Callable[[str, str], list[str]]:
    """Make the model reason and answer with given texts; returns what it was asked to go on from."""

    def write(thought: str, block: str) -> list[str]:
        asked: list[str] = []

        def fake(text: str, note: bool) -> Callable[..., Generation]:
            def generate(mllm: Any, prompts: Sequence[Encoded], **settings: Any) -> Generation:
                ids = mllm.tokenizer(text, add_special_tokens=False)["input_ids"]
                if note:
                    asked.extend(mllm.tokenizer.decode(one.input_ids) for one in prompts)
                rows = [[ids[: settings["max_new_tokens"]]] for _ in prompts]
                return Generation(rows, [[[0.0] * len(row[0])] for row in rows], [], 0, 0)

            return generate

        monkeypatch.setattr(reasoning, "generate", fake(thought, False))
        monkeypatch.setattr(token_writer, "generate", fake(block, True))
        return asked

    return write


def block_of(parts: Any, number: int) -> str:
    chunk = parts["stats"].normalize(parts["raw"][number : number + 1])
    return "<answer>" + action_answer(parts["fast"].encode(chunk)[0])


def thought_in(text: str) -> str:
    return text[text.rindex("<think>") : text.rindex("</think>") + len("</think>")]


@pytest.mark.parametrize("budget", [3, 20])
def test_kept_is_the_policy_itself(parts: Any, budget: int) -> None:
    """The untrained model does not end its reasonings, so they are closed, as the policy closes
    them."""
    policy = make(parts, "think", max_reasoning_tokens=budget, max_block_tokens=8)
    wanted = policy.answers([seen(0), seen(1)], KEYS)
    found = Forced(make(parts, "think", max_reasoning_tokens=budget, max_block_tokens=8), "kept")
    answers = []
    read = found.policy.read
    found.policy.read = lambda replies: answers.extend(read(replies)) or answers  # type: ignore
    _, counts = found.act_and_count([seen(0), seen(1)], KEYS)
    assert [row[0].ids for row in answers] == [row[0].ids for row in wanted]
    assert [row[0].closed for row in wanted] == [bool(one["closed"]) for one in counts]
    assert all(one["changed"] == 0 for one in counts)


def test_the_model_goes_on_from_the_changed_reasoning(parts: Any, written: Any) -> None:
    forced = {}
    for condition in CONDITIONS:
        asked = written(f"<think>{OWN}</think>", block_of(parts, 2))
        policy = Forced(make(parts, "think"), condition, DONORS)
        chunks, [counts] = policy.act_and_count([seen(0)], KEYS[:1])
        assert chunks.shape == (1, HORIZON, 4) and counts["holds"] == 0
        assert counts["changed"] == int(condition != "kept")
        assert asked[0].count("<think>") == 1 and "Think first" in asked[0]
        forced[condition] = thought_in(asked[0])
    assert forced["kept"] == f"<think>{OWN}</think>"
    assert forced["emptied"] == "<think></think>"
    assert forced["other-frame"] == "<think>now pull</think>"  # the one that is not its own
    assert forced["other-instruction"] == "<think>push it shut</think>"
    words = forced["shuffled"].removeprefix("<think>").removesuffix("</think>")
    assert words != OWN and sorted(words.split()) == sorted(OWN.split())


def test_an_answer_that_is_no_chunk_after_another_reasoning_is_a_hold(
    parts: Any, written: Any
) -> None:
    written(f"<think>{OWN}</think>", "<answer>down</answer>")
    policy = Forced(make(parts, "think"), "emptied")
    chunks, [counts] = policy.act_and_count([seen(0)], KEYS[:1])
    assert counts["holds"] == 1 and (chunks[0, :, :3] == 0).all()


def test_a_replacement_is_drawn_by_the_decisions_key(parts: Any) -> None:
    donors = [
        Donor(instruction="go", episode_id="a", step=step, text=f"text {step}") for step in range(9)
    ]
    policy = Forced(make(parts, "think"), "other-frame", donors)
    drawn = [policy.replaced("text 0", "go", ("t", 0, step)) for step in range(40)]
    assert drawn == [policy.replaced("text 0", "go", ("t", 0, step)) for step in range(40)]
    assert len(set(drawn)) > 5 and "text 0" not in drawn
    only = Forced(make(parts, "think"), "other-frame", donors[:1])
    assert only.replaced("text 0", "go", ("t", 0, 0)) == "text 0"  # there is no other
    with pytest.raises(RoboAlignError, match="no reasoning of another instruction is known"):
        Forced(make(parts, "think"), "other-instruction", donors).replaced("", "go", ("t", 0))


def test_shuffling_keeps_the_words() -> None:
    rng = np.random.default_rng(0)
    assert shuffled("one", rng) == "one" and shuffled("a a", rng) == "a a"
    assert shuffled("a b", rng) == "b a"


def test_a_head_reads_the_changed_reasoning(mllm: Any, episodes: Any) -> None:
    policy = policy_of(mllm, episodes, "reasoned")
    observations = [seen_by_head(episodes[0], 1), seen_by_head(episodes[1], 1)]
    own = policy.act_batch(observations, KEYS)
    kept, counts = Forced(policy, "kept").act_and_count(observations, KEYS)
    np.testing.assert_array_equal(kept, own)
    assert [one["decisions"] for one in counts] == [1, 1]
    emptied, _ = Forced(policy, "emptied").act_and_count(observations, KEYS)
    assert np.abs(emptied - own).max() > 1e-4


def test_a_policy_without_a_reasoning_is_refused(parts: Any, mllm: Any, episodes: Any) -> None:
    for policy in (make(parts, "direct"), policy_of(mllm, episodes, "think")):
        with pytest.raises(RoboAlignError, match="writes no reasoning that could be replaced"):
            Forced(policy, "kept")
