"""The exported reward against ours: the same text, the same ids, the same numbers."""

import pytest
import verl_case
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.align.export.verl import (
    ground_truth,
    reward_settings,
)
from roboalign.align.rewards.actions import score_responses
from roboalign.cli.export import copy_reward, load_file
from roboalign.core.files import write_json
from roboalign.mllm.encode import end_ids, special_ids

fast, mllm, conversations = verl_case.fast, verl_case.mllm, verl_case.conversations


@pytest.fixture(scope="module", params=["paper", "decoded"])
def reward(request, mllm, fast, tmp_path_factory):
    """The preset's name, and the exported function file, loaded as a file."""
    folder = tmp_path_factory.mktemp(request.param)
    copy_reward(folder)
    write_json(folder / "reward.json", reward_settings(mllm, fast, request.param))
    return request.param, load_file(folder / "reward.py")


def ours(mllm, fast, text: str, target, preset: str):
    """Our reward of the ids that `text` is read as, and the text that a trainer would hand over for them."""
    ids = mllm.tokenizer.encode(text, add_special_tokens=False)
    (scored,) = score_responses(
        [ids],
        [target],
        preset=preset,
        vocabulary=mllm.vocabulary,
        fast=fast,
        eos_ids=end_ids(mllm),
        special_ids=special_ids(mllm),
        decode_text=lambda row: str(mllm.tokenizer.decode(list(row), skip_special_tokens=False)),
    )
    return scored, str(mllm.tokenizer.decode(ids, skip_special_tokens=False))


def same(theirs: dict, scored) -> None:
    for name in ("format", "action", "prefix"):
        assert theirs[name] == pytest.approx(getattr(scored, name), abs=1e-6), name
    assert theirs["score"] == pytest.approx(scored.total, abs=1e-6)


PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<ACTION_START>",
        "<ACTION_END>",
        "<FAST_1>",
        "<FAST_39>",
        "<FAST_40>",
        "<FAST_01>",
        "<FAST_",
        ">",
        " ",
        "\n",
        "moon",
        "Go up.",
        "<|im_end|>",
        "<|im_start|>",
        "é",
        "5",
    ]
)


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(PIECES, max_size=9))
def test_any_text_earns_what_its_ids_earn(reward, mllm, fast, conversations, pieces):
    preset, module = reward
    target = conversations[0].target
    scored, text = ours(mllm, fast, "".join(pieces), target, preset)
    same(module.score(text, list(target)), scored)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_answers_near_the_target_earn_what_their_ids_earn(reward, mllm, fast, conversations, data):
    preset, module = reward
    target = list(data.draw(st.sampled_from(conversations)).target)
    of_another = list(data.draw(st.sampled_from(conversations)).target)
    kept = data.draw(st.integers(0, len(target)))
    other = data.draw(st.lists(st.integers(0, fast.vocab_size - 1), max_size=3))
    block = data.draw(
        st.sampled_from(
            [target, of_another, target[:kept] + other, target[:kept] + of_another[kept:]]
        )
    )
    reasoning = data.draw(
        st.sampled_from(["Go.", "", "  ", "a <answer>", "<FAST_2>", "\n up \n", "a<|im_start|>b"])
    )
    end = data.draw(st.sampled_from(["", "<|im_end|>", "<|im_end|><|im_end|>", " ", " x"]))
    text = f"<think>{reasoning}</think><answer>{mllm.vocabulary.text(block)}</answer>{end}"
    scored, written = ours(mllm, fast, text, target, preset)
    same(module.score(written, target), scored)


def test_the_rewards_by_hand(reward, conversations):
    preset, module = reward
    module.SETTINGS.update(n_fast=40)
    block = "".join(f"<FAST_{i}>" for i in (7, 8, 9))
    text = f"<think>a</think><answer><ACTION_START>{block}<ACTION_END></answer>"
    target = list(conversations[0].target)
    perfect = text.replace(block, "".join(f"<FAST_{i}>" for i in target))
    assert module.compute_score("any", perfect, ground_truth(target), {"index": 0})["score"] == 1.0
    # Without its tags the same block earns 0.5 as written, nothing where a chunk has to be well formed to be paid.
    bare = perfect.replace("<think>a</think>", "")
    assert module.score(bare, target)["score"] == {"paper": 0.5, "decoded": 0.0}[preset]
    assert module.score("no idea", target)["score"] == 0.0
    if preset == "paper":
        assert module.score(text, [7, 8, 1, 2])["score"] == (1 + 2 / 4) / 2
    batch = [
        {"response": perfect, "response_length": 9, "ground_truth": ground_truth(target)},
        {"response": "no idea", "response_length": 2, "ground_truth": ground_truth(target)},
    ]
    assert [one["overall"] for one in module.compute_scores(batch)] == [1.0, 0.0]
